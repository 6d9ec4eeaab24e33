"""Texts of addresses and what blocks of a range are aligned, against the reference's results; sets of ranges."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.ranges import Range, RangeSet, Subnet, largest_aligned
from ipam.seams import Cidr, IpamError
from ipam.wire import bounds_text
from tests.ipam.values import document, number, span

CASES = document("cidr.json")
# What allocates is of one family, and says so where addresses are asked for (test_service); as texts all are read.
PARSED = [pytest.param(case, id=case["in"] or "empty") for case in CASES["parse"] if ":" not in case["in"]]
OTHER_WORDS = {"0.0.0.0/0": "invalid subnet - it has no network prefix: 0.0.0.0/0"}


@pytest.mark.parametrize("case", PARSED)
def test_cidr_texts(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(IpamError) as raised:
            Cidr.parse(case["in"])
        assert str(raised.value) == case["error"]
    else:
        assert str(Cidr.parse(case["in"])) == case["out"]


@pytest.mark.parametrize("case", PARSED)
def test_subnet_texts(case: dict[str, Any]) -> None:
    error = OTHER_WORDS.get(case["in"], case.get("subnet_error"))
    if error:
        with pytest.raises(IpamError) as raised:
            Subnet.parse(case["in"])
        assert str(raised.value) == error
        return
    subnet = Subnet.parse(case["in"])
    assert str(subnet) == case["out"]
    assert subnet.size == case["size"]
    # The reference's addresses go around at the end of all.
    assert [number(text) for text in case["host_range"]] == [subnet.hosts.start, subnet.hosts.end]


@pytest.mark.parametrize("case", CASES["ranges"], ids=lambda c: f"{c['start']}-{c['end_exclusive']}")
def test_blocks(case: dict[str, Any]) -> None:
    bounds = Range(number(case["start"]), number(case["end_exclusive"]))
    assert largest_aligned(bounds) == span(case["biggest_cidr_range"])
    assert bounds_text(bounds) == case["as_cidr_string"]


def test_addresses_of_either_family() -> None:
    subnet = Subnet.parse("fd00:1::/64")
    assert str(subnet.address(subnet.hosts.start)) == "fd00:1::1"
    assert subnet.size == 1 << 64
    assert not subnet.overlaps(Subnet.parse("10.0.0.0/8"))
    with pytest.raises(IpamError, match="invalid CIDR address: fe80::1%eth0/64"):
        Cidr.parse("fe80::1%eth0/64")


RANGES = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: Range(*pair))


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=30), RANGES)
def test_a_set_of_ranges_is_a_set(changes: list[tuple[bool, Range]], bounds: Range) -> None:
    made, plain = RangeSet(), set[int]()
    for adds, each in changes:
        numbers = range(each.start, each.end)
        if adds:
            made.add(each)
            plain.update(numbers)
        else:
            made.discard(each)
            plain.difference_update(numbers)
        runs = list(made)
        assert all(one.end < other.start for one, other in pairwise(runs))
        assert {number for run in runs for number in range(run.start, run.end)} == plain
    inside = sorted(number for number in plain if bounds.holds(number))
    assert [number for run in made.within(bounds) for number in range(run.start, run.end)] == inside
    assert made.count(bounds) == len(inside)
    assert made.lowest(bounds) == (inside[0] if inside else None)
    assert all((number in made) == (number in plain) for number in range(41))
    assert made.size == len(plain)
    assert list(made.minus([bounds])) == list(RangeSet(run for run in _outside(made, bounds)))


def _outside(made: RangeSet, bounds: Range) -> list[Range]:
    if not bounds.size:
        return list(made)
    return [*made.within(Range(-1, bounds.start)), *made.within(Range(bounds.end, 100))]
