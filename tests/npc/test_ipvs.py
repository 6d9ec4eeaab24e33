"""Services as kube-proxy makes them in its IPVS mode: packets to them pass no FORWARD, so rules stand behind routing.

What is sent to a service is for this node itself at first (its address is on device kube-ipvs0), is given its new
destination there, and leaves as if this node had sent it: POSTROUTING is the first hook that sees who is called. Not
run where the kernel has no ip_vs; `script/test-guest tests/npc/test_ipvs.py` has one. Source: NPC spec §3.
"""

import contextlib
import errno
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
from pyroute2.ipvs import IPVS, IPVSDest, IPVSService
from pyroute2.netlink.exceptions import NetlinkError

from host.netns import inside
from lab.net import run
from npc.base import Options
from npc.bridge import IPVS_DEVICE
from npc.model import Model
from npc.node import best_hook
from npc.plan import Hook
from tests.npc.cases import CASES, Cluster, policy
from tests.npc.nodes_kernel import Node
from tests.npc.populated import populated
from tests.npc.site import BRIDGE, Probe, Site
from tests.npc.test_cases_kernel import heard

SERVICE, NODE_PORT = "10.96.0.10", 30080
# All of this node, which translates for its own pods.
SERVER, FRIEND, NEIGHBOUR = "10.32.1.3", "10.32.1.1", "10.32.3.1"
NODE, GATEWAY = "192.0.2.11", "10.32.0.1"
CLIENT, STRANGER = "203.0.113.9", "203.0.113.8"
# What kube-proxy masquerades: who is led back to himself.
_LOOP = f"""
table ip proxy {{
    chain postrouting {{ type nat hook postrouting priority srcnat; ip saddr {SERVER} ip daddr {SERVER} masquerade; }}
}}
"""
_SERVICES = (
    (SERVICE, socket.IPPROTO_TCP, 80, 5432),
    (SERVICE, socket.IPPROTO_UDP, 80, 4242),
    (NODE, socket.IPPROTO_TCP, NODE_PORT, 5432),
)
_MASQUERADE = 0


def balance() -> None:
    """In the present namespace: its services, with one server behind each. Skips the test without ip_vs."""
    subprocess.run(["modprobe", "-q", "-a", "ip_vs", "ip_vs_rr"], capture_output=True, check=False)
    try:
        with IPVS() as kernel:
            for address, protocol, port, behind in _SERVICES:
                service = IPVSService(addr=address, port=port, protocol=int(protocol), sched_name="rr")
                kernel.service("add", service=service)
                kernel.dest("add", service=service, dest=IPVSDest(addr=SERVER, port=behind, fwd_method=_MASQUERADE))
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        pytest.skip("this kernel has no ip_vs")


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    with populated() as made:
        host = made.hosts["n1"]
        made.on_host("n1", balance)
        run("ip", "-n", host, "link", "add", IPVS_DEVICE, "type", "dummy")
        run("ip", "-n", host, "addr", "add", f"{SERVICE}/32", "dev", IPVS_DEVICE)
        # Connection tracking as kube-proxy wants it; and the kernel's own distrust of forged sources is switched off.
        sysctls = ("net.ipv4.vs.conntrack=1", f"net.ipv4.conf.{BRIDGE}.accept_local=1")
        run("ip", "netns", "exec", host, "sysctl", "-qw", *sysctls)
        run("ip", "netns", "exec", host, "nft", "-f", "-", stdin=_LOOP)
        run("ip", "-n", host, "link", "set", made.ports[SERVER], "type", "bridge_slave", "hairpin", "on")
        yield made


@pytest.fixture
def node(place: Site) -> Iterator[Node]:
    """The first node: its server is isolated, and lets in friends, and one client outside."""
    case = next(case for case in CASES if case["name"] == "default-deny-ingress")
    model = Model()
    cluster = Cluster(case, model)
    cluster.apply("NetworkPolicy", policy("front", {"matchLabels": {"app": "front"}}))
    block = {"from": [{"ipBlock": {"cidr": f"{CLIENT}/32"}}], "ports": [{"port": 5432}]}
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [block]}
    cluster.apply("NetworkPolicy", {"metadata": {"name": "client", "namespace": "shop"}, "spec": spec})
    hook: Hook = place.on_host("n1", lambda: best_hook(""))
    assert hook is Hook.POSTROUTING
    made = Node(place, "n1", model, Options(hook=hook))
    made.start(model.take())
    try:
        yield made
    finally:
        made.close()


def arrived(place: Site, rows: list[tuple[str, str, int, bool]]) -> Counter[str]:
    """Whose connections the server has after an attempt of each row (from, to, port, whether it is allowed)."""
    probes = [Probe(place.namespace_of(here), here, there, "TCP", port) for here, there, port, _ in rows]
    listen = partial(socket.create_server, (SERVER, 5432), backlog=100)
    with inside(f"/run/netns/{place.pods[SERVER]}", listen) as server:
        place.reached(probes, [allowed for *_, allowed in rows])
        server.settimeout(0.5)
        found: Counter[str] = Counter()
        with contextlib.suppress(TimeoutError):
            while True:
                connection, (source, _port) = server.accept()
                connection.close()
                found[source] += 1
    return found


def sources(rows: list[tuple[str, str, int, bool]]) -> Counter[str]:
    """From where the server sees them come."""
    return Counter(GATEWAY if here == SERVER else here for here, *_ in rows)


ROWS = [
    (FRIEND, SERVICE, 80, True),
    (NEIGHBOUR, SERVICE, 80, False),
    (FRIEND, SERVER, 5432, True),
    (NEIGHBOUR, SERVER, 5432, False),
    # By the service to himself; and the node, as the kubelet and as a client of the service.
    (SERVER, SERVICE, 80, True),
    (NODE, SERVER, 5432, True),
    (NODE, SERVICE, 80, True),
    # Clients outside come by a port of the node, untranslated (externalTrafficPolicy Local).
    (CLIENT, NODE, NODE_PORT, True),
    (STRANGER, NODE, NODE_PORT, False),
]


def test_policy_is_about_who_is_behind_a_service(place: Site, node: Node) -> None:
    assert arrived(place, ROWS) == sources([row for row in ROWS if row[-1]])


def test_without_the_table_everybody_is_served(place: Site) -> None:
    """Or the test above shows nothing."""
    assert arrived(place, [(here, there, port, True) for here, there, port, _ in ROWS]) == sources(ROWS)


@pytest.mark.parametrize(("target", "port"), [(SERVICE, 80), (SERVER, 4242)])
def test_a_pod_that_forges_the_address_of_its_node(place: Site, node: Node, target: str, port: int) -> None:
    host, attacker, victim = place.hosts["n1"], place.pods[NEIGHBOUR], place.pods[SERVER]
    run("ip", "-n", attacker, "addr", "add", f"{NODE}/32", "dev", "lo")
    try:
        assert heard(victim, partial(call, attacker, NEIGHBOUR, target, port)) == 0
        assert heard(victim, partial(call, attacker, NODE, target, port)) == 0
        assert heard(victim, partial(call, host, NODE, target, port)) > 0
        run("ip", "netns", "exec", host, "nft", "delete chain inet weave_npc forged")
        assert heard(victim, partial(call, attacker, NODE, target, port)) > 0, "he does not come so far in any case"
    finally:
        run("ip", "-n", attacker, "addr", "del", f"{NODE}/32", "dev", "lo")


def call(namespace: str, source: str, target: str, port: int) -> None:
    """Send a datagram."""

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(b"forged", (target, port))

    inside(f"/run/netns/{namespace}", work)
