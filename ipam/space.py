"""Which addresses of our part of the ring are free, in use, or withheld because others claim them.

Free, used and withheld addresses together are exactly what the ring says is ours: also after a part was lost.
Source: IPAM spec §9, cures D1, D3 and D13 of §21.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from ipam.ranges import Range, RangeSet, largest_aligned


class Space:
    """Our addresses, as numbers."""

    def __init__(self) -> None:
        self._free = RangeSet()
        self._withheld = RangeSet()
        self._used: list[int] = []

    @property
    def free(self) -> RangeSet:
        return self._free

    @property
    def withheld(self) -> RangeSet:
        """Free, but not to be given out."""
        return self._withheld

    @property
    def used(self) -> Sequence[int]:
        """In order."""
        return self._used

    def used_in(self, bounds: Range) -> Sequence[int]:
        return self._used[bisect_left(self._used, bounds.start) : bisect_left(self._used, bounds.end)]

    def allocate(self, hosts: Range) -> int | None:
        """The lowest free address in a range, in use from now on."""
        number = self._free.lowest(hosts)
        if number is not None:
            self._take(number)
        return number

    def claim(self, number: int, *, withheld: bool = False) -> bool:
        """Use this address; False where it is not free. With `withheld`, also what is withheld may be had."""
        if number in self._free:
            self._take(number)
            return True
        if withheld and number in self._withheld:
            self._withheld.discard(Range(number, number + 1))
            insort(self._used, number)
            return True
        return False

    def settle(self, number: int) -> None:
        """What was withheld is free, if it was."""
        if number in self._withheld:
            self._withheld.discard(Range(number, number + 1))
            self._free.add(Range(number, number + 1))

    def release(self, number: int, withheld: Iterable[Range] = ()) -> None:
        """An address is free again, or withheld where it is disputed; one that is not in use is left alone."""
        at = bisect_left(self._used, number)
        if at == len(self._used) or self._used[at] != number:
            return
        del self._used[at]
        disputed = any(part.holds(number) for part in withheld)
        (self._withheld if disputed else self._free).add(Range(number, number + 1))

    def spare(self, wanted: Range, beside: Sequence[Range] = ()) -> Range | None:
        """What we can spare of a range: an aligned block, at most half of what is free there.

        Of equal ones rather one that touches what is `beside`, else the last one.
        """
        starts, ends = {part.start for part in beside}, {part.end for part in beside}

        def joins(block: Range) -> bool:
            return block.start in ends or block.end in starts

        best = Range(wanted.start, wanted.start)
        for run in self._free.within(wanted):
            if run.size >= best.size:
                block = largest_aligned(run)
                if block.size > best.size or (block.size == best.size and joins(block) >= joins(best)):
                    best = block
        if not best.size:
            return None
        if best.size > self._free.count(wanted) // 2:
            middle = best.start + best.size // 2
            lower, upper = Range(best.start, middle), Range(middle, best.end)
            best = lower if lower.size and joins(lower) and not joins(upper) else upper
        return best

    def donate(self, given: Range) -> None:
        """It is no longer ours."""
        self._free.discard(given)

    def update(self, ours: Iterable[Range], withheld: Iterable[Range] = ()) -> list[int]:
        """Follow the ring: what is ours, and what of it is withheld. Returns used addresses that are no longer ours."""
        owned = RangeSet(ours)
        gone = [number for number in self._used if number not in owned]
        self._used = [number for number in self._used if number in owned]
        idle = owned.minus(Range(number, number + 1) for number in self._used)
        self._withheld = RangeSet(withheld).both(idle)
        self._free = idle.minus(self._withheld)
        return gone

    def _take(self, number: int) -> None:
        self._free.discard(Range(number, number + 1))
        insort(self._used, number)
