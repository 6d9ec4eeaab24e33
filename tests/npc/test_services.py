"""Services as kube-proxy makes them, with its rules in nftables and in iptables: policy sees who is called behind them.

A service's address is translated before routing; what comes back to the one who called himself is masqueraded.
"""

from collections.abc import Iterator

import pytest

from lab.net import run
from npc.base import Options
from npc.model import Model
from npc.plan import Hook
from tests.host.iptables import NATIVE, works
from tests.npc.cases import CASES, Cluster, policy
from tests.npc.nodes_kernel import Node
from tests.npc.populated import populated
from tests.npc.site import Probe, Site

SERVICE = "10.96.0.10"
SERVER, FRIEND, STRANGER = "10.32.1.3", "10.32.1.1", "10.32.3.1"
CLIENT = "203.0.113.9"
NODE_PORT = 30080

_NFT = f"""
table ip proxy {{
    chain services {{
        ip daddr {SERVICE} tcp dport 80 dnat to {SERVER}:5432
        fib daddr type local tcp dport {NODE_PORT} dnat to {SERVER}:5432
    }}
    chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain output {{ type nat hook output priority -100; jump services; }}
    chain postrouting {{ type nat hook postrouting priority srcnat; ip saddr {SERVER} ip daddr {SERVER} masquerade; }}
}}
"""
_TO = ("-j", "DNAT", "--to", f"{SERVER}:5432")
_IPTABLES = [
    ["-N", "SERVICES"],
    ["-A", "SERVICES", "-d", SERVICE, "-p", "tcp", "--dport", "80", *_TO],
    ["-A", "SERVICES", "-m", "addrtype", "--dst-type", "LOCAL", "-p", "tcp", "--dport", str(NODE_PORT), *_TO],
    ["-A", "PREROUTING", "-j", "SERVICES"],
    ["-A", "OUTPUT", "-j", "SERVICES"],
    ["-A", "POSTROUTING", "-s", SERVER, "-d", SERVER, "-j", "MASQUERADE"],
]


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def place(request: pytest.FixtureRequest) -> Iterator[Site]:
    with populated() as made:
        host = made.hosts["n1"]
        if request.param == "nftables":
            run("ip", "netns", "exec", host, "nft", "-f", "-", stdin=_NFT)
        else:
            works(host, NATIVE)
            for words in _IPTABLES:
                run("ip", "netns", "exec", host, NATIVE, "-w", "5", "-t", "nat", *words)
        run("ip", "-n", host, "link", "set", made.ports[SERVER], "type", "bridge_slave", "hairpin", "on")
        yield made


@pytest.mark.parametrize("hook", [Hook.FORWARD, Hook.POSTROUTING])
def test_policy_is_about_who_is_behind_a_service(place: Site, hook: Hook) -> None:
    case = next(case for case in CASES if case["name"] == "default-deny-ingress")
    model = Model()
    cluster = Cluster(case, model)
    cluster.apply("NetworkPolicy", policy("front", {"matchLabels": {"app": "front"}}))
    block = {"from": [{"ipBlock": {"cidr": f"{CLIENT}/32"}}], "ports": [{"port": 5432}]}
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [block]}
    cluster.apply("NetworkPolicy", {"metadata": {"name": "client", "namespace": "shop"}, "spec": spec})
    node = Node(place, "n1", model, Options(hook=hook))
    node.start(model.take())
    rows = [
        (FRIEND, SERVICE, 80, True),
        (STRANGER, SERVICE, 80, False),
        # By the service to himself: it is his own address that comes back.
        (SERVER, SERVICE, 80, True),
        # The node, as the kubelet does; and as a client of the service.
        ("192.0.2.11", SERVER, 5432, True),
        ("192.0.2.11", SERVICE, 80, True),
        # A client outside comes by a port of the node, untranslated (externalTrafficPolicy Local).
        (CLIENT, "192.0.2.11", NODE_PORT, True),
        ("203.0.113.8", "192.0.2.11", NODE_PORT, False),
    ]
    try:
        probes = [Probe(place.namespace_of(here), here, there, "TCP", port) for here, there, port, _ in rows]
        wanted = [allowed for *_, allowed in rows]
        found = place.reached(probes, wanted)
        assert [row for row, was in zip(rows, found, strict=True) if row[-1] != was] == []
    finally:
        node.close()
