"""Pods on two nodes, made by containerd as a kubelet has it made: the configuration and the plugin that we install."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from host.netns import inside
from lab.router import RANGE, wait_until
from tests.clusters import cluster
from tests.cri.nodes import Nodes, flags, node, paths
from tests.cri.runtime import Runtime, Sandbox, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
# What has nothing to do with how frames get to the other node.
once = pytest.mark.parametrize("nodes", ["sleeve"], indirect=True)
_PORT = 8080


@pytest.fixture(scope="module", params=["sleeve", "fastdp"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with cluster(ipam=RANGE, fastdp=request.param == "fastdp") as made, contextlib.ExitStack() as stack:
        made.start(1, [2], *flags(made, 1), "--ipalloc-init", "consensus=2")
        made.start(2, [1], *flags(made, 2), "--ipalloc-init", "consensus=2")
        made.await_links({1: {2}, 2: {1}})
        yield Nodes(made, request.param, {number: stack.enter_context(node(made, number)) for number in (1, 2)})


@pytest.fixture
def pods(nodes: Nodes) -> Iterator[tuple[Sandbox, Sandbox]]:
    wait_until(f"frames go by {nodes.path}", lambda: paths(nodes.cluster) == {nodes.path}, 60)
    one, two = nodes.runtimes[1], nodes.runtimes[2]
    first, second = one.run_sandbox("one", [(_PORT, 18080)]), two.run_sandbox("two")
    yield first, second
    for sandboxes, pod in ((one, first), (two, second)):
        if pod.ident in sandboxes.made:
            sandboxes.remove(pod.ident)


@contextlib.contextmanager
def serving(pod: Sandbox) -> Iterator[None]:
    """A TCP server in a pod that says the address of whoever calls."""
    listener = inside(pod.namespace, lambda: socket.create_server(("", _PORT)))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                with connection:
                    connection.sendall(peer[0].encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def call(namespace: str, address: str, port: int) -> str:
    """What the server there says to a caller from a namespace."""

    def connect() -> str:
        with socket.create_connection((address, port), timeout=10) as connection:
            return connection.recv(100).decode()

    return inside(namespace, connect)


def test_pods_on_two_nodes_reach_each_other(nodes: Nodes, pods: tuple[Sandbox, Sandbox]) -> None:
    one, two = pods
    assert one.address != two.address
    before = nodes.carried(2)
    one.run("ping", "-c", "20", "-i", "0.05", "-W", "3", two.address)
    assert (nodes.carried(2) - before >= 10) == (nodes.path == "fastdp")
    with serving(one):
        assert call(two.namespace, one.address, _PORT) == two.address


def test_a_pod_reaches_itself_by_its_own_address(pods: tuple[Sandbox, Sandbox]) -> None:
    one, _ = pods
    with serving(one):
        assert call(one.namespace, one.address, _PORT) == one.address


def test_host_ports(nodes: Nodes, pods: tuple[Sandbox, Sandbox]) -> None:
    """From another node, from a pod there, and from the pod itself, whose frames turn back at its port."""
    one, two = pods
    address = nodes.cluster.address(1)
    with serving(one):
        assert call(f"/run/netns/{nodes.host(2)}", address, 18080)
        assert call(two.namespace, address, 18080)
        assert call(one.namespace, address, 18080)


def test_a_new_router_in_the_middle_of_traffic(nodes: Nodes, pods: tuple[Sandbox, Sandbox]) -> None:
    """A connection between pods outlives a restart of the router, and the next pod comes as before."""
    one, two = pods
    made = nodes.cluster
    with inside(one.namespace, lambda: socket.create_server(("", _PORT))) as listener:
        caller = inside(two.namespace, lambda: socket.create_connection((one.address, _PORT), timeout=30))
        with caller, listener.accept()[0] as called:
            made.routers[1].stop()
            caller.sendall(b"sent while there was no router")
            made.start(1, [2], *flags(made, 1), "--ipalloc-init", "consensus=2")
            made.await_links({1: {2}, 2: {1}})
            called.settimeout(30)
            assert called.recv(100) == b"sent while there was no router"
            called.sendall(b"and back")
            assert caller.recv(100) == b"and back"
    third = nodes.runtimes[1].run_sandbox("three")
    third.run("ping", "-c", "1", "-w", "10", two.address)
    nodes.runtimes[1].remove(third.ident)
    wait_until("only the first pod holds an address", lambda: nodes.held(1) == {one.ident}, 20)


@once
def test_pods_end_without_a_router(nodes: Nodes) -> None:
    made = nodes.cluster
    pod = nodes.runtimes[1].run_sandbox("late")
    wait_until("the pod holds an address", lambda: pod.ident in nodes.held(1), 10)
    made.routers[1].stop()
    try:
        nodes.runtimes[1].remove(pod.ident)
        assert len(os.listdir(made.directory / "h1/cni")) == 1
    finally:
        made.start(1, [2], *flags(made, 1), "--ipalloc-init", "consensus=2")
    wait_until("the address is free", lambda: not nodes.held(1), 20)
    # A release is struck out after the address is free.
    wait_until("no release waits", lambda: not os.listdir(made.directory / "h1/cni"), 20)


@once
def test_a_pod_does_not_start_without_a_router(nodes: Nodes) -> None:
    import grpc

    made = nodes.cluster
    made.routers[1].stop()
    try:
        with pytest.raises(grpc.RpcError, match="the weave router does not answer"):
            nodes.runtimes[1].run_sandbox("early")
    finally:
        made.start(1, [2], *flags(made, 1), "--ipalloc-init", "consensus=2")
    made.await_links({1: {2}, 2: {1}})


@once
@pytest.mark.long
@pytest.mark.timeout(400)
def test_pods_come_and_go_and_nothing_is_left(nodes: Nodes) -> None:
    """Fifty pods at a time on two nodes, replaced for three minutes."""
    alive: list[tuple[Runtime, Sandbox]] = []
    ends = time.monotonic() + 180
    count = 0
    while time.monotonic() < ends or alive:
        if len(alive) >= 50 or time.monotonic() >= ends:
            sandboxes, pod = alive.pop(0)
            sandboxes.remove(pod.ident)
        else:
            count += 1
            sandboxes = nodes.runtimes[count % 2 + 1]
            alive.append((sandboxes, sandboxes.run_sandbox(f"churn-{count}")))
    assert count > 50
    assert len({pod.address for _, pod in alive}) == len(alive)
    numbers = (1, 2)
    wait_until("no address is held", lambda: not any(nodes.held(number) for number in numbers), 20)
    wait_until("no port is left", lambda: not any("vethwepl" in nodes.links(number) for number in numbers), 20)
    spools = [nodes.cluster.directory / f"h{number}/cni" for number in numbers]
    wait_until("no release waits", lambda: not any(map(os.listdir, spools)), 20)
    print(f"{count} pods in three minutes")
