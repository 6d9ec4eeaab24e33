"""Changes under load: at no instant does a denied packet pass, and no allowed connection breaks."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from typing import Any

from host.netns import inside
from lab.net import run
from lab.router import wait_until
from npc import flows
from npc.model import Model
from tests.npc.cases import CASES, PORT, Cluster, policy
from tests.npc.nodes_kernel import Node, Traffic, traffic
from tests.npc.site import Site

Document = dict[str, Any]
SERVER, ALLOWED = "10.32.1.3", "10.32.1.1"
DENIED = ("10.32.3.1", "10.32.2.1")


def begin(place: Site) -> tuple[Cluster, Model, list[Node]]:
    """The cluster of the table, with one allowance to the server and nothing else."""
    case = next(case for case in CASES if case["name"] == "default-deny-ingress")
    model = Model()
    cluster = Cluster(case, model)
    cluster.apply("NetworkPolicy", policy("front", {"matchLabels": {"app": "front"}}))
    nodes = [Node(place, name, model) for name in place.hosts]
    touched = model.take()
    for node in nodes:
        node.start(touched)
    return cluster, model, nodes


def one_change(cluster: Cluster, number: int) -> None:
    """Something that changes chains, sets or classes of the server, and never whom it concerns here."""
    which, name = number % 5, f"extra-{number // 5 % 3}"
    if which == 0:
        cluster.apply("NetworkPolicy", policy(name, {"matchLabels": {"app": f"nobody-{number}"}}))
    elif which == 1:
        cluster.apply("NetworkPolicy", policy("front", {"matchLabels": {"app": "front", "tier": "ui"}}))
    elif which == 2:
        cluster.apply("NetworkPolicy", policy("front", {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}))
    elif which == 3:
        cluster.apply("Namespace", {"name": "shop", "labels": {"round": str(number)}})
    else:
        cluster.delete("NetworkPolicy", "shop", name)


def load(place: Site) -> Any:
    denied = [(place.pods[address], address) for address in DENIED]
    return traffic(place.pods[ALLOWED], denied, (place.pods[SERVER], SERVER), PORT)


def settled(seen: Traffic) -> None:
    assert seen.faults == []
    assert seen.leaked == 0
    assert min(seen.echoed, seen.opened, seen.tried) > 100, seen


def test_a_hundred_changes(place: Site) -> None:
    cluster, model, nodes = begin(place)
    try:
        with load(place) as seen:
            for number in range(100):
                one_change(cluster, number)
                touched = model.take()
                for node in nodes:
                    node.follow(touched)
                    if number % 10 == 9:
                        node.rewrite()
                time.sleep(0.02)
        settled(seen)
        for node in nodes:
            node.check()
    finally:
        for node in nodes:
            node.close()


_WRITER = """
import sys
from npc.kernel import Table
from tests.npc.test_churn import big_plan
table = Table()
print("ready", flush=True)
while True:
    table.replace(big_plan())
"""


def big_plan() -> Any:
    """The table of this test, with much else in it, so that a kill meets it half written."""
    from npc.plan import ElementSet, Key
    from npc.planner import Planner

    case = next(case for case in CASES if case["name"] == "default-deny-ingress")
    model = Model()
    Cluster(case, model).apply("NetworkPolicy", policy("front", {"matchLabels": {"app": "front"}}))
    planner = Planner(model, "n1")
    planner.update(model.take())
    for number in range(20):
        elements = {(10 << 24 | number << 16 | each).to_bytes(4, "big") for each in range(1000)}
        planner.plan.sets[f"p4-{number}"] = ElementSet(f"p4-{number}", Key.ADDRESS4, elements)
    return planner.plan


def test_whoever_writes_is_killed(place: Site) -> None:
    """A transaction is all there or not at all, whenever its writer dies."""
    _, _, nodes = begin(place)
    rng = random.Random(7)
    try:
        with load(place) as seen:
            for _ in range(8):
                command = ("ip", "netns", "exec", place.hosts["n1"], sys.executable, "-c", _WRITER)
                with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
                    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
                    time.sleep(rng.random() / 3)
                    os.kill(writer.pid, signal.SIGKILL)
                    writer.wait()
                found = nodes[0].table.audit(big_plan())
                assert found == [] or "set p4-0: missing" in found, found
        settled(seen)
    finally:
        for node in nodes:
            node.close()


def test_the_table_is_deleted_by_hand_and_comes_back(place: Site) -> None:
    """Without it everybody passes, which the load sees; with it nobody does who should not, at once."""
    _, _, nodes = begin(place)
    try:
        with load(place) as seen:
            run("ip", "netns", "exec", place.hosts["n1"], "nft", "delete table inet weave_npc")
            assert {change.table for change in nodes[0].table.events.read()} == {"weave_npc"}
            wait_until("somebody passes", lambda: seen.leaked > 0, 10)
            nodes[0].rewrite()
            nodes[0].check()
            # What is on its way arrives; connections that were known meanwhile are those of single datagrams.
            time.sleep(0.2)
            seen.leaked = 0
            time.sleep(0.5)
        settled(seen)
    finally:
        for node in nodes:
            node.close()


def test_a_revoked_stream_ends_whoever_speaks(place: Site) -> None:
    """The server is the one who sends: what it repeats must not become a connection that nobody judges."""
    cluster, model, nodes = begin(place)
    # The one who called is not isolated, so that nothing else stops what is sent to it.
    cluster.delete("NetworkPolicy", "shop", "deny-in")
    try:
        server = inside(f"/run/netns/{place.pods[SERVER]}", lambda: socket.create_server((SERVER, PORT)))
        client = inside(
            f"/run/netns/{place.pods[ALLOWED]}", lambda: socket.create_connection((SERVER, PORT), timeout=5)
        )
        with server, client, server.accept()[0] as stream:
            stream.setblocking(False)
            assert passes(stream, client) > 0
            cluster.apply("NetworkPolicy", policy("front", {"matchLabels": {"app": "nobody"}}))
            touched = model.take()
            for node in nodes:
                node.follow(touched)
            # Connections that are known pass, until they are looked at.
            assert passes(stream, client) > 0
            known = place.on_host("n1", lambda: flows.known({ip_address(SERVER).packed}))
            assert {one.flow.port for one in known} == {PORT}
            assert place.on_host("n1", lambda: flows.forget(known)) > 0
            passes(stream, client)
            assert [passes(stream, client) for _ in range(3)] == [0, 0, 0]
    finally:
        for node in nodes:
            node.close()


def passes(stream: socket.socket, client: socket.socket) -> int:
    """Octets that arrive in a second while as much is sent as there is room for."""
    arrived, over = 0, time.monotonic() + 1.0
    client.settimeout(0.05)
    while time.monotonic() < over:
        with contextlib.suppress(BlockingIOError):
            stream.send(b"x" * 1000)
        with contextlib.suppress(TimeoutError):
            arrived += len(client.recv(65536))
    return arrived
