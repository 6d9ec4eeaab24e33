"""Agreement on the first ring: the reference's runs step by step, and safety whatever is lost or comes late."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.paxos import Node, Paxos
from mesh.names import PeerName, format_peer_name, parse_peer_name
from tests.ipam.values import document, knowledge

CASES = [pytest.param(case, id=case["name"]) for case in document("paxos.json")["cases"]]
NODES = {name: Node(parse_peer_name(f"0{i}:00:00:00:00:00"), 100 + i) for i, name in enumerate("ABC", 1)}


@pytest.mark.parametrize("case", CASES)
def test_runs(case: dict[str, Any]) -> None:
    made = {name: Paxos(node) for name, node in NODES.items()}
    for each in made.values():
        each.quorum = case["quorum"]
    for step in case["steps"]:
        node = made[step["node"]]
        if step["op"] == "propose":
            node.propose()
        elif step["op"] == "update":
            assert node.learn(made[step["from"]].knows) == step["returned"]
        else:
            assert node.think() == step["returned"]
        assert dict(node.knows) == knowledge(step["knows_after"])
        consensus = node.consensus()
        assert (consensus and [format_peer_name(name) for name in sorted(consensus)]) == step["consensus"]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(3, 5),
    st.lists(st.tuples(st.sampled_from("pdr"), st.integers(0, 4), st.integers(0, 4)), max_size=60),
)
def test_never_two_values(count: int, steps: list[tuple[str, int, int]]) -> None:
    """Proposals, deliveries of what a node knew at some time, and restarts under a new number."""
    quorum = count // 2 + 1
    nodes = [Paxos(Node(PeerName(i), i)) for i in range(1, count + 1)]
    uid = count
    for node in nodes:
        node.quorum = quorum
    said = [dict(node.knows) for node in nodes]
    decided = set()
    for what, one, other in steps:
        node = nodes[one % count]
        if what == "p":
            node.propose()
        elif what == "d":
            if node.learn(said[other % len(said)]):
                node.think()
        elif one % count == count - 1:
            # A restart of the one node that may: promises of a minority may be forgotten.
            uid += 1
            nodes[-1] = node = Paxos(Node(PeerName(count), uid))
            node.quorum = quorum
        said.append(dict(node.knows))
        if node.consensus() is not None:
            decided.add(node.consensus())
    assert len(decided) <= 1
