"""The router as the DaemonSet runs it, beside a real runtime: three capabilities, nobody else's processes in sight."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.net import run
from lab.router import RANGE, wait_until
from tests.clusters import Cluster, cluster
from tests.cri.nodes import node
from tests.cri.runtime import Runtime, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
# Neither other processes nor names of namespaces are seen, settings cannot be written.
_SCRIPT = f"""#!/bin/sh
set -e
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -t tmpfs none /run/netns
exec setpriv --bounding-set -all,+net_admin,+net_raw,+sys_admin {sys.executable} -m weave_py.weaver "$@"
"""


@dataclass(frozen=True, slots=True)
class Confined:
    """One node whose router knows nothing of the runtime but what comes through the socket."""

    cluster: Cluster
    runtime: Runtime

    def start(self) -> None:
        start(self.cluster)

    def held(self) -> str:
        return self.cluster.routers[1].get("/ip")

    def links(self) -> str:
        return run("ip", "-n", self.cluster.underlay.host(1).namespace, "link")


def start(made: Cluster) -> None:
    made.start(1, [], "--socket", str(made.directory / "h1/weaver.sock"))


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    script = tmp_path_factory.mktemp("router") / "router"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    with cluster([1], str(script), ipam=RANGE) as made, contextlib.ExitStack() as stack:
        start(made)
        yield Confined(made, stack.enter_context(node(made, 1)))


def test_pods(confined: Confined) -> None:
    one, two = confined.runtime.run_sandbox("one"), confined.runtime.run_sandbox("two")
    one.run("ping", "-c", "2", "-i", "0.2", "-W", "3", two.address)
    assert "nd-router-advert drop" in one.run("nft", "list", "ruleset")
    table = one.run("ip", "ntable", "show", "dev", "eth0", "name", "arp_cache")
    assert "base_reachable 5000" in table
    for pod in (one, two):
        confined.runtime.remove(pod.ident)
    wait_until("no address is held", lambda: one.ident not in confined.held() and two.ident not in confined.held(), 20)
    assert "vethwepl" not in confined.links()


def test_addresses_are_known_after_the_state_was_lost(confined: Confined) -> None:
    """Nothing but the pods' ports says who holds what."""
    made = confined.cluster
    pod = confined.runtime.run_sandbox("kept")
    made.routers[1].stop()
    for path in (made.directory / "h1").glob("weavedata*"):
        os.unlink(path)
    confined.start()
    wait_until("it is known again", lambda: f'"{pod.ident}","addrs":["{pod.address}/12"]' in confined.held(), 30)
    other = confined.runtime.run_sandbox("new")
    assert other.address != pod.address
    pod.run("ping", "-c", "2", "-i", "0.2", "-W", "3", other.address)
    for each in (pod, other):
        confined.runtime.remove(each.ident)
    wait_until("no address is held", lambda: pod.ident not in confined.held(), 20)


def test_a_node_that_was_switched_off(confined: Confined) -> None:
    """All interfaces are gone with it; the runtime then ends the pods it had, and makes others."""
    made = confined.cluster
    before = confined.runtime.run_sandbox("before")
    made.routers[1].stop(kill=True)
    host = made.underlay.host(1).namespace
    ports = [line.split(": ")[1].partition("@")[0] for line in confined.links().splitlines() if "vethwepl" in line]
    for name in ("weave", *ports):
        run("ip", "-n", host, "link", "del", name)
    confined.start()
    confined.runtime.remove(before.ident)
    after = confined.runtime.run_sandbox("after")
    wait_until("the former address is free", lambda: before.ident not in confined.held(), 20)
    confined.runtime.remove(after.ident)
    wait_until("no address is held", lambda: after.ident not in confined.held(), 20)
    # A release is struck out after the address is free.
    wait_until("no release waits", lambda: not os.listdir(Path(made.directory, "h1/cni")), 20)
