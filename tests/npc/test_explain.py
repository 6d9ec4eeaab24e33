"""Explanations: the words for the cases, and that they never say other than the verdict."""

from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npc.explain import Explanation, explain, explained, text
from npc.model import Model
from npc.proposal import Proposal
from npc.question import End, Question, UnknownError
from npc.verdict import Connection, judge
from tests.npc.cases import CASES, Cluster
from tests.npc.clusters import World, changes, connections


def ingress(name: str, target: dict[str, Any], *rules: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"podSelector": target, "policyTypes": ["Ingress"], "ingress": list(rules)},
    }


def app(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app": name}}


def shop(*policies: dict[str, Any]) -> Model:
    """The table's base cluster with these policies."""
    model = Model()
    Cluster({"fixture": "base", "policies": policies}, model)
    return model


def words(model: Model, source: str, destination: str, port: str, *, proposals: bool = False) -> list[str]:
    return text(explain(model, source, destination, port, proposals=proposals)[0].document())


def test_an_allowed_connection_names_the_rule() -> None:
    rule = {"from": [{"podSelector": app("cart")}], "ports": [{"port": 80}, {"port": 5432}]}
    model = shop(ingress("deny", {}), ingress("p", app("db"), {"from": [{"podSelector": app("ops")}]}, rule))
    assert words(model, "shop/cart", "shop/db", "5432") == [
        "allow: shop/cart (10.32.1.2) -> shop/db (10.32.1.3) 5432/TCP",
        "  egress of shop/cart (10.32.1.2): not isolated, no policy asks",
        "  ingress to shop/db (10.32.1.3): isolated by shop/deny, shop/p",
        "    allowed by shop/p#1: peer pods app=cart of namespace shop, port 5432/TCP",
    ]


def test_a_denial_has_a_reason_for_every_rule() -> None:
    outside = {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.32.2.0/24"]}}
    retail = {"namespaceSelector": {"matchLabels": {"team": "retail"}}}
    model = shop(
        ingress("deny", {}),
        ingress(
            "p",
            app("db"),
            {"from": [{"podSelector": app("front")}, retail, outside]},
            {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "ui"}}}]},
            {"ports": [{"port": 80}, {"port": 443, "endPort": 445}, {"port": "http"}]},
        ),
        ingress("bad", app("db"), {"ports": [{"protocol": "GRE"}]}),
    )
    assert words(model, "blog/cart", "shop/db", "sql")[2:] == [
        "  ingress to shop/db (10.32.1.3): isolated by shop/bad, shop/deny, shop/p",
        "    shop/bad: cannot be used and allows nothing: "
        "spec.ingress[0].ports[0].protocol: 'GRE' is none of TCP, UDP, SCTP",
        "    shop/deny: allows no ingress at all",
        "    shop/p#0: peer: namespace shop wanted, pod is in blog",
        "    shop/p#0: peer: namespace label team=retail wanted, namespace blog has team=media",
        "    shop/p#0: peer: 10.32.2.2 is in the exception 10.32.2.0/24 of 10.0.0.0/8",
        "    shop/p#1: peer: label tier=ui wanted, pod has tier=logic",
        "    shop/p#2: port: 5432/TCP not in 80/TCP, 443-445/TCP",
        "    shop/p#2: named port http is 8000/TCP on shop/db, not 5432/TCP",
    ]


@pytest.mark.parametrize(
    ("source", "destination", "exempt"),
    [
        ("shop/db", "shop/db", "a pod reaches itself"),
        ("node:n1", "shop/db", "a pod and its own node reach each other"),
        ("shop/db", "192.0.2.11", "a pod and its own node reach each other"),
        ("shop/front", "224.0.0.251", "multicast is allowed"),
    ],
)
def test_what_is_exempt(source: str, destination: str, exempt: str) -> None:
    model = shop(ingress("deny", {}))
    assert f"  exempt: {exempt}" in words(model, source, destination, "53/udp")


@pytest.mark.parametrize(
    ("source", "destination", "port", "error"),
    [
        ("shop/none", "shop/db", "80", "no pod shop/none is known"),
        ("shop/front", "node:n9", "80", "no node n9 with an address is known"),
        ("front", "shop/db", "80", "'front' is neither NAMESPACE/POD, an address, nor node:NAME"),
        ("shop/front", "shop/db", "80/gre", "'gre' is none of tcp, udp, sctp, icmp"),
        ("shop/front", "shop/db", "0", "0 is no port"),
        ("shop/front", "10.9.9.9", "http", "10.9.9.9 is no pod, so it has no port called 'http'"),
        ("10.9.9.9", "2001:db8::1", "80", "10.9.9.9 and 2001:db8::1 have no address of one family"),
        (
            "shop/front",
            "shop/db",
            "http/udp",
            "shop/db declares no port http/UDP; it declares sql/TCP, dns/UDP, ss7/SCTP, http/TCP",
        ),
    ],
)
def test_what_is_not_known(source: str, destination: str, port: str, error: str) -> None:
    with pytest.raises(UnknownError) as raised:
        explain(shop(), source, destination, port)
    assert str(raised.value) == error


def test_an_address_of_nobody_is_closed_on_demand() -> None:
    closed = (ip_network("10.32.0.0/12"),)
    (found,) = explain(shop(), "shop/cart", "10.32.9.9", "80", closed=closed)
    assert text(found.document())[:2] == [
        "deny: shop/cart (10.32.1.2) -> 10.32.9.9 80/TCP",
        "  closed: no pod and no node has the destination's address (--unknown=drop)",
    ]
    assert all(each.allowed for each in explain(shop(), "shop/cart", "blog/cart", "80", closed=closed))


def test_pods_on_the_hosts_network_and_finished_ones_are_noted() -> None:
    model = shop()
    for name, host, phase in (("proxy", True, "Running"), ("job", False, "Succeeded")):
        spec, status = {"nodeName": "n1", "hostNetwork": host}, {"phase": phase, "podIP": "192.0.2.11"}
        model.apply("Pod", {"metadata": {"namespace": "ops", "name": name}, "spec": spec, "status": status})
    proxy, job = (words(model, f"ops/{name}", "shop/db", "80") for name in ("proxy", "job"))
    assert proxy[-1] == "  note: ops/proxy is on the network of its node n1, and judged as the node"
    assert proxy[0].startswith("allow: node n1 (192.0.2.11) ->")
    assert job[-1] == "  note: ops/job has finished: no policy knows it any more"


def test_what_the_kernel_says_is_added_by_the_caller() -> None:
    (first, _) = explain(shop(), "shop/cart", "shop/db", "80")
    document = first.document() | {"programmed": "agrees", "flows": ["tcp established"], "drops": ["at 15:00"]}
    assert text(document)[-3:] == ["  on this node: agrees", "  flow: tcp established", "  dropped: at 15:00"]


def test_a_proposal_adds_the_port_where_only_that_is_missing() -> None:
    rule = {"from": [{"podSelector": app("cart")}], "ports": [{"port": 80}]}
    model = shop(ingress("deny", {}), ingress("p", app("db"), rule))
    assert words(model, "shop/cart", "shop/db", "5432", proposals=True)[-1] == (
        '    to allow it, add to spec.ingress[0].ports of shop/p: {"protocol": "TCP", "port": 5432}'
    )
    assert words(model, "blog/cart", "shop/db", "5432", proposals=True)[-1] == (
        '    to allow it, add to spec.ingress of shop/deny: {"from": [{"podSelector": {"matchLabels": {"app": "cart", '
        '"tier": "logic"}}, "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "blog"}}}], "ports": '
        '[{"protocol": "TCP", "port": 5432}]}'
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_explanations_of_the_cases(case: dict[str, Any]) -> None:
    cluster = Cluster(case, Model())
    for probes in cluster.steps(case):
        for probe in probes:
            found = ask(cluster.model, cluster.connection(probe))
            assert found.document()["verdict"] == probe["expect"]
            check(cluster.model, found)


@pytest.mark.timeout(600)
@settings(max_examples=60, deadline=None)
@given(st.lists(changes, min_size=3, max_size=20), st.lists(connections(), min_size=5, max_size=15))
def test_explanations_of_random_clusters(history: list[tuple[Any, ...]], probes: list[Connection]) -> None:
    world = World()
    world.populate()
    for change in history:
        world.change(change)
    for probe in probes:
        found = ask(world.model, probe)
        assert found.allowed == judge(world.model, probe).allowed
        check(world.model, found)
        check_proposals(world, found)


def ask(model: Model, connection: Connection) -> Explanation:
    """An explanation of a connection that is not named but given."""
    ends = [
        End(str(ip_address(each)), each, model.owner(each), model.node_of(each))
        for each in (connection.source, connection.destination)
    ]
    return explained(model, Question(ends[0], ends[1], connection, ()), proposals=True)


def check(model: Model, found: Explanation) -> None:
    """A side that denies has a reason for each rule of each policy; one that allows has the rule."""
    assert text(found.document())
    for each in (found.egress, found.ingress):
        side = each.side
        if side.allowed:
            assert not each.candidates and (side.match is None) == (not side.policies)
            continue
        rules = [max(1, len(policy.rules[side.direction])) for policy in side.policies]
        assert len(each.candidates) == sum(rules)
        assert all(candidate.reasons for candidate in each.candidates)


def check_proposals(world: World, found: Explanation) -> None:
    """With what is proposed for each side the connection is allowed, unless a side's policies are all bad."""
    proposals = [each.proposal for each in (found.egress, found.ingress) if not each.side.allowed]
    if found.allowed or None in proposals:
        return
    model = world.again([])
    for proposal in proposals:
        assert proposal is not None
        model.apply("NetworkPolicy", amended(world, proposal))
    assert judge(model, found.connection).allowed


def amended(world: World, proposal: Proposal) -> dict[str, Any]:
    """The policy with what is proposed, in the objects too: both sides may be about one policy."""
    namespace, _, name = proposal.policy.partition("/")
    key = ("NetworkPolicy", namespace, name)
    document = world.objects[key] = deepcopy(world.objects[key])
    rules = document["spec"].setdefault(proposal.section, [])
    if proposal.rule is None:
        rules.append(proposal.addition)
    else:
        rules[proposal.rule]["ports"].append(proposal.addition)
    return document
