"""When the node's condition is set, and to what."""

from random import Random

from kube.client import Client
from kube.config import Config
from kube.node_status import DOWN, UP, Condition, NodeStatus, patch
from kube.peers import CONDITION, condition_of, trim_node
from kube.resource import Object
from tests.kube.api_server import ApiServer
from tests.kube.nodes import node


def saying(status: str, reason: str) -> Object:
    said = node("n")
    said["status"]["conditions"].append({"type": CONDITION, "status": status, "reason": reason})
    return said


def test_up_at_once_down_after_a_minute_and_up_again() -> None:
    status = NodeStatus()
    assert status.due(0.0, None) is None
    said = []
    for second in range(0, 400, 5):
        status.health(second, "" if second < 100 or second >= 300 else "no peer answers")
        condition = status.due(second, None)
        if condition is not None:
            said.append((second, condition.unavailable, condition.text))
            status.said(second, condition)
    assert said == [
        (0, False, "Weave pod has set this"),
        (160, True, "no peer answers"),
        (300, False, "Weave pod has set this"),
    ]


def test_short_trouble_is_not_told() -> None:
    status = NodeStatus()
    status.health(0.0, "")
    status.said(0.0, Condition(False, ""))
    for second in range(1, 600):
        status.health(second, "trouble" if second % 50 else "")
        condition = status.due(second, saying("False", UP))
        assert condition is None or not condition.unavailable


def test_what_another_wrote_is_written_again_though_not_all_the_time() -> None:
    status = NodeStatus()
    status.health(0.0, "")
    condition = status.due(0.0, saying("False", UP))
    assert condition is not None and condition.reason == UP
    status.said(0.0, condition)
    assert status.due(90.0, saying("False", UP)) is None
    assert status.due(30.0, saying("True", "NoRouteCreated")) is None
    assert status.due(90.0, saying("True", "NoRouteCreated")) == condition
    assert status.due(90.0, node("n")) == condition


def test_trouble_from_the_start_is_told() -> None:
    status = NodeStatus()
    rng = Random(1)
    for second in range(60):
        status.health(second, f"trouble {rng.random()}")
        assert status.due(second, None) is None
    status.health(60.0, "trouble")
    condition = status.due(60.0, None)
    assert condition is not None and condition.reason == DOWN and condition.text == "trouble"


async def test_the_condition_that_is_patched() -> None:
    """Only ours is changed; field by field as 2.8 sets it."""
    async with ApiServer() as server, Client(Config(server.url)) as client:
        server.objects.put("nodes", node("n", ready="True"))
        await patch(client, "n", Condition(False, "Weave pod has set this"), lambda: 1764000000.0)
        asked = server.requests[-1]
        assert (asked.verb, asked.resource, asked.name) == ("patch", "nodes/status", "n")
        assert asked.headers["Content-Type"] == "application/strategic-merge-patch+json"
        assert asked.body == {
            "status": {
                "conditions": [
                    {
                        "type": "NetworkUnavailable",
                        "status": "False",
                        "reason": "WeaveIsUp",
                        "message": "Weave pod has set this",
                        "lastHeartbeatTime": "2025-11-24T16:00:00Z",
                        "lastTransitionTime": "2025-11-24T16:00:00Z",
                    }
                ]
            }
        }
        held = trim_node(server.objects.get("nodes", "n"))
        assert condition_of(held, "Ready") is not None
        assert Condition(False, "").holds(held) and not Condition(True, "").holds(held)
