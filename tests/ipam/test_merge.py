"""Merging rings: the reference's results where they are sound, and every cure where they are not.

`tests/ipam/reference.py` holds the reference's rules and must give every one of its results. Ours must give the same
wherever no address in use is taken, no two owners stand side by side, and nothing is refused without need.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.merge import Merge, RangeDiffersError, SeedsDifferError, merge
from ipam.ranges import Range, RangeSet, Subnet
from ipam.ring import Copy, Entry, Ring, RingError
from mesh.names import PeerName, parse_peer_name
from tests.ipam import reference
from tests.ipam.values import copy, document, number, ring

NAMED = document("ring_merge.json")["cases"]
RANDOM = document("ring_merge_random.json")["cases"]
US = PeerName(1)
CURED = {
    # D2: two owners at one version. The one that uses addresses stands, else the lower name, with a higher version.
    "same_version_mine_no_alloc_equal_free",
    "same_version_mine_with_alloc",
    # D3: a loss of addresses in use is a dispute of ours, not an error.
    "newer_theirs_mine_with_alloc",
    "rmpeer_took_over_live_peer_with_alloc",
    "split_mine_middle_with_alloc",
    # D4: what is idle may be taken anywhere, what is used nowhere.
    "split_mine_last_range_no_alloc",
    "split_mine_single_entry_no_alloc",
    "split_mine_single_entry_newer_own_entry",
    "split_mine_two_tokens_first_is_mine",
    "split_mine_wrapping_range_head",
    # D5: how much is free is a hint.
    "incoming_free_too_big",
    "merge_result_too_much_free_other_peer",
}


def used_of(case: dict[str, Any]) -> Callable[[Range], list[int]]:
    addresses = sorted(map(number, case["my_allocated_addresses"]))
    return lambda bounds: [address for address in addresses if bounds.holds(address)]


def our_merge(case: dict[str, Any]) -> Merge:
    return merge(ring(case["mine"]), copy(case["incoming"]), parse_peer_name(case["mine"]["self"]), used_of(case))


def reference_result(case: dict[str, Any]) -> tuple[Ring, bool, str]:
    mine, ourself = ring(case["mine"]), parse_peer_name(case["mine"]["self"])
    used, ours = used_of(case), RangeSet(mine.ranges_of(ourself))
    addresses = [a for a in used(mine.universe.range) if a in ours]

    def busy(bounds: Range) -> bool:
        owned = ours.count(bounds)
        return owned < bounds.size or any(map(bounds.holds, addresses))

    try:
        after, updated = reference.merge(mine, copy(case["incoming"]), ourself, busy)
    except RingError as error:
        return ring(case["mine_after"]), False, str(error)
    return after, updated, ""


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in NAMED])
def test_the_reference_is_understood(case: dict[str, Any]) -> None:
    assert reference_result(case) == (ring(case["mine_after"]), case["updated"], case["error"])


def test_the_reference_is_understood_at_random() -> None:
    for case in RANDOM:
        after, updated, error = reference_result(case)
        assert (updated, error) == (case["updated"], case["error"])
        if not error:
            assert after == ring(case["mine_after"])


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in NAMED if c["name"] not in CURED])
def test_named_cases(case: dict[str, Any]) -> None:
    if case["error"]:
        with pytest.raises(RingError) as raised:
            our_merge(case)
        assert str(raised.value) == case["error"]
        return
    result = our_merge(case)
    after = ring(case["mine_after"])
    assert not result.disputes
    assert (result.ring, result.updated) == (after, case["updated"])


def cured(name: str) -> Merge:
    return our_merge(next(case for case in NAMED if case["name"] == name))


def shown(result: Merge) -> list[tuple[int, int, int, int]]:
    """Last byte of the token, first byte of the peer, version, free."""
    return [(e.token & 255, e.peer >> 40, e.version, e.free) for e in result.ring.entries]


def test_of_two_owners_one_remains() -> None:
    assert shown(cured("same_version_mine_no_alloc_equal_free")) == [(0, 1, 4, 256)]
    assert shown(cured("same_version_mine_with_alloc")) == [(0, 1, 4, 255)]


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("newer_theirs_mine_with_alloc", [5]),
        ("rmpeer_took_over_live_peer_with_alloc", [5]),
        ("split_mine_middle_with_alloc", [70]),
        ("split_mine_two_tokens_first_is_mine", [70]),
        ("split_mine_single_entry_newer_own_entry", [200]),
        ("split_mine_wrapping_range_head", [20]),
    ],
)
def test_a_loss_of_used_addresses_is_a_dispute(name: str, used: list[int]) -> None:
    result = cured(name)
    case = next(case for case in NAMED if case["name"] == name)
    (dispute,) = result.disputes
    assert [address & 255 for address in dispute.used] == used
    assert all(any(part.holds(address) for part in dispute.lost) for address in dispute.used)
    assert dispute.claims
    # Our own part is as it was: with versions that other peers ignore.
    assert dispute.ours in ring(case["mine"]).entries
    assert dispute.ours._replace(free=0) in [entry._replace(free=0) for entry in result.ring.entries]


@pytest.mark.parametrize("name", ["split_mine_last_range_no_alloc", "split_mine_single_entry_no_alloc"])
def test_idle_addresses_may_be_taken_anywhere(name: str) -> None:
    result = cured(name)
    case = next(case for case in NAMED if case["name"] == name)
    assert result.updated
    assert not result.disputes
    assert result.ring == ring(case["incoming"]).clamped()


def test_hints_cost_nothing() -> None:
    assert shown(cured("merge_result_too_much_free_other_peer")) == [(0, 2, 5, 128), (128, 3, 0, 128)]
    assert cured("incoming_free_too_big").updated


def test_foreign_rings_are_told_apart() -> None:
    with pytest.raises(SeedsDifferError):
        cured("different_seeds")
    with pytest.raises(RangeDiffersError):
        cured("different_range")


# --- any two rings ---

UNIVERSE = Subnet.parse("10.0.0.0/28")


@st.composite
def rings(draw: st.DrawFn) -> Ring:
    low = st.integers(1, 3)
    tokens = sorted(draw(st.sets(st.integers(0, 15), min_size=1, max_size=6)))
    entries = tuple(
        Entry(UNIVERSE.start + token, PeerName(draw(low)), draw(st.integers(0, 3)), draw(st.integers(0, 16)))
        for token in tokens
    )
    return Ring(UNIVERSE, entries).clamped()


def copied(made: Ring, holder: int) -> Copy:
    return Copy(made.universe.range, PeerName(holder), made.entries, made.seeds)


def owned(made: Ring) -> set[int]:
    return {number for part in made.ranges_of(US) for number in range(part.start, part.end)}


def in_order(addresses: Iterable[int]) -> Callable[[Range], list[int]]:
    ordered = sorted(addresses)
    return lambda bounds: [address for address in ordered if bounds.holds(address)]


@settings(max_examples=1500, deadline=None)
@given(rings(), rings(), st.sets(st.integers(0, 15)), st.integers(1, 3))
def test_any_merge(ours: Ring, theirs: Ring, wanted: set[int], holder: int) -> None:
    used = owned(ours) & {UNIVERSE.start + each for each in wanted}
    result = merge(ours, copied(theirs, holder), US, in_order(used))
    result.ring.check()
    assert sum(part.size for _, part in result.ring.divided()) == UNIVERSE.size
    # What is in use is never lost; what is disputed is ours, and says so.
    assert used <= owned(result.ring)
    for dispute in result.disputes:
        lost = {number for part in dispute.lost for number in range(part.start, part.end)}
        assert lost <= owned(ours) & owned(result.ring)
        assert set(dispute.used) == lost & used != set()
    # Versions only rise, by others' hands only with others' entries.
    before = {entry.token: entry for entry in ours.entries}
    for entry in result.ring.entries:
        if entry.token in before:
            assert entry.version >= before[entry.token].version
    again = merge(result.ring, copied(theirs, holder), US, in_order(used))
    assert not again.updated
    assert {d.ours.token for d in again.disputes} == {d.ours.token for d in result.disputes}
    itself = merge(result.ring, copied(result.ring, 1), US, in_order(used))
    assert (itself.ring, itself.updated, itself.disputes) == (result.ring, False, ())


@settings(max_examples=1500, deadline=None)
@given(rings(), rings(), st.sets(st.integers(0, 15)))
def test_a_sound_merge_of_the_reference_is_ours(ours: Ring, theirs: Ring, wanted: set[int]) -> None:
    used = owned(ours) & {UNIVERSE.start + each for each in wanted}
    free = owned(ours) - used

    def busy(bounds: Range) -> bool:
        return any(number not in free for number in range(bounds.start, bounds.end))

    try:
        after, updated = reference.merge(ours, copied(theirs, 9), US, busy)
    except RingError:
        return
    mine = {entry.token: entry for entry in ours.entries}
    ties = [e for e in theirs.entries if (m := mine.get(e.token)) and m.version == e.version and m.peer != e.peer]
    if ties or not used <= owned(after):
        return
    result = merge(ours, copied(theirs, 9), US, in_order(used))
    assert (result.ring, result.updated, result.disputes) == (after.clamped(), updated, ())


@settings(max_examples=800, deadline=None)
@given(rings(), rings())
def test_bystanders_agree_whatever_the_order(one: Ring, other: Ring) -> None:
    def joined(first: Ring, second: Ring) -> list[tuple[int, PeerName, int]]:
        result = merge(first, copied(second, 8), PeerName(9), in_order([]))
        return [(entry.token, entry.peer, entry.version) for entry in result.ring.entries]

    assert joined(one, other) == joined(other, one)
