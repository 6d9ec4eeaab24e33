"""Policies as they are meant: defaults, and bad ones, which isolate and allow nothing."""

from typing import Any

import pytest

from npc.plan import Direction, PortRange, Protocol
from npc.policy import NamedPort, parse
from npc.selector import EVERYTHING, Index, Selector
from npc.selector import parse as parse_selector

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS


def policy(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "shop", "name": "p"}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        ({}, {INGRESS}),
        ({"egress": []}, {INGRESS}),
        ({"egress": [{}]}, {INGRESS, EGRESS}),
        ({"policyTypes": [], "egress": [{}]}, {INGRESS, EGRESS}),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {EGRESS}),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, {INGRESS}),
    ],
)
def test_directions(spec: dict[str, Any], directions: set[Direction]) -> None:
    assert set(parse(policy(podSelector={}, **spec)).rules) == directions


def test_ports() -> None:
    ports = [{"port": 80}, {"protocol": "UDP"}, {"port": "http"}, {"port": "dns", "protocol": "UDP"}]
    (rule,) = parse(policy(ingress=[{"ports": [*ports, {"port": 81, "endPort": 90}]}])).rules[INGRESS]
    assert rule.ports == (PortRange(Protocol.TCP, 80, 90), PortRange(Protocol.UDP, 0, 65535))
    assert rule.named == (NamedPort("dns", Protocol.UDP), NamedPort("http", Protocol.TCP))


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"from": [{}]}, "spec.ingress[0].from[0]: neither ipBlock, podSelector nor namespaceSelector"),
        ({"from": [{"ipBlock": {"cidr": "10/8"}}]}, "spec.ingress[0].from[0].ipBlock.cidr: '10/8' is no network"),
        (
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/8"]}}]},
            "spec.ingress[0].from[0].ipBlock.except: fd00::/8 is of another family than 10.0.0.0/8",
        ),
        (
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]},
            "spec.ingress[0].from[0]: ipBlock beside a selector",
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}]},
            "spec.ingress[0].from[0].podSelector.matchExpressions: operator 'Gt' is none of In, NotIn, Exists, "
            "DoesNotExist",
        ),
        ({"ports": [{"endPort": 90}]}, "spec.ingress[0].ports[0]: endPort 90 without port"),
        (
            {"ports": [{"port": "http", "endPort": 90}]},
            "spec.ingress[0].ports[0]: endPort 90 beside the named port http",
        ),
        ({"ports": [{"port": 90, "endPort": 80}]}, "spec.ingress[0].ports[0]: 90 to 80 is no range of ports"),
        ({"ports": 7}, "not as the API describes a NetworkPolicy: 'int' object is not iterable"),
    ],
)
def test_a_bad_rule_leaves_isolation_alone(rule: dict[str, Any], error: str) -> None:
    found = parse(policy(podSelector={"matchLabels": {"app": "db"}}, ingress=[rule, {}]))
    assert found.error == error
    assert found.rules == {INGRESS: ()}
    assert str(found.target) == "app=db"


def test_a_bad_target_is_every_pod_and_bad_types_are_both() -> None:
    found = parse(
        policy(podSelector={"matchExpressions": [{"key": "a", "operator": "Near"}]}, policyTypes=["Sideways"])
    )
    assert found.target == EVERYTHING
    assert found.rules == {INGRESS: (), EGRESS: ()}


def selector(**document: Any) -> Selector:
    return parse_selector(document, "it")


def test_selectors_that_mean_the_same_are_equal() -> None:
    expression = {"key": "app", "operator": "In", "values": ["db"]}
    assert selector(matchLabels={"app": "db"}) == selector(matchExpressions=[expression, expression])
    several = [{"key": "app", "operator": "In", "values": values} for values in (["b", "a"], ["a", "b", "a"])]
    assert selector(matchExpressions=several[:1]) == selector(matchExpressions=several[1:])
    assert selector(matchLabels={"a": "b,c=d"}) != selector(matchLabels={"a": "b", "c": "d"})


@pytest.mark.parametrize(
    ("operator", "values", "matching"),
    [
        ("In", ["x", ""], ["x", ""]),
        ("NotIn", ["x"], ["", "y", None]),
        ("Exists", [], ["x", "", "y"]),
        ("DoesNotExist", [], [None]),
    ],
)
def test_operators(operator: str, values: list[str], matching: list[str | None]) -> None:
    found = selector(matchExpressions=[{"key": "app", "operator": operator, "values": values}])
    labelled = {value: {} if value is None else {"app": value} for value in ("x", "", "y", None)}
    assert [value for value, labels in labelled.items() if found.matches(labels)] == [
        value for value in labelled if value in matching
    ]


def test_an_index_finds_what_matches_and_forgets() -> None:
    index: Index[str] = Index()
    for name, wanted in (("db", {"app": "db"}), ("both", {"app": "db", "tier": "x"}), ("all", {})):
        index.add("shop", selector(matchLabels=wanted), name)
    assert set(index.matching("shop", {"app": "db", "other": "z"})) == {"db", "all"}
    assert set(index.matching("blog", {"app": "db"})) == set()
    index.discard("shop", selector(matchLabels={"app": "db"}), "db")
    assert set(index.matching("shop", {"app": "db", "tier": "x"})) == {"both", "all"}
