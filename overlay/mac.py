"""The MAC table: behind which peer, ourselves included, an Ethernet address is.

A frame from a link always moves its source to the peer it came from. A frame from the local bridge moves its
source to us, unless the same address spoke from elsewhere a moment ago: then it is a reflection (a loop behind
some container), and is dropped. Weave Net 2.8 keeps dropping until the entry ages out, up to eleven minutes;
here the first frame after the guard heals it. Each peer may claim a bounded number of addresses, so that nobody
can push out the local ones. Source: data plane spec §6.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from mesh.names import PeerName

MAX_AGE = 600.0
REFLECTION_GUARD = 0.5
MAX_PER_PEER = 8192


class Learned(Enum):
    """What became of a source address."""

    KNOWN = auto()
    NEW = auto()
    MOVED = auto()
    REFUSED = auto()


@dataclass(slots=True)
class _Address:
    owner: PeerName
    last_seen: float


class MacTable:
    """Addresses (6 bytes) and their peers. `now` is monotonic, in seconds."""

    def __init__(self, ourself: PeerName, *, per_peer: int = MAX_PER_PEER) -> None:
        self._ourself = ourself
        self._per_peer = per_peer
        self._addresses: dict[bytes, _Address] = {}
        self._of_peer: dict[PeerName, dict[bytes, None]] = {}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._addresses)

    def owner(self, mac: bytes) -> PeerName | None:
        """The peer behind an address, None if unknown."""
        known = self._addresses.get(mac)
        return None if known is None else known.owner

    def learn_local(self, mac: bytes, now: float) -> Learned:
        """A frame with this source came from the local bridge. REFUSED: it is a reflection, drop it."""
        known = self._addresses.get(mac)
        if known is not None and known.owner == self._ourself:
            known.last_seen = now
            return Learned.KNOWN
        if known is not None and now - known.last_seen < REFLECTION_GUARD:
            return Learned.REFUSED
        return self._set(mac, self._ourself, now)

    def learn_remote(self, mac: bytes, peer: PeerName, now: float) -> Learned:
        """A frame with this source came from a peer."""
        known = self._addresses.get(mac)
        if known is not None and known.owner == peer:
            known.last_seen = now
            return Learned.KNOWN
        return self._set(mac, peer, now)

    def _set(self, mac: bytes, peer: PeerName, now: float) -> Learned:
        old = self._addresses.get(mac)
        if old is not None:
            self._of_peer[old.owner].pop(mac, None)
        self._addresses[mac] = _Address(peer, now)
        owned = self._of_peer.setdefault(peer, {})
        owned[mac] = None
        if len(owned) > self._per_peer:
            oldest = next(iter(owned))
            del owned[oldest]
            del self._addresses[oldest]
            self.evicted += 1
        return Learned.NEW if old is None else Learned.MOVED

    def forget_peer(self, peer: PeerName) -> None:
        """A peer is gone, and its addresses with it."""
        for mac in self._of_peer.pop(peer, {}):
            del self._addresses[mac]

    def expire(self, now: float) -> None:
        """Forget what was not seen for ten minutes."""
        for mac in [mac for mac, known in self._addresses.items() if now - known.last_seen > MAX_AGE]:
            known = self._addresses.pop(mac)
            self._of_peer[known.owner].pop(mac, None)

    def rows(self) -> Iterator[tuple[bytes, PeerName, float]]:
        """(address, peer, last seen) for status."""
        for mac, known in sorted(self._addresses.items()):
            yield mac, known.owner, known.last_seen
