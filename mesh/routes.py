"""Routes: who is the next hop to a peer, and to whom a peer's broadcasts go on. Identical on every node.

Each peer keeps a number while it is known, links are rows of bits, so that a breadth-first search is a handful of
operations on large integers per peer. Rows follow the topology entry by entry; where the order of names decides,
`_place` holds it. Every end of a listed link is known (at least as a placeholder). Two modes: `symmetric` uses links
that both ends call established, and carries frames; `all` uses every listed link, and carries gossip.
Source: mesh spec §10.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random

from mesh.names import UNKNOWN, PeerName
from mesh.topology import Entry, Topology


def _bits(row: int) -> Iterator[int]:
    """The numbers of the bits that are set, ascending."""
    while row:
        low = row & -row
        yield low.bit_length() - 1
        row ^= low


class Routes:
    """The route tables of one node. Look-ups answer for the topology of the last `recalculate`."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._names: list[PeerName] = []
        self._index: dict[PeerName, int] = {}
        self._free: list[int] = []
        # By number: where the peer stands among all names. As bits: the peers whose names are below ours.
        self._place: list[int] = []
        self._below_us = 0
        self._listed: list[int] = []
        self._established: list[int] = []
        self._established_to: list[int] = []
        self.unicast: Mapping[PeerName, PeerName] = {}
        self.unicast_all: Mapping[PeerName, PeerName] = {}
        self._broadcast: dict[PeerName, tuple[PeerName, ...]] = {}
        self._broadcast_all: dict[PeerName, tuple[PeerName, ...]] = {}
        self._weights: Counter[PeerName] = Counter()

    def recalculate(self) -> None:
        """Bring the tables up to date; the broadcast tables of other sources follow when they are asked for."""
        self._update_rows()
        ourself = self._topology.ourself.name
        self.unicast = self._next_hops(symmetric=True)
        self.unicast_all = self._next_hops(symmetric=False)
        self._weights = Counter(self.unicast_all.values())
        del self._weights[UNKNOWN]
        self._broadcast = {}
        self._broadcast_all = {}
        self.broadcast(ourself)

    def broadcast(self, source: PeerName) -> tuple[PeerName, ...]:
        """Our next hops for frames that `source` floods."""
        hops = self._broadcast.get(source)
        if hops is None:
            hops = self._broadcast[source] = self._flood(source, symmetric=True)
        return hops

    def broadcast_all(self, source: PeerName) -> tuple[PeerName, ...]:
        """Our next hops for gossip that `source` broadcasts."""
        hops = self._broadcast_all.get(source)
        if hops is None:
            hops = self._broadcast_all[source] = self._flood(source, symmetric=False)
        return hops

    def cached_broadcasts(self) -> list[PeerName]:
        """Sources whose broadcast table was asked for since the last recalculation."""
        return list(self._broadcast)

    @property
    def weights(self) -> Mapping[PeerName, int]:
        """For each neighbour, how many peers are reached through it."""
        return self._weights

    def fanout(self) -> int:
        """How many random neighbours gossip goes to, if there are as many."""
        return int(2 * math.log2(len(self.unicast_all))) if self.unicast_all else 0

    def random_neighbours(self, rng: Random, exclude: PeerName | None) -> list[PeerName]:
        """Distinct neighbours, drawn with the weights of §11.3."""
        candidates = [name for name in self._weights if name != exclude]
        count = min(self.fanout(), len(candidates))
        if count == len(candidates):
            return candidates
        # Weighted drawing without replacement: the largest of u^(1/w) (Efraimidis and Spirakis, 2006).
        keyed = sorted(candidates, key=lambda name: rng.random() ** (1 / self._weights[name]), reverse=True)
        return keyed[:count]

    # --- rows ---

    def _update_rows(self) -> None:
        topology = self._topology
        changed, topology.changed = topology.changed, set()
        gone = [name for name in changed if name in self._index and not topology.knows(name)]
        come = [name for name in changed if name not in self._index and topology.knows(name)]
        if gone:
            self._remove(gone)
        for name in come:
            self._add(name)
        if come:
            self._sort()
        for name in changed:
            entry = topology.get(name)
            if entry is not None:
                self._set_row(self._index[name], entry)

    def _remove(self, names: list[PeerName]) -> None:
        """Free their numbers. Whoever listed them changed as well, and must not take back what is cleared here."""
        kept = -1
        for name in names:
            number = self._index.pop(name)
            self._free.append(number)
            self._listed[number] = self._established[number] = self._established_to[number] = 0
            kept ^= 1 << number
        self._established = [row & kept for row in self._established]
        self._established_to = [row & kept for row in self._established_to]

    def _add(self, name: PeerName) -> None:
        if self._free:
            number = self._free.pop()
            self._names[number] = name
        else:
            number = len(self._names)
            self._names.append(name)
            self._place.append(0)
            for rows in (self._listed, self._established, self._established_to):
                rows.append(0)
        self._index[name] = number

    def _sort(self) -> None:
        ourself = self._topology.ourself.name
        self._below_us = 0
        for place, (name, number) in enumerate(sorted(self._index.items())):
            self._place[number] = place
            if name < ourself:
                self._below_us |= 1 << number

    def _set_row(self, number: int, entry: Entry) -> None:
        listed = established = 0
        index = self._index
        for remote, link in entry.links.items():
            to = index.get(remote)
            if to is not None:
                bit = 1 << to
                listed |= bit
                if link.established:
                    established |= bit
        if established == listed:
            # One number instead of two equal ones: a simulation holds a million of them.
            established = listed
        ours = 1 << number
        for to in _bits(established ^ self._established[number]):
            self._established_to[to] ^= ours
        self._listed[number] = listed
        self._established[number] = established

    def _row(self, number: int, symmetric: bool) -> int:
        if symmetric:
            return self._established[number] & self._established_to[number]
        return self._listed[number]

    # --- searches ---

    def _next_hops(self, *, symmetric: bool) -> dict[PeerName, PeerName]:
        names = self._names
        start = self._index[self._topology.ourself.name]
        reached = 1 << start
        first = self._row(start, symmetric) & ~reached
        reached |= first
        hops: list[int] = [-1] * len(names)
        level = list(_bits(first))
        for number in level:
            hops[number] = number
        by_name = self._place.__getitem__
        order = [start]
        while level:
            level.sort(key=by_name)
            order += level
            following = 0
            for number in level:
                new = self._row(number, symmetric) & ~reached
                if new:
                    reached |= new
                    following |= new
                    hop = hops[number]
                    for to in _bits(new):
                        hops[to] = hop
            level = list(_bits(following))
        return {names[number]: names[hops[number]] if number != start else UNKNOWN for number in order}

    def _flood(self, source: PeerName, *, symmetric: bool) -> tuple[PeerName, ...]:
        """Peers that are not reached yet when the search from `source` arrives at us."""
        ourself = self._index.get(self._topology.ourself.name)
        start = self._index.get(source)
        if ourself is None or start is None:
            return ()
        reached = level = 1 << start
        ours = 1 << ourself
        while level:
            # Peers before us in the level are searched before us, those behind us are not.
            arrived = level & ours
            before = reached
            for number in _bits(level & self._below_us if arrived else level):
                reached |= self._row(number, symmetric)
            if arrived:
                hops = self._row(ourself, symmetric) & ~reached
                return tuple(sorted(self._names[number] for number in _bits(hops)))
            level = reached & ~before
        return ()
