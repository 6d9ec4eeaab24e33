"""The ring: which peer owns which part of the universe, as tokens with owners and versions.

An entry owns what lies from its token up to the next one's, the last one also what lies before the first. Tokens are
never removed, and only an owner (or a take-over) changes an entry, each time with a higher version: so two rings can be
merged (`ipam/merge.py`). `free` is the owner's last word on how much it has to spare: a hint. Rings are values: every
change makes a new one. Source: IPAM spec §4, §8.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ipam.ranges import Range, Subnet
from mesh.names import PeerName

_LARGEST_VERSION = (1 << 32) - 1
_TRANSFER = 100


class RingError(Exception):
    """A ring that cannot be: the reference's text."""


class Entry(NamedTuple):
    """`version` is 32 bits on the wire and stays at the largest."""

    token: int
    peer: PeerName
    version: int
    free: int

    def changed(self, *, peer: PeerName | None = None, free: int | None = None, by: int = 1) -> "Entry":
        """The entry after a change by whoever may."""
        return Entry(
            self.token,
            self.peer if peer is None else peer,
            min(self.version + by, _LARGEST_VERSION),
            self.free if free is None else free,
        )


@dataclass(frozen=True, slots=True)
class Ring:
    """Entries in the order of their tokens. `seeds`: among whom it was divided first, which tells rings apart."""

    universe: Subnet
    entries: tuple[Entry, ...] = ()
    seeds: tuple[PeerName, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    # --- looking ---

    def distance(self, start: int, end: int) -> int:
        """Addresses from one token up to another, around the end of the universe if need be."""
        return end - start if end > start else self.universe.end - start + end - self.universe.start

    def _next(self, index: int) -> int:
        return self.entries[(index + 1) % len(self.entries)].token

    def length(self, index: int) -> int:
        """How many addresses the entry at `index` owns."""
        return self.distance(self.entries[index].token, self._next(index))

    def spans(self, index: int) -> tuple[Range, ...]:
        """What the entry at `index` owns: one range, or two where it goes around."""
        token, following = self.entries[index].token, self._next(index)
        if following > token:
            return (Range(token, following),)
        head, tail = Range(self.universe.start, following), Range(token, self.universe.end)
        return (head, tail) if head.size else (tail,)

    def divided(self) -> Iterator[tuple[Entry, Range]]:
        """Every range with its entry, in the order of the tokens."""
        for index, entry in enumerate(self.entries):
            for span in self.spans(index):
                yield entry, span

    def ranges_of(self, peer: PeerName) -> list[Range]:
        """What a peer owns, in order."""
        return sorted(span for entry, span in self.divided() if entry.peer == peer)

    def owner(self, number: int) -> PeerName:
        """Whose an address of the universe is. The ring is not empty."""
        return self.entries[self._covering(number)].peer

    def owners(self) -> set[PeerName]:
        return {entry.peer for entry in self.entries}

    def check(self, *, hints: bool = True) -> None:
        """Raises RingError where it is none; without `hints`, entries may say that too much is free."""
        for before, entry in zip(self.entries, self.entries[1:], strict=False):
            if entry.token < before.token:
                raise RingError("Ring not sorted")
            if entry.token == before.token:
                raise RingError("Token appears twice in ring")
        if self.entries and not (
            self.universe.start <= self.entries[0].token and self.entries[-1].token < self.universe.end
        ):
            raise RingError("Token is out of range")
        for index, entry in enumerate(self.entries):
            if hints and entry.free > self.length(index):
                text = self.universe.address
                raise RingError(
                    f"Entry {text(entry.token)}-{text(self._next(index))} reporting too much free space:"
                    f" {entry.free} > {self.length(index)}"
                )

    def candidates(self, wanted: Range, ourself: PeerName) -> dict[PeerName, int]:
        """Who may have addresses to spare in a range, and how many at most."""
        found: dict[PeerName, int] = {}
        for entry, span in self.divided():
            spare = min(entry.free, span.clip(wanted).size)
            if spare and entry.peer != ourself:
                found[entry.peer] = found.get(entry.peer, 0) + spare
        return found

    def _covering(self, number: int) -> int:
        index = bisect_right(self.entries, number, key=_token) - 1
        return index if index >= 0 else len(self.entries) - 1

    # --- changing ---

    def seeded(self, peers: Iterable[PeerName]) -> "Ring":
        """The first ring: the universe in halves, again and again, among the peers in the order of their names."""
        seeds = tuple(sorted(set(peers)))
        entries: list[Entry] = []

        def split(start: int, end: int, among: Sequence[PeerName]) -> None:
            if start == end:
                return
            if end - start == 1 or len(among) == 1:
                entries.append(Entry(start, among[0], 0, end - start))
                return
            middle = start + (end - start) // 2
            split(start, middle, among[: len(among) // 2])
            split(middle, end, among[len(among) // 2 :])

        split(self.universe.start, self.universe.end, seeds)
        return replace(self, entries=tuple(entries), seeds=seeds)

    def granted(self, given: Range, peer: PeerName, ourself: PeerName) -> "Ring":
        """After we gave a range of ours to a peer. ValueError where not all of it is ours."""
        if not given.size or any(
            entry.peer != ourself for entry, span in self.divided() if span.clip(given).size
        ):
            raise ValueError(f"{given} is not all ours to give")
        entries = {entry.token: entry for entry in self.entries}
        covering = self._covering(given.start)
        end = self.universe.start if given.end == self.universe.end else given.end
        if end not in entries:
            following = self._next(self._covering(given.end - 1))
            entries[end] = Entry(end, ourself, 0, self.distance(end, following))
        first = min(self.distance(given.start, self._next(covering)), given.size)
        at = self.entries[covering]
        if at.token == given.start:
            entries[at.token] = at.changed(peer=peer, free=first)
        else:
            entries[at.token] = at.changed(free=self.distance(at.token, given.start))
            entries[given.start] = Entry(given.start, peer, 0, first)
        for entry in self.entries:
            if given.start < entry.token < given.end:
                entries[entry.token] = entry.changed(
                    peer=peer, free=min(entry.free, self.distance(entry.token, given.end))
                )
        return self._with(entries.values())

    def reporting(self, ourself: PeerName, count: Callable[[Range], int]) -> "Ring":
        """With the numbers of free addresses of ours as they are; the same ring if they were right."""
        entries = list(self.entries)
        for index, entry in enumerate(entries):
            if entry.peer == ourself:
                free = sum(map(count, self.spans(index)))
                if free != entry.free:
                    entries[index] = entry.changed(free=free)
        return self if entries == list(self.entries) else replace(self, entries=tuple(entries))

    def transferred(self, source: PeerName, heir: PeerName) -> "Ring":
        """After everything of one peer went to another: a take-over, or a hand-over."""
        entries = (e.changed(peer=heir, by=_TRANSFER) if e.peer == source else e for e in self.entries)
        return replace(self, entries=tuple(entries))

    def clamped(self) -> "Ring":
        """With no entry that is said to have more to spare than it owns: hints outlive the splits of ranges."""
        if all(entry.free <= self.length(index) for index, entry in enumerate(self.entries)):
            return self
        entries = (e._replace(free=min(e.free, self.length(i))) for i, e in enumerate(self.entries))
        return replace(self, entries=tuple(entries))

    def _with(self, entries: Iterable[Entry]) -> "Ring":
        return replace(self, entries=tuple(sorted(entries, key=_token)))


@dataclass(frozen=True, slots=True)
class Copy:
    """A ring as a peer holds and sends it. `bounds` are those it came with; nothing of it is checked."""

    bounds: Range
    holder: PeerName
    entries: tuple[Entry, ...]
    seeds: tuple[PeerName, ...]

    def over(self, universe: Subnet) -> Ring:
        """As a ring of this universe, whose bounds it has."""
        return Ring(universe, self.entries, self.seeds)


def _token(entry: Entry) -> int:
    return entry.token

