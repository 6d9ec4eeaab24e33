"""Nodes of a cluster for tests: hosts of the lab, each with `weave-kube` as its pod would start it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.net import inside, run
from lab.router import Router, peer_name, socket_in, wait_until
from tests.clusters import Cluster
from tests.kube.api_server import ApiServer, serving

MANIFEST = Path(__file__).parents[1] / "deploy/weave-daemonset.yaml"
PORT = 6443
_PEERS = "kube-peers.weave.works/peers"


def node(number: int) -> str:
    """The name of host `number` as a node."""
    return f"node-{number}"


def start_node(made: Cluster, number: int, *, wait: bool = True, **environment: str) -> Router:
    """Host `number`'s router as a node's, told by the environment what these are and what every one is."""
    router = Router(made.underlay.host(number), made.directory / f"h{number}", ipam=made.ipam)
    router.directory.mkdir(parents=True, exist_ok=True)
    told = {
        "HOSTNAME": node(number),
        "INIT_CONTAINER": "true",
        "HOST_ROOT": "",
        "DB_PREFIX": str(router.directory / "weave"),
        "WEAVE_SOCKET": "",
        "WEAVE_NO_FASTDP": "1",
        "EXPECT_NPC": "0",
        "EXTRA_ARGS": f"--name {peer_name(number)}",
        **environment,
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with (router.directory / "weaver.log").open("ab") as log:
        router.process = subprocess.Popen(
            [*inside(router.host.namespace), sys.executable, "-m", "weave_py.kube_launch"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**kept, **told},
            start_new_session=True,
        )
    made.routers[number] = router
    if wait:
        wait_until(f"node {number} answers", lambda: router.answers() or router.ended(), 60)
        assert not router.ended(), router.log[-1000:]
    return router


def await_ready(router: Router, timeout: float = 60.0) -> None:
    """Until its probe is content."""
    wait_until("the node is ready", lambda: router.ask("GET", "/ready").status == 200, timeout)


def allowed() -> list[dict[str, Any]]:
    """What the service account may, as the manifest has it."""
    rules: list[dict[str, Any]] = []
    for document in yaml.safe_load_all(MANIFEST.read_text()):
        if document["kind"] in ("ClusterRole", "Role"):
            namespace = document["metadata"].get("namespace")
            rules += [{**rule, **({"namespace": namespace} if namespace else {})} for rule in document["rules"]]
    return rules


@dataclass(slots=True)
class Kube:
    """A cluster of nodes and its API server, which all of them reach."""

    made: Cluster
    api: ApiServer
    token: Path

    def add(self, number: int) -> None:
        """Host `number` is a node, as its kubelet says."""
        addresses = [{"type": "InternalIP", "address": self.made.address(number)}]
        status = {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]}
        self.api.objects.put("nodes", {"metadata": {"name": node(number)}, "status": status})

    def start(self, number: int, *, wait: bool = True, **environment: str) -> Router:
        """Its pod."""
        told = {"WEAVE_KUBE_API": f"http://10.99.0.254:{PORT}", "WEAVE_KUBE_TOKEN_FILE": str(self.token)}
        return start_node(self.made, number, wait=wait, **told, **environment)

    def listed(self) -> set[str]:
        """Names of the peers in the list of the cluster."""
        with contextlib.suppress(Exception):
            text = self.api.objects.get("configmaps", "weave-net", "kube-system")["metadata"]["annotations"][_PEERS]
            return {entry["PeerName"] for entry in json.loads(text)["Peers"]}
        return set()

    def condition(self, number: int) -> str:
        """The node's condition NetworkUnavailable, `status reason`."""
        conditions = self.api.objects.get("nodes", node(number))["status"]["conditions"]
        found = [one for one in conditions if one["type"] == "NetworkUnavailable"]
        return f"{found[0]['status']} {found[0]['reason']}" if found else ""


@contextlib.contextmanager
def kubernetes(made: Cluster, directory: Path) -> Iterator[Kube]:
    """An API server on the underlay's switch, for the hosts of a cluster."""
    token = directory / "token"
    token.write_text("secret")
    made.underlay.host(1)
    run("ip", "-n", made.underlay.switch, "addr", "add", "10.99.0.254/24", "dev", "br0")
    sock = socket_in(made.underlay.switch)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", PORT))
    with serving(sock=sock) as api:
        api.allow("secret", "system:serviceaccount:kube-system:weave-net", allowed())
        yield Kube(made, api, token)
