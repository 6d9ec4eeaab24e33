"""The table of cases against what judges: the evaluator, and the plan that the kernel gets."""

from typing import Any

import pytest

from npc.model import Model
from npc.verdict import judge
from tests.npc.cases import CASES, Cluster

each_case = pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])


@each_case
def test_the_evaluator(case: dict[str, Any]) -> None:
    cluster = Cluster(case, Model())
    for probes in cluster.steps(case):
        for probe in probes:
            verdict = judge(cluster.model, cluster.connection(probe))
            assert verdict.allowed == (probe["expect"] == "allow"), probe
