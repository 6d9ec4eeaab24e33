"""Pods on two nodes of a cluster that find each other by name, as a pod of any image would look it up."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.net import inside, run
from lab.router import RANGE, wait_until
from tests.clusters import cluster, mesh_links
from tests.cri.nodes import flags, paths
from tests.cri.nodes import node as runtime_of
from tests.cri.runtime import Runtime, Sandbox, missing
from tests.kube_nodes import Kube, await_ready, kubernetes, node

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
# The service that docs/kubernetes.md puts in front of the nodes' port for names.
_SERVICE, _NAMES_PORT = "10.96.0.53", 6785
_NAMESPACE = "shop"


@dataclass(slots=True)
class Nodes:
    """Two nodes of a cluster, each with its router from `weave-kube`, and a runtime."""

    kube: Kube
    runtimes: dict[int, Runtime]

    def run(self, number: int, name: str) -> Sandbox:
        """A pod, and what the kubelet then says of it."""
        pod = self.runtimes[number].run_sandbox(name, namespace=_NAMESPACE, names=_SERVICE)
        self.kube.api.objects.put(
            "pods",
            {
                "metadata": {"name": name, "namespace": _NAMESPACE, "uid": f"uid-{name}"},
                "spec": {"nodeName": node(number), "containers": [{"name": name, "image": name}]},
                "status": {"phase": "Running", "podIP": pod.address},
            },
        )
        return pod

    def everywhere(self, name: str) -> bool:
        """Whether both nodes know a name."""
        return all(f"{name}.{_NAMESPACE}" in one.get("/status/dns") for one in self.kube.made.routers.values())


def serve(kube: Kube, number: int) -> None:
    """What kube-proxy does for the service on a node: here its only endpoint is the node itself."""
    host = kube.made.underlay.host(number)
    rules = "".join(
        f"add rule ip service in ip daddr {_SERVICE} {protocol} dport 53 dnat to {host.address}:{_NAMES_PORT}\n"
        for protocol in ("udp", "tcp")
    )
    chain = "add chain ip service in { type nat hook prerouting priority dstnat ; }\n"
    run(*inside(host.namespace, "nft", "-f", "-"), stdin=f"add table ip service\n{chain}{rules}")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """As the manifest has them, with names for pods: frames go by the fast data path."""
    with cluster(ipam=RANGE) as made, kubernetes(made, tmp_path) as kube, contextlib.ExitStack() as stack:
        for number in (1, 2):
            made.underlay.host(number)
            kube.add(number)
        for number in (1, 2):
            told = {"WEAVE_KUBE_DNS_NAMES": "1", "HOST_IP": made.address(number), "WEAVE_NO_FASTDP": ""}
            kube.start(number, wait=False, WEAVE_SOCKET=flags(made, number)[1], **told)
            serve(kube, number)
        for router in made.routers.values():
            wait_until("it answers", router.answers, 60)
        made.await_links(mesh_links(2))
        for router in made.routers.values():
            await_ready(router)
        wait_until("frames go by fastdp", lambda: paths(made) == {"fastdp"}, 60)
        yield Nodes(kube, {number: stack.enter_context(runtime_of(made, number)) for number in (1, 2)})


def test_pods_find_each_other_by_name(nodes: Nodes) -> None:
    pods = {"web": nodes.run(1, "web"), "shelf": nodes.run(2, "shelf")}
    wait_until("both nodes know both names", lambda: all(map(nodes.everywhere, pods)), 60)
    for own, pod in pods.items():
        for name, found in pods.items():
            full = f"{name}.{_NAMESPACE}.weave.local"
            assert pod.run_resolving("getent", "ahostsv4", full).split()[0] == found.address
            if name != own:
                said = pod.run_resolving("ping", "-c", "1", "-w", "10", full)
                assert f"({found.address})" in said
    # Any node answers for pods of any other.
    for number in (1, 2):
        server = (f"@{nodes.kube.made.address(number)}", "-p", str(_NAMES_PORT))
        assert pods["web"].run("dig", "+short", *server, f"shelf.{_NAMESPACE}.weave.local").split() == [
            pods["shelf"].address
        ]
