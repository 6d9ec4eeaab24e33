"""What a real API server sent, replayed: objects as they come, with all that they carry."""

import json
from ipaddress import ip_address
from typing import Any

from npc.model import Model
from npc.objects import TRIM
from npc.plan import Protocol
from npc.planner import Planner
from npc.verdict import Connection, judge
from tests.vectors import ROOT


def recorded(name: str) -> dict[str, Any]:
    (path,) = (ROOT / "kube-api").glob(f"*-{name}.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def listed(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = recorded(name)["response"]["body"]["items"]
    return found


def test_a_recorded_life_of_pods_trimmed_and_whole() -> None:
    whole, trimmed = Model(), Model()
    planner = Planner(trimmed, "n2")
    policy = recorded("np-create")["response"]["body"]
    policy["spec"]["podSelector"] = {"matchLabels": {"app": "x"}}
    for kind, documents in (
        ("Node", listed("nodes-list")),
        ("Namespace", listed("ns-list")),
        ("NetworkPolicy", [policy]),
    ):
        for document in documents:
            whole.apply(kind, document)
            trimmed.apply(kind, TRIM[kind](document))
    isolated = []
    for _, event in recorded("pods-from-rv")["lines"]:
        if event["type"] == "BOOKMARK":
            continue
        metadata = event["object"]["metadata"]
        for model in (whole, trimmed):
            if event["type"] == "DELETED":
                model.delete("Pod", metadata["name"], metadata["namespace"], metadata["uid"])
            else:
                cut = TRIM["Pod"] if model is trimmed else dict
                model.apply("Pod", cut(event["object"]))
        assert whole.pods == trimmed.pods and whole.policies == trimmed.policies and whole.nodes == trimmed.nodes
        planner.update(trimmed.take())
        fresh = Planner(whole, "n2")
        fresh.update(whole.everything())
        assert planner.plan == fresh.plan
        isolated.append(len(planner.plan.maps["in4"].chains))
    assert max(isolated) > 0 and isolated[-1] == 0


def test_a_recorded_policy_lets_pass_what_it_says() -> None:
    model = Model()
    policy = recorded("np-create")["response"]["body"]
    policy["spec"]["podSelector"] = {}
    model.apply("NetworkPolicy", policy)
    for pod in listed("pods-list-running"):
        model.apply("Pod", pod)
    (first, *_) = (pod for pod in model.pods.values() if model.addresses(pod.key))
    target = model.addresses(first.key)[0]
    sources = [("10.2.0.1", True), ("10.1.0.1", False)]
    for port, protocol in ((80, Protocol.TCP), (1500, Protocol.UDP)):
        for source, allowed in sources:
            assert judge(model, Connection(ip_address(source).packed, target, protocol, port)).allowed == allowed
    assert not judge(model, Connection(ip_address("10.2.0.1").packed, target, Protocol.UDP, 80)).allowed
