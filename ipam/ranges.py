"""Addresses as numbers: half-open ranges, sets of them, subnets, and the blocks that are aligned in them.

A number has no width: a subnet knows its family, and only texts and the wire (`ipam/wire.py`) ask for it.
Source: IPAM spec §3.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ipam.seams import Address, Cidr, IpamError

SMALLEST = 4


class Range(NamedTuple):
    """`start` up to but without `end`; empty where end is not larger."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return max(0, self.end - self.start)

    def clip(self, other: "Range") -> "Range":
        """What both hold."""
        return Range(max(self.start, other.start), min(self.end, other.end))

    def holds(self, number: int) -> bool:
        return self.start <= number < self.end


def largest_aligned(within: Range) -> Range:
    """The largest block of a power of two that is aligned to its own size; the reference's choice among equals."""
    start, size = within.start, within.size
    block = 1 << (size.bit_length() - 1)
    rest, offset = size % block, start % block
    if offset == 0:
        return Range(start, start + block)
    if block - offset <= rest:
        return Range(start + block - offset, start + 2 * block - offset)
    half = block // 2
    if half >= offset:
        return Range(start + half - offset, start + 2 * half - offset)
    return Range(start + block - offset, start + block - offset + half)


@dataclass(frozen=True, slots=True)
class Subnet:
    """A network of either family: a universe, or the part of one that somebody asks for."""

    first: Address
    prefix_len: int

    @classmethod
    def parse(cls, text: str) -> "Subnet":
        """`10.32.0.0/12`. Raises IpamError with the reference's texts."""
        cidr = Cidr.parse(text)
        made = cls(cidr.addr, cidr.prefix_len)
        if made.start % made.size:
            raise IpamError(f"invalid subnet - bits after network prefix are not all zero: {text}")
        if made.size < SMALLEST:
            raise IpamError(f"invalid subnet - smaller than minimum size {SMALLEST}: {text}")
        if made.prefix_len == 0:
            raise IpamError(f"invalid subnet - it has no network prefix: {text}")
        return made

    def __str__(self) -> str:
        return f"{self.first}/{self.prefix_len}"

    @property
    def start(self) -> int:
        return int(self.first)

    @property
    def size(self) -> int:
        return 1 << (self.first.max_prefixlen - self.prefix_len)

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def range(self) -> Range:
        return Range(self.start, self.end)

    @property
    def hosts(self) -> Range:
        """Without the network's first and last address, which are never given out unasked."""
        return Range(self.start + 1, self.end - 1)

    def address(self, number: int) -> Address:
        """A number as an address of this family."""
        return type(self.first)(number)

    def holds(self, address: Address) -> bool:
        return address.version == self.first.version and self.range.holds(int(address))

    def overlaps(self, other: "Subnet") -> bool:
        return self.first.version == other.first.version and self.range.clip(other.range).size > 0


class RangeSet:
    """A set of numbers as runs that neither touch nor overlap."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for each in ranges:
            self.add(each)

    def __iter__(self) -> Iterator[Range]:
        return map(Range, self._starts, self._ends)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(map(tuple, self))})"

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    @property
    def size(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def add(self, new: Range) -> None:
        """Also what touches it becomes one run."""
        if new.size == 0:
            return
        first = bisect_left(self._ends, new.start)
        last = bisect_right(self._starts, new.end)
        if first < last:
            new = Range(min(new.start, self._starts[first]), max(new.end, self._ends[last - 1]))
        self._starts[first:last] = [new.start]
        self._ends[first:last] = [new.end]

    def discard(self, gone: Range) -> None:
        """What is not in the set need not be."""
        if gone.size == 0:
            return
        first = bisect_right(self._ends, gone.start)
        last = bisect_left(self._starts, gone.end)
        if first >= last:
            return
        left = Range(self._starts[first], gone.start)
        right = Range(gone.end, self._ends[last - 1])
        kept = [run for run in (left, right) if run.size]
        self._starts[first:last] = [run.start for run in kept]
        self._ends[first:last] = [run.end for run in kept]

    def within(self, bounds: Range) -> Iterator[Range]:
        """The runs inside the bounds, clipped to them."""
        at = bisect_right(self._ends, bounds.start)
        while bounds.size and at < len(self._starts) and self._starts[at] < bounds.end:
            yield Range(self._starts[at], self._ends[at]).clip(bounds)
            at += 1

    def count(self, bounds: Range) -> int:
        return sum(run.size for run in self.within(bounds))

    def lowest(self, bounds: Range) -> int | None:
        """The lowest number inside the bounds."""
        for run in self.within(bounds):
            return run.start
        return None

    def minus(self, others: "Iterable[Range]") -> "RangeSet":
        """What is left without the others."""
        left = RangeSet()
        left._starts, left._ends = self._starts[:], self._ends[:]
        for each in others:
            left.discard(each)
        return left

    def both(self, others: "RangeSet") -> "RangeSet":
        """What is in either of the two as well."""
        return RangeSet(part for each in others for part in self.within(each))
