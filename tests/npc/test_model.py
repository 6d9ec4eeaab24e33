"""The model: whose an address is, what the node itself says of its pods, lists after a gap, and objects cut to size."""

import json
from ipaddress import ip_address
from typing import Any

import pytest

from npc.model import Model, Touched
from npc.objects import TRIM, pod
from npc.plan import Protocol
from npc.policy import NamedPort

ADDRESS = ip_address("10.32.0.5").packed
OTHER = ip_address("10.32.0.6").packed


def a_pod(name: str, address: str = "10.32.0.5", uid: str = "", created: str = "", **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": name, "uid": uid or name, "creationTimestamp": created or name}
    status = {"phase": spec.pop("phase", "Running"), "podIP": address}
    return {"metadata": metadata, "spec": {"nodeName": "n1", **spec}, "status": status}


def owner(model: Model, address: bytes = ADDRESS) -> str | None:
    found = model.owner(address)
    return None if found is None else found.name


def test_of_two_pods_with_an_address_the_younger_has_it_until_it_goes() -> None:
    model = Model()
    model.apply("Pod", a_pod("b"))
    model.apply("Pod", a_pod("a"))
    assert owner(model) == "b"
    assert model.addresses(("shop", "a")) == ()
    model.take()
    model.delete("Pod", "b", "shop")
    assert owner(model) == "a"
    assert model.take().pods == {("shop", "a"), ("shop", "b")}


def test_what_the_node_admitted_goes_before_age_and_status() -> None:
    model = Model()
    model.apply("Pod", a_pod("b"))
    model.apply("Pod", a_pod("a", ""))
    assert model.admit("shop", "a", "a", [ADDRESS])
    assert owner(model) == "a"
    assert model.release("shop", "a", "a")
    assert owner(model) == "b"
    model.apply("Pod", a_pod("a", "10.32.0.6"))
    assert owner(model, OTHER) is None


def test_a_pod_that_is_not_known_is_not_admitted() -> None:
    model = Model()
    assert not model.admit("shop", "a", "", [ADDRESS])
    model.apply("Pod", a_pod("a"))
    assert not model.admit("shop", "a", "another", [OTHER])
    assert owner(model) == "a"


def test_a_pod_of_the_same_name_begins_anew_and_late_words_are_ignored() -> None:
    model = Model()
    model.apply("Pod", a_pod("a", uid="old", created="1"))
    model.admit("shop", "a", "old", [OTHER])
    model.apply("Pod", a_pod("a", uid="new", created="2"))
    assert (owner(model), owner(model, OTHER)) == ("a", None)
    model.apply("Pod", a_pod("a", "10.32.0.6", uid="old", created="1"))
    model.delete("Pod", "a", "shop", uid="old")
    assert (owner(model), owner(model, OTHER)) == ("a", None)
    model.delete("Pod", "a", "shop", uid="new")
    assert owner(model) is None


@pytest.mark.parametrize("change", [{"phase": "Succeeded"}, {"phase": "Failed"}, {"hostNetwork": True}])
def test_finished_pods_and_those_on_the_hosts_network_have_no_address(change: dict[str, Any]) -> None:
    model = Model()
    model.apply("Pod", a_pod("a", **change))
    assert owner(model) is None
    model.admit("shop", "a", "", [ADDRESS])
    assert owner(model) is None


def test_the_same_object_again_touches_nothing() -> None:
    model = Model()
    policy = {"metadata": {"namespace": "shop", "name": "p"}, "spec": {"podSelector": {}}}
    space = {"metadata": {"name": "shop", "labels": {"a": "b"}}}
    node = {"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "Hostname", "address": "n1"}]}}
    listed = {"Pod": a_pod("a"), "NetworkPolicy": policy, "Namespace": space, "Node": node}
    for kind, document in listed.items():
        model.apply(kind, document)
    assert model.take() == model.everything()
    for kind, document in listed.items():
        model.apply(kind, document)
    assert model.take() == Touched()


def test_a_refused_policy_isolates_until_it_changes() -> None:
    model = Model()
    policy: dict[str, Any] = {"metadata": {"namespace": "shop", "name": "p"}, "spec": {"ingress": [{}]}}
    model.apply("NetworkPolicy", policy)
    model.take()
    model.refuse(("shop", "p"), "too much")
    found = model.policies["shop", "p"]
    assert (found.error, list(found.rules.values())) == ("too much", [()])
    assert model.take().policies == {("shop", "p")}
    policy["spec"]["podSelector"] = {"matchLabels": {"a": "b"}}
    model.apply("NetworkPolicy", policy)
    assert not model.policies["shop", "p"].error


def test_named_ports_are_those_of_all_containers_and_the_first_counts() -> None:
    http = [{"name": "http", "containerPort": number} for number in (80, 8080)]
    side = [{"ports": [http[1], {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"containerPort": 7}]}]
    document = a_pod("a", containers=[{"ports": http[:1]}], initContainers=side)
    for found in (pod(document), pod(TRIM["Pod"](document))):
        assert found.ports == ((NamedPort("http", Protocol.TCP), 80), (NamedPort("dns", Protocol.UDP), 53))


def test_what_is_trimmed_says_the_same_and_is_small() -> None:
    document = a_pod("a", containers=[{"image": "x" * 500, "command": ["y"] * 100}], volumes=["z"] * 100)
    document["metadata"]["managedFields"] = ["m"] * 500
    trimmed = TRIM["Pod"](document)
    assert pod(trimmed) == pod(document)
    assert len(json.dumps(trimmed)) < 250
