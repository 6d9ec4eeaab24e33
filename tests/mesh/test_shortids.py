"""Short ids: the reference's transitions, and the rules of §9 against a plain table of claims."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.names import PeerName, format_peer_name, parse_peer_name
from mesh.shortids import SHORT_IDS, ShortIds
from tests.mesh.peers import named
from tests.vectors import vectors


@vectors("mesh", "shortid.json")
def test_transitions(vector: dict[str, Any]) -> None:
    ids = ShortIds()
    ours = parse_peer_name(vector["ourself"])
    mine: int | None = None
    for step in vector["steps"]:
        name, before = parse_peer_name(step["name"]), ids.changed
        if step["op"] == "add":
            ids.add(step["shortid"], name)
            mine = step["shortid"] if name == ours else mine
        else:
            ids.remove(step["shortid"], name)
        owner = ids.owner(step["shortid"])
        assert ("" if owner is None else format_peer_name(owner)) == step["owner_after"]
        assert named(ids.others(step["shortid"])) == sorted(step["others_after"])
        assert (ids.changed > before) == step["invalidate"]
        assert (mine is not None and ids.owner(mine) != ours) == step["reassign_ours"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=40))
def test_the_lowest_name_owns_an_id(claims: list[tuple[int, int]]) -> None:
    """A claim that stands is withdrawn when it comes again."""
    ids, standing = ShortIds(), set[tuple[int, int]]()
    meant: dict[int, int] = {}
    for short_id, name in claims:
        before = ids.changed
        if (short_id, name) in standing:
            standing.remove((short_id, name))
            ids.remove(short_id, PeerName(name))
        else:
            standing.add((short_id, name))
            ids.add(short_id, PeerName(name))
        claimants = sorted(claimant for claimed, claimant in standing if claimed == short_id)
        assert ids.owner(short_id) == (claimants[0] if claimants else None)
        assert ids.others(short_id) == claimants[1:]
        # Whoever sends by an id must be told when it means somebody else than it last did.
        if claimants and meant.get(short_id, claimants[0]) != claimants[0]:
            assert ids.changed > before
        if claimants:
            meant[short_id] = claimants[0]


def test_a_chosen_id_is_free_and_spread() -> None:
    ids, rng = ShortIds(), Random(4)
    for short_id in range(0, SHORT_IDS, 2):
        ids.add(short_id, PeerName(short_id + 1))
    chosen = [ids.choose(rng) for _ in range(500)]
    assert all(short_id is not None and short_id % 2 for short_id in chosen)
    assert len(set(chosen)) > 400


@pytest.mark.parametrize("free", [[], [77], [0, 4095]])
def test_the_last_free_ids_are_found(free: list[int]) -> None:
    ids = ShortIds()
    for short_id in range(SHORT_IDS):
        ids.add(short_id, PeerName(short_id + 1))
    assert ids.choose(Random(1)) is None
    for short_id in free:
        ids.remove(short_id, PeerName(short_id + 1))
    chosen = {ids.choose(Random(seed)) for seed in range(20)}
    assert chosen == set(free) if free else chosen == {None}


def test_ids_beyond_twelve_bits_are_kept_but_never_chosen() -> None:
    ids = ShortIds()
    ids.add(60000, PeerName(7))
    assert ids.owner(60000) == 7
    assert all((ids.choose(Random(seed)) or 0) < SHORT_IDS for seed in range(50))
