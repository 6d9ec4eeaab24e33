"""The reference's merge, as the specification's table has it, flaws included: what ours is compared with.

Also the rule of simulated 2.8 peers. Source: IPAM spec §7.
"""

from collections.abc import Callable
from dataclasses import replace

from ipam.ranges import Range
from ipam.ring import Copy, Entry, Ring, RingError
from mesh.names import PeerName, format_peer_name

Busy = Callable[[Range], bool]


def merge(ours: Ring, copy: Copy, ourself: PeerName, busy: Busy) -> tuple[Ring, bool]:
    """The ring after the merge, and whether it counts as an update. Raises RingError, and then nothing changed."""
    if copy.bounds == ours.universe.range:
        copy.over(ours.universe).check()
    if ours.seeds and copy.seeds and ours.seeds != copy.seeds:
        raise RingError("Received ring was seeded differently from ours")
    if copy.bounds != ours.universe.range:
        raise RingError("Received range differs from ours")
    return _Walk(ours, copy.over(ours.universe), ourself, busy).merged()


class _Walk:
    """Both lists side by side; `prev` is the owner of the last entry that came from our own."""

    def __init__(self, ours: Ring, theirs: Ring, ourself: PeerName, busy: Busy) -> None:
        self.ours, self.theirs, self.ourself = ours, theirs, ourself
        self.busy = busy
        self.prev: PeerName | None = None
        self.updated = False
        self.result: list[Entry] = []

    def any_busy(self, start: int, end: int) -> bool:
        universe = self.ours.universe
        if end > start:
            return self.busy(Range(start, end))
        return self.busy(Range(universe.start, end)) or self.busy(Range(start, universe.end))

    def keep(self, entry: Entry, *, prev: bool = True) -> None:
        self.result.append(entry)
        if prev:
            self.prev = entry.peer

    def take(self, entry: Entry) -> None:
        self.result.append(entry)
        self.updated = True
        self.prev = None

    def merged(self) -> tuple[Ring, bool]:
        mine, others = list(self.ours.entries), list(self.theirs.entries)
        i = j = 0
        while i < len(mine) and j < len(others):
            if mine[i].token < others[j].token:
                self.keep(mine[i])
                i += 1
            elif mine[i].token > others[j].token:
                self.inserted(others[j], mine[i].token)
                j += 1
            else:
                self.same_token(mine[i], others[j], mine[(i + 1) % len(mine)].token)
                i, j = i + 1, j + 1
        for entry in mine[i:]:
            self.keep(entry)
        for entry in others[j:]:
            if self.prev == self.ourself and entry.peer != self.ourself:
                raise RingError(self.says(entry))
            self.take(entry)
        return self.checked()

    def says(self, entry: Entry) -> str:
        token = self.ours.universe.address(entry.token)
        return f"Peer {format_peer_name(entry.peer)} says it owns the IP range from {token}, which I think I own"

    def inserted(self, theirs: Entry, following: int) -> None:
        split = self.prev == self.ourself and theirs.peer != self.ourself
        if split and self.any_busy(theirs.token, following):
            raise RingError(self.says(theirs))
        self.take(theirs)

    def same_token(self, mine: Entry, theirs: Entry, following: int) -> None:
        if mine.version > theirs.version:
            self.keep(mine)
        elif mine.version == theirs.version:
            self.same_version(mine, theirs, following)
        elif mine.peer != self.ourself:
            self.take(theirs)
        elif theirs.peer == self.ourself:
            self.keep(mine._replace(version=theirs.version + 1), prev=False)
        elif self.any_busy(mine.token, following):
            token = self.ours.universe.address(mine.token)
            raise RingError(
                f"Received update for IP range I own at {token} v{mine.version}: incoming message says owner"
                f" {format_peer_name(theirs.peer)} v{theirs.version}"
            )
        else:
            self.take(theirs)

    def same_version(self, mine: Entry, theirs: Entry, following: int) -> None:
        if mine.peer == theirs.peer:
            self.keep(mine)
        elif mine.peer == self.ourself and self.any_busy(mine.token, following):
            raise RingError(
                f"Inconsistent entries for {self.ours.universe.address(mine.token)}: owned by"
                f" {format_peer_name(mine.peer)} but incoming message says {format_peer_name(theirs.peer)}"
            )
        elif theirs.free > mine.free:
            self.take(theirs)
        else:
            self.keep(mine)

    def checked(self) -> tuple[Ring, bool]:
        ring = replace(self.ours, entries=tuple(self.result), seeds=self.ours.seeds or self.theirs.seeds)
        entries = tuple(
            entry._replace(free=min(entry.free, ring.length(index))) if entry.peer == self.ourself else entry
            for index, entry in enumerate(ring.entries)
        )
        ring = replace(ring, entries=entries)
        try:
            ring.check()
        except RingError as error:
            raise RingError(f"Merge of incoming data causes: {error}") from error
        return ring, self.updated
