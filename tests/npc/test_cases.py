"""The table of cases against what judges: the evaluator, and the plan that the kernel gets."""

from typing import Any

import pytest

from npc.model import Model
from npc.verdict import judge
from tests.npc.cases import CASES, Cluster
from tests.npc.nodes import Nodes

each_case = pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])


@each_case
def test_the_evaluator(case: dict[str, Any]) -> None:
    cluster = Cluster(case, Model())
    for probes in cluster.steps(case):
        for probe in probes:
            verdict = judge(cluster.model, cluster.connection(probe))
            assert verdict.allowed == (probe["expect"] == "allow"), probe


@each_case
def test_the_plans_of_both_nodes(case: dict[str, Any]) -> None:
    cluster = Cluster(case, Model())
    nodes = Nodes(cluster.model, "n1", "n2")
    for probes in cluster.steps(case):
        nodes.update()
        for probe in probes:
            assert nodes.passes(cluster.connection(probe)) == (probe["expect"] == "allow"), probe
        for name, planner in nodes.planners.items():
            assert nodes.kernels[name] == planner.plan
