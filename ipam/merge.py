"""Two rings become one: what another peer's copy of the ring changes in ours.

Token by token the higher version wins. Then what we would lose is compared with what we have in use. A loss that takes
no used address is accepted, and our space shrinks. Where it would take one, the whole part stays ours in our copy, with
its old version, which other peers ignore: that is a dispute. It costs no connection; nothing is given out of what is
disputed until it is settled, and everything else is merged.

An owner that was taken over while it lived says so in its own copy, with an older version. It gets back what it uses;
where we use addresses of the same part, that is a dispute as well.

The reference refuses whole rings for less, accepts some losses of used addresses, and keeps two owners at equal
versions: the cures are D1 to D5 of IPAM spec §21. The same rules otherwise: §7.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ipam.ranges import Range, RangeSet
from ipam.ring import Copy, Entry, Ring, RingError
from mesh.names import PeerName

# Fewer versions apart, an older entry may be from before its owner gave us that part.
_LONG_AGO = 8


class SeedsDifferError(RingError):
    """The other ring began with other peers: two clusters that must not be one."""


class RangeDiffersError(RingError):
    """The other ring divides another universe."""


@dataclass(frozen=True, slots=True)
class Dispute:
    """Addresses that we use lie in a part of ours that others say is theirs, or use.

    `ours` is the entry we keep, `claims` the entries against it, `lost` what they would take, `used` the addresses in
    use there, in order.
    """

    ours: Entry
    claims: tuple[Entry, ...]
    lost: tuple[Range, ...]
    used: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """The ring after a merge. `updated`: something of the other ring was taken over."""

    ring: Ring
    updated: bool
    disputes: tuple[Dispute, ...] = ()


Used = Callable[[Range], Iterable[int]]


def merge(ours: Ring, copy: Copy, ourself: PeerName, used: Used) -> Merge:
    """Merge a peer's copy into our ring. Raises RingError, and then nothing changed.

    `used` tells the addresses in use in a range. Too large hints of free addresses are made to fit.
    """
    same_universe = copy.bounds == ours.universe.range
    theirs = copy.over(ours.universe)
    if same_universe:
        theirs.check(hints=False)
    if ours.seeds and copy.seeds and ours.seeds != copy.seeds:
        raise SeedsDifferError("Received ring was seeded differently from ours")
    if not same_universe:
        raise RangeDiffersError("Received range differs from ours")
    return _Merging(ours, theirs.clamped(), ourself, copy.holder, used).result()


class _Merging:
    """One merge: `entries` by their tokens become those of the joined ring."""

    def __init__(self, ours: Ring, theirs: Ring, ourself: PeerName, holder: PeerName, used: Used) -> None:
        self._ours = ours
        self._theirs = theirs
        self._ourself = ourself
        self._holder = holder
        self._used = used
        self._entries = {entry.token: entry for entry in ours.entries}
        self._contested: list[Dispute] = []
        tokens = sorted({*self._entries, *(entry.token for entry in theirs.entries)})
        # How much each entry owns when both rings are one: hints are compared as they will be.
        self._lengths = {
            token: ours.distance(token, following)
            for token, following in zip(tokens, tokens[1:] + tokens[:1], strict=True)
        }

    def result(self) -> Merge:
        for index, entry in enumerate(self._theirs.entries):
            mine = self._entries.get(entry.token)
            if mine is None:
                self._entries[entry.token] = entry
            elif mine != entry:
                self._entries[entry.token] = self._standing(mine, entry, index)
        joined = self._joined()
        lost = RangeSet(self._ours.ranges_of(self._ourself)).minus(joined.ranges_of(self._ourself))
        disputes = tuple(self._kept(lost)) if any(map(self._in_use, lost)) else ()
        if disputes:
            joined = self._joined()
        kept = {dispute.ours.token for dispute in disputes}
        contested = tuple(each for each in self._contested if each.ours.token not in kept)
        return Merge(joined, self._is_update(joined), disputes + contested)

    def _joined(self) -> Ring:
        ordered = tuple(self._entries[token] for token in sorted(self._entries))
        return replace(self._ours, entries=ordered, seeds=self._ours.seeds or self._theirs.seeds).clamped()

    def _in_use(self, part: Range) -> bool:
        return any(True for _ in self._used(part))

    def _standing(self, mine: Entry, entry: Entry, index: int) -> Entry:
        """Which of two entries with one token stands; `index` is theirs."""
        ourself = self._ourself
        if entry.version != mine.version:
            if entry.version < mine.version:
                return self._older(mine, entry, index)
            # Somebody may remember more of us than we do, but nobody else changes an entry of ours.
            return entry.changed(free=mine.free) if mine.peer == ourself == entry.peer else entry
        if entry.peer == mine.peer:
            return mine
        if mine.peer == ourself:
            return self._between_owners(mine, entry, index)
        if entry.peer == ourself:
            # What we gave up is ours again only if the one we gave it to says so itself.
            return entry.changed() if self._holder == mine.peer else mine
        return self._preferred(mine, entry)

    def _older(self, mine: Entry, entry: Entry, index: int) -> Entry:
        """An older entry counts only where its owner lives and uses what was taken from it."""
        taken = mine.peer == self._ourself and mine.version - entry.version >= _LONG_AGO
        lives = entry.peer == self._holder != self._ourself
        if not (taken and lives and entry.free < self._theirs.length(index)):
            return mine
        spans = self._ours.spans(self._ours.entries.index(mine))
        used = tuple(number for span in spans for number in self._used(span))
        if not used:
            return mine.changed(peer=entry.peer, free=entry.free)
        self._contested.append(Dispute(mine, (entry,), spans, used))
        return mine

    def _between_owners(self, mine: Entry, entry: Entry, index: int) -> Entry:
        """One version, two owners, and we are one: who has addresses in use stands, and says so with a higher one."""
        at = self._ours.entries.index(mine)
        we_use = any(map(self._in_use, self._ours.spans(at)))
        they_use = entry.free < self._theirs.length(index)
        wins = self._preferred(mine, entry) is mine if we_use == they_use else we_use
        return mine.changed() if wins else entry

    def _preferred(self, one: Entry, other: Entry) -> Entry:
        length = self._lengths[one.token]
        return min(one, other, key=lambda entry: (-min(entry.free, length), entry.peer))

    def _kept(self, lost: RangeSet) -> Iterable[Dispute]:
        """Take back each part of ours that would lose an address in use."""
        for index, mine in enumerate(self._ours.entries):
            if mine.peer != self._ourself:
                continue
            spans = self._ours.spans(index)
            taken = tuple(part for span in spans for part in lost.within(span))
            in_use = tuple(number for part in taken for number in self._used(part))
            if not in_use:
                continue
            inside = sorted(token for token in self._entries if any(span.holds(token) for span in spans))
            claims = tuple(self._entries[token] for token in inside if self._entries[token].peer != self._ourself)
            for token in inside:
                del self._entries[token]
            self._entries[mine.token] = mine
            yield Dispute(mine, claims, taken, in_use)

    def _is_update(self, joined: Ring) -> bool:
        """Whether more changed than the version of entries that were and stay ours."""
        ours, ourself = self._ours, self._ourself
        if len(ours.entries) != len(joined.entries):
            return True
        return any(
            before != after and not before.peer == after.peer == ourself
            for before, after in zip(ours.entries, joined.entries, strict=True)
        )

