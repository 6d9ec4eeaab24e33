"""The table of cases in the kernel: every probe a real packet between namespaces, IPv4 and IPv6, two hosts.

Policies are applied as weave-npc does it, each step as the change of what was there.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from host.netns import inside
from lab.net import run
from npc.base import Options
from npc.model import Model
from npc.plan import Hook
from tests.npc.cases import CASES, Cluster
from tests.npc.nodes_kernel import Node
from tests.npc.site import Probe, Site

Document = dict[str, Any]


def run_case(made: Site, case: Document, options: Options) -> None:
    model = Model()
    cluster = Cluster(case, model)
    nodes = [Node(made, name, model, options) for name in made.hosts]
    try:
        for number, probes in enumerate(cluster.steps(case)):
            touched = model.take()
            for node in nodes:
                (node.follow if number else node.start)(touched)
            for node in nodes:
                node.check()
            wanted = [probe["expect"] == "allow" for probe in probes]
            sent = [_as_sent(made, cluster, probe) for probe in probes]
            found = made.reached(sent, wanted)
            wrong = [probe for probe, was, should in zip(probes, found, wanted, strict=True) if was != should]
            assert wrong == [], f"step {number}"
    finally:
        for node in nodes:
            node.close()


def _as_sent(made: Site, cluster: Cluster, probe: Document) -> Probe:
    source, destination = (str(ip_address(cluster.address(probe[end], probe["family"]))) for end in ("src", "dst"))
    return Probe(made.namespace_of(source), source, destination, probe["protocol"], probe.get("port") or 0)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_forward(place: Site, case: Document) -> None:
    run_case(place, case, Options())


# Where the two hooks differ, which is whom a node sees and may trust; all others with --long.
_AT_POSTROUTING = ("own-node", "node", "host-network", "self", "default-deny", "icmp", "ipblock")


def _postrouting() -> Iterator[Any]:
    for case in CASES:
        quick = any(word in case["name"] for word in _AT_POSTROUTING)
        yield pytest.param(case, id=case["name"], marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize("case", list(_postrouting()))
def test_postrouting(place: Site, case: Document) -> None:
    run_case(place, case, Options(hook=Hook.POSTROUTING))


def test_a_pod_that_forges_the_address_of_its_node(place: Site) -> None:
    """Behind routing a node's own packets are known by their source: a pod must not be able to pretend."""
    case = next(case for case in CASES if case["name"] == "default-deny-ingress")
    model = Model()
    Cluster(case, model)
    nodes = [Node(place, name, model, Options(hook=Hook.POSTROUTING)) for name in place.hosts]
    touched = model.take()
    for node in nodes:
        node.start(touched)
    attacker, victim = place.pods["10.32.3.1"], place.pods["10.32.1.3"]
    try:
        run("ip", "-n", attacker, "addr", "add", "192.0.2.11/32", "dev", "lo")
        assert heard(victim, partial(call, attacker, "10.32.3.1")) == 0
        assert heard(victim, partial(call, attacker, "192.0.2.11")) == 0
        assert heard(victim, partial(call, place.hosts["n1"], "192.0.2.11")) > 0
    finally:
        run("ip", "-n", attacker, "addr", "del", "192.0.2.11/32", "dev", "lo")
        for node in nodes:
            node.close()


def call(namespace: str, source: str) -> None:
    """Send the victim of the test above a datagram."""

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(b"forged", ("10.32.1.3", 4242))

    inside(f"/run/netns/{namespace}", work)


def heard(namespace: str, work: Callable[[], None]) -> int:
    """How many datagrams for port 4242 arrive in a namespace while and shortly after something is done."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 4242))
        sock.settimeout(0.5)
        return sock

    with inside(f"/run/netns/{namespace}", listen) as sock:
        work()
        with contextlib.suppress(TimeoutError):
            return len(sock.recv(100))
    return 0
