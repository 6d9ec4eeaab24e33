"""The MAC table: behind which peer, ourselves included, an Ethernet address is.

A frame from a link always moves its source to the peer it came from. A frame from the local bridge moves its
source to us, unless the same address spoke from elsewhere a moment ago: then it is a reflection (a loop behind
some container), and is dropped. Weave Net 2.8 keeps dropping until the entry ages out, up to eleven minutes;
here the first frame after the guard heals it (frames that we put on the bridge do not come back from the TAP, so
only a loop outside can reflect). Each peer may claim a bounded number of addresses, and all remote peers together
another, so that forged sources push out neither local addresses nor those of peers with few. What makes room is
an address that was not heard again since it was learned, where there is one. Source: data plane spec §6.1.

Where frames are forwarded without us, whoever does it follows the table through `changed` and is asked through `seen`
when it last met an address.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from mesh.names import PeerName

MAX_AGE = 600.0
REFLECTION_GUARD = 0.5
MAX_PER_PEER = 8192
MAX_REMOTE = 65536


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
    """Addresses (6 bytes) and their peers. `now` is monotonic, in seconds.

    `per_peer` bounds the addresses of each peer, ourself included; `remote` those of all other peers together.
    `changed` is called with an address and its new owner, None where it was forgotten.
    """

    def __init__(
        self,
        ourself: PeerName,
        *,
        per_peer: int = MAX_PER_PEER,
        remote: int = MAX_REMOTE,
        changed: Callable[[bytes, PeerName | None], None] = lambda mac, owner: None,
        seen: Callable[[bytes], float] = lambda mac: 0.0,
    ) -> None:
        self._changed = changed
        self._seen = seen
        self._ourself = ourself
        self._per_peer = per_peer
        self._max_remote = remote
        self._addresses: dict[bytes, _Address] = {}
        # In the order of eviction; the value is when the address took its place in the queue.
        self._of_peer: dict[PeerName, dict[bytes, float]] = {}
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
        if known is not None and now - self._last_seen(mac, known) < REFLECTION_GUARD:
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
        old = self._addresses.pop(mac, None)
        if old is not None:
            del self._of_peer[old.owner][mac]
        self._make_room(peer)
        self._addresses[mac] = _Address(peer, now)
        self._of_peer.setdefault(peer, {})[mac] = now
        self._changed(mac, peer)
        return Learned.NEW if old is None else Learned.MOVED

    def _last_seen(self, mac: bytes, known: _Address) -> float:
        known.last_seen = max(known.last_seen, self._seen(mac))
        return known.last_seen

    def _make_room(self, peer: PeerName) -> None:
        if len(self._of_peer.get(peer, ())) >= self._per_peer:
            self._evict(peer)
        elif peer != self._ourself:
            local = len(self._of_peer.get(self._ourself, ()))
            if len(self._addresses) - local >= self._max_remote:
                # Whoever has most pays: a peer that forges cannot cost the others theirs.
                remote = (name for name in self._of_peer if name != self._ourself)
                self._evict(max(remote, key=lambda name: len(self._of_peer[name])))

    def _evict(self, peer: PeerName) -> None:
        """Drop one address of a peer. Those heard since they were queued go to the back once, so this ends."""
        owned = self._of_peer[peer]
        while True:
            mac, queued = next(iter(owned.items()))
            last_seen = self._last_seen(mac, self._addresses[mac])
            del owned[mac]
            if last_seen <= queued:
                break
            owned[mac] = last_seen
        del self._addresses[mac]
        self._changed(mac, None)
        self.evicted += 1

    def forget_peer(self, peer: PeerName) -> None:
        """A peer is gone, and its addresses with it."""
        for mac in self._of_peer.pop(peer, {}):
            del self._addresses[mac]
            self._changed(mac, None)

    def expire(self, now: float) -> None:
        """Forget what was not seen for ten minutes."""
        old = [mac for mac, known in self._addresses.items() if now - self._last_seen(mac, known) > MAX_AGE]
        for mac in old:
            known = self._addresses.pop(mac)
            del self._of_peer[known.owner][mac]
            self._changed(mac, None)

    def rows(self) -> Iterator[tuple[bytes, PeerName, float]]:
        """(address, peer, last seen) for status."""
        for mac, known in sorted(self._addresses.items()):
            yield mac, known.owner, self._last_seen(mac, known)
