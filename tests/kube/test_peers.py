"""Which nodes are dialled, and where; what the router is told when that changes."""

import pytest

from kube.peers import Targets, address_of, peer_addresses, trim_node
from kube.resource import Object
from tests.kube.nodes import node

IN, EX = "InternalIP", "ExternalIP"


@pytest.mark.parametrize(
    ("addresses", "dialled"),
    [
        ([(IN, "10.0.0.1"), ("Hostname", "n"), (EX, "192.0.2.1")], "10.0.0.1"),
        ([(IN, "10.0.0.1"), (IN, "10.0.0.2")], "10.0.0.2"),  # the last one, as 2.8
        ([(EX, "192.0.2.1"), ("Hostname", "n")], "192.0.2.1"),
        ([(IN, "10.0.0.1"), (IN, "fd00::1")], "10.0.0.1"),
        ([(IN, "fd00::1"), (EX, "192.0.2.1")], "192.0.2.1"),
        ([(IN, "fd00::1"), (EX, "2001:db8::1")], "[fd00::1]"),  # 2.8 loses this node
        ([(EX, "2001:db8::1")], "[2001:db8::1]"),
        ([("Hostname", "10.0.0.1"), (IN, "n.example")], ""),
        ([], ""),
    ],
)
def test_where_a_node_is_dialled(addresses: list[tuple[str, str]], dialled: str) -> None:
    assert address_of(node("n", *addresses)) == dialled
    assert address_of(trim_node(node("n", *addresses))) == dialled


def test_we_are_not_dialled() -> None:
    nodes = [
        node("by-name", (IN, "10.0.0.1")),
        node("by-address", (IN, "10.0.0.2")),
        node("by-another-of-its-addresses", (IN, "10.0.0.3"), (EX, "192.0.2.3")),
        node("other", (IN, "10.0.0.4")),
        node("same-address", (IN, "10.0.0.4")),
        node("windows", (IN, "10.0.0.5"), windows=True),
        node("nowhere"),
        {"metadata": {"name": "bare"}},
    ]
    assert peer_addresses(nodes, "by-name", {"10.0.0.2", "192.0.2.3", "127.0.0.1"}) == ["10.0.0.4"]


def test_heartbeats_change_nothing_that_is_kept() -> None:
    before = node("n", (IN, "10.0.0.1"), ready="True")
    after = node("n", (IN, "10.0.0.1"), ready="True")
    after["status"]["conditions"][0]["lastHeartbeatTime"] = "later"
    after["status"]["images"] = [{"names": ["x"]}]
    assert trim_node(before) == trim_node(after)


def cluster(*numbers: int) -> list[Object]:
    return [node(f"n{number}", (IN, f"10.0.0.{number}")) for number in numbers]


def test_what_the_router_is_told() -> None:
    """Those who come are added; when one goes, the whole list replaces what there was."""
    targets = Targets("n1", ())
    assert targets.update(cluster(1, 2), dropping=True) == (["10.0.0.2"], False)
    assert targets.update(cluster(1, 2), dropping=True) is None
    assert targets.update(cluster(1, 2, 3, 4), dropping=True) == (["10.0.0.3", "10.0.0.4"], False)
    assert targets.update(cluster(1, 3, 4), dropping=False) is None
    assert targets.update(cluster(1, 3, 4, 5), dropping=False) == (["10.0.0.5"], False)
    assert targets.update(cluster(1, 3, 4, 5), dropping=True) == (["10.0.0.3", "10.0.0.4", "10.0.0.5"], True)
    assert targets.update(cluster(1), dropping=True) == ([], True)


def test_a_list_without_us_drops_nobody() -> None:
    targets = Targets("n1", ())
    targets.update(cluster(1, 2, 3), dropping=True)
    assert targets.update([], dropping=True) is None
    assert targets.update(cluster(4), dropping=True) == (["10.0.0.4"], False)
    assert targets.update(cluster(1, 4), dropping=True) == (["10.0.0.4"], True)
