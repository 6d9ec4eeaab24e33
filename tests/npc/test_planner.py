"""What a change of the cluster costs in the table: that, and nothing else. And isolation before a pod runs."""

from ipaddress import ip_address
from typing import Any

import pytest

from npc import naming
from npc.base import Options
from npc.model import Model
from npc.plan import Change, Hook, Protocol
from npc.verdict import Connection
from tests.npc.cases import Cluster
from tests.npc.nodes import Nodes

Document = dict[str, Any]


def policy(name: str, *peers: Document, target: Document | None = None, ports: Any = ()) -> Document:
    rule = {"from": list(peers), "ports": list(ports)}
    spec = {"podSelector": target or {"matchLabels": {"app": "db"}}, "ingress": [rule] if peers else []}
    return {"metadata": {"namespace": "shop", "name": name}, "spec": spec}


def app(name: str) -> Document:
    return {"podSelector": {"matchLabels": {"app": name}}}


class Shop:
    """The table's base cluster with some policies, as node n1 has it."""

    def __init__(self, *policies: Document, options: Options | None = None) -> None:
        self.model = Model()
        self.cluster = Cluster({"fixture": "base", "policies": policies}, self.model)
        self.nodes = Nodes(self.model, "n1", options=options)
        self.start = self.change()

    def change(self) -> Change:
        return self.nodes.update()["n1"]

    def pod(self, name: str, *addresses: str, app: str = "db", node: str = "n1") -> Change:
        pod = {"namespace": "shop", "name": name, "labels": {"app": app}, "ips": addresses, "node": node}
        self.cluster.apply("Pod", {**pod, "hostNetwork": False, "phase": "Running", "ports": []})
        return self.change()

    def passes(self, source: str, destination: str, port: int = 80) -> bool:
        sender, receiver = (ip_address(each).packed for each in (source, destination))
        return self.nodes.passes(Connection(sender, receiver, Protocol.TCP, port))


def test_a_pod_that_joins_a_class_costs_one_map_element_a_family() -> None:
    shop = Shop(policy("p", app("front")), policy("q", app("cart")))
    change = shop.pod("db-2", "10.32.1.9", "fd00:32:1::9")
    assert {name: len(led) for name, led in change.mapped.items()} == {"in4": 1, "in6": 1}
    assert {name: len(added) for name, added in change.added.items()} == {"self4": 1, "self6": 1}
    assert change.size() == 4


def test_a_peer_elsewhere_costs_one_element_and_a_stranger_nothing() -> None:
    shop = Shop(policy("p", app("front")))
    change = shop.pod("front-2", "10.32.1.9", app="front", node="n2")
    assert [len(added) for added in change.added.values()] == [1] and change.size() == 1
    assert not shop.pod("other", "10.32.1.10", app="other", node="n2")


def test_a_policy_whose_rules_change_changes_its_chain_alone() -> None:
    shop = Shop(policy("p", app("front")), policy("q", app("front"), ports=[{"port": 80}]))
    shop.model.apply("NetworkPolicy", policy("q", app("front"), ports=[{"port": 81}]))
    change = shop.change()
    # A rule for each family.
    assert len(change.rules) == 1 and change.size() == 2
    assert change.review == {ip_address(each).packed for each in ("10.32.1.3", "fd00:32:1::3")}


def test_policies_that_isolate_nobody_here_leave_no_trace() -> None:
    away = policy("p", app("front"), target={"matchLabels": {"app": "cart"}})
    shop = Shop(away)
    assert shop.nodes.kernels["n1"] == Shop().nodes.kernels["n1"]
    shop.pod("cart-2", "10.32.1.9", app="cart")
    assert len(shop.nodes.kernels["n1"].chains) == 4
    shop.cluster.delete("Pod", "shop", "cart-2")
    shop.change()
    assert shop.nodes.kernels["n1"] == Shop().nodes.kernels["n1"]


def test_one_selector_is_one_set_however_it_is_written() -> None:
    every = {"namespaceSelector": {"matchLabels": {"team": "retail"}}}
    shop = Shop(policy("p", every, {**every, "podSelector": {}}), policy("q", every))
    assert sum(name.startswith("p4-") for name in shop.nodes.kernels["n1"].sets) == 1
    assert shop.passes("10.32.1.1", "10.32.1.3") and not shop.passes("10.32.2.1", "10.32.1.3")


def test_a_pod_is_isolated_when_it_is_admitted_before_its_status_has_an_address() -> None:
    shop = Shop(policy("p", app("front")))
    shop.pod("db-2")
    assert shop.passes("10.32.2.1", "10.32.1.9")
    shop.model.admit("shop", "db-2", "", [ip_address("10.32.1.9").packed])
    change = shop.change()
    assert change.review == {ip_address("10.32.1.9").packed}
    assert shop.passes("10.32.1.1", "10.32.1.9") and not shop.passes("10.32.2.1", "10.32.1.9")
    # The status says the same later: nothing to do.
    assert not shop.pod("db-2", "10.32.1.9")
    shop.model.release("shop", "db-2", "")
    shop.change()
    assert shop.passes("10.32.2.1", "10.32.1.9")


def test_a_bad_policy_isolates_and_the_others_go_on() -> None:
    bad = policy("bad", {"ipBlock": {"cidr": "nonsense"}}, target={"matchLabels": {"app": "front"}})
    shop = Shop(bad, policy("p", app("front")))
    assert not shop.passes("10.32.1.3", "10.32.1.1")
    assert shop.passes("10.32.1.1", "10.32.1.3") and not shop.passes("10.32.2.1", "10.32.1.3")
    assert shop.model.policies["shop", "bad"].error.endswith("'nonsense' is no network")


def test_changes_that_undo_each_other_are_none() -> None:
    shop = Shop(policy("p", app("front")))
    shop.model.delete("NetworkPolicy", "p", "shop")
    shop.model.apply("NetworkPolicy", policy("p", app("front")))
    change = shop.change()
    assert not change
    shop.model.delete("Pod", "db", "shop")
    assert shop.change().unmapped.keys() == {"in4", "in6"}


def test_names_that_would_be_equal_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds two selectors of one hash gains nothing by it."""

    class Same:
        def __init__(self, text: bytes, digest_size: int) -> None:
            """The worst hash."""

        def hexdigest(self) -> str:
            return "0" * 16

    monkeypatch.setattr(naming, "blake2b", Same)
    shop = Shop(policy("p", app("front")), policy("q", app("cart"), target={"matchLabels": {"app": "front"}}))
    assert {name for name in shop.nodes.kernels["n1"].sets if name.startswith("p4-")} == {
        "p4-0000000000000000",
        "p4-0000000000000000-2",
    }
    assert shop.passes("10.32.1.1", "10.32.1.3") and not shop.passes("10.32.1.2", "10.32.1.3")
    shop.model.delete("NetworkPolicy", "p", "shop")
    shop.change()
    assert shop.passes("10.32.1.2", "10.32.1.1") and not shop.passes("10.32.1.3", "10.32.1.1")


def test_multicast_is_judged_where_it_is_not_allowed() -> None:
    alone = {"podSelector": {}, "policyTypes": ["Egress"]}
    deny = {"metadata": {"namespace": "shop", "name": "p"}, "spec": alone}
    assert Shop(deny).passes("10.32.1.1", "224.0.0.251")
    assert not Shop(deny, options=Options(multicast=False)).passes("10.32.1.1", "224.0.0.251")


def test_the_chains_behind_services_of_ipvs_do_not_believe_sources() -> None:
    chains = Shop(options=Options(Hook.POSTROUTING)).nodes.kernels["n1"].chains
    assert {(name, chain.base.hook.value, chain.base.priority) for name, chain in chains.items() if chain.base} == {
        ("egress", "postrouting", 94),
        ("ingress", "postrouting", 95),
        ("forged", "prerouting", -300),
    }
