"""The changes that both benchmarks of network policy make, one at a time, and what Weave Net 2.8 takes for each."""

import argparse
from collections.abc import Callable

from bench import npc_objects
from bench.npc_objects import NODE
from npc.model import Model

# Milliseconds, NPC spec §1.4: a pod while there are policies, a policy added.
_POD_OF_28, _POLICY_OF_28 = 5.4, 32.0

Step = tuple[str, Callable[[int], None], float]


def steps(model: Model, wanted: argparse.Namespace) -> tuple[Step, ...]:
    """Each kind of change: its name, what makes the one of a number, milliseconds of 2.8."""
    namespaces, pods = wanted.namespaces, wanted.pods

    def relabel(number: int) -> None:
        node = NODE if number % pods < wanted.local else "node-1"
        model.apply("Pod", npc_objects.pod(number % pods, namespaces, node, app=f"app-{number % 7}"))

    def join(number: int) -> None:
        model.apply("Pod", npc_objects.pod(pods + number, namespaces, NODE))

    def leave(number: int) -> None:
        gone = npc_objects.pod(pods + number, namespaces, NODE)["metadata"]
        model.delete("Pod", gone["name"], gone["namespace"])

    def repolicy(number: int) -> None:
        number %= wanted.policies
        model.apply("NetworkPolicy", npc_objects.policy(number, namespaces, number // namespaces + 1))

    return (
        ("pod relabelled", relabel, _POD_OF_28),
        ("pod of ours starts", join, _POD_OF_28),
        ("pod of ours ends", leave, _POD_OF_28),
        ("policy changed", repolicy, _POLICY_OF_28),
    )
