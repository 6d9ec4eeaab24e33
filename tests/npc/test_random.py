"""Random clusters and small changes: the plan that followed is the plan made anew, and it does what the model says."""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npc.base import Options
from npc.plan import Hook
from npc.planner import Planner
from npc.verdict import Connection, judge
from tests.npc.clusters import PAIRS, World, changes, connections
from tests.npc.nodes import Nodes

RANGES = (ip_network("10.32.0.0/16"), ip_network("fd00::/64"))
histories = st.lists(st.lists(changes, min_size=1, max_size=4), min_size=2, max_size=8)
options = st.builds(Options, st.sampled_from((Hook.FORWARD, Hook.POSTROUTING)), closed=st.sampled_from(((), RANGES)))
probes = st.lists(connections(), min_size=5, max_size=15).map(lambda drawn: [*PAIRS, *drawn])


@pytest.mark.timeout(600)
@settings(max_examples=40, deadline=None)
@given(histories, probes, st.lists(st.integers(0, 99), max_size=10), options)
def test_a_plan_that_followed_is_the_plan_made_anew(
    history: list[list[tuple[Any, ...]]], probes: list[Connection], order: list[int], options: Options
) -> None:
    world = World()
    world.populate()
    nodes = Nodes(world.model, "n1", "n2", options=options)
    nodes.update()
    for batch in history:
        passed = {probe for probe in probes if nodes.passes(probe)}
        for change in batch:
            world.change(change)
        made = nodes.update()
        model = world.again(order)
        touched = model.take()
        for name, planner in nodes.planners.items():
            fresh = Planner(model, name, options)
            fresh.update(touched)
            assert planner.plan == fresh.plan
            assert nodes.kernels[name] == planner.plan
        for probe in probes:
            verdict = judge(world.model, probe, closed=options.closed)
            assert nodes.passes(probe) == verdict.allowed
            assert judge(model, probe, closed=options.closed) == verdict
            if probe in passed and not nodes.passes(probe):
                assert verdict.closed or any(
                    {probe.source, probe.destination} & change.review for change in made.values()
                )
