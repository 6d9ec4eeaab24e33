"""Nodes of a cluster for tests: hosts of the lab, each with `weave-kube` as its pod would start it."""

import os
import subprocess
import sys

from lab.net import inside
from lab.router import Router, peer_name, wait_until
from tests.clusters import Cluster


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
