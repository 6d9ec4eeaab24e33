"""All names of the mesh that are known here: what is registered locally, and what gossip brought.

Only we change entries whose origin we are; of others we carry the newest view. What nobody remembers registering
(we restarted, and our names still travel) is buried. Whatever changes is reported by lower-cased name and by address,
so that prepared answers can be dropped. Source: DNS spec §2, §4, §5, §6.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dns.entries import TOMBSTONE_LIFE, Entry, Identity, is_below, merged, qualified, table_order
from mesh.names import PeerName

_MASK = (1 << 64) - 1
Changed = Callable[[str, int], None]


@dataclass(slots=True)
class Received:
    """What became of received entries: `kept` travels on as a broadcast, `news` as gossip, `ours` is to be said anew.

    `strangers`: how many were dropped because their origin is not in the mesh.
    """

    kept: list[Entry] = field(default_factory=list)
    news: list[Entry] = field(default_factory=list)
    ours: list[Entry] = field(default_factory=list)
    strangers: int = 0


class NameTable:
    """Entries of one address family. `changed(lower-cased hostname, address)` is called for every change."""

    def __init__(self, ourself: PeerName, domain: str, known: Callable[[PeerName], bool], changed: Changed) -> None:
        self._ourself = ourself
        self.domain = qualified(domain)
        self._known = known
        self._changed = changed
        self._entries: dict[Identity, Entry] = {}
        self._by_name: dict[str, dict[Identity, None]] = {}
        self._by_address: dict[int, dict[Identity, None]] = {}
        self._by_origin: dict[PeerName, dict[Identity, None]] = {}
        self._live: Counter[str] = Counter()
        self._sorted: list[Entry] | None = None
        self.generation = 0
        # Of the names that answer: how many, and the sum of their fingerprints, which knows no order.
        self.live = 0
        self.digest = 0

    def __len__(self) -> int:
        return len(self._entries)

    # --- what is known ---

    def entries(self) -> list[Entry]:
        """All of them, tombstones too, in table order."""
        if self._sorted is None:
            self._sorted = sorted(self._entries.values(), key=table_order)
        return list(self._sorted)

    def own(self) -> list[Entry]:
        """Those that we registered, tombstones too."""
        return [self._entries[identity] for identity in self._by_origin.get(self._ourself, ())]

    def has(self, name: str) -> bool:
        """Whether a lower-cased name has an address."""
        return name in self._live

    def addresses(self, name: str) -> list[int]:
        """The addresses of a lower-cased name, one for each live entry, in table order."""
        entries = [self._entries[identity] for identity in self._by_name.get(name, ())]
        return [entry.address for entry in sorted(entries, key=table_order) if entry.live]

    def hostname(self, address: int) -> str | None:
        """The first live name of an address."""
        entries = [self._entries[identity] for identity in self._by_address.get(address, ())]
        return next((entry.hostname for entry in sorted(entries, key=table_order) if entry.live), None)

    # --- what we change; each returns the entries to broadcast ---

    def add(self, hostname: str, container: str, address: int) -> list[Entry]:
        """Register a name. Nothing is done, and nothing returned, where it is not below the domain."""
        hostname = qualified(hostname)
        if not is_below(hostname, self.domain):
            return []
        entry = Entry(hostname, self._ourself, container, address)
        known = self._entries.get(entry.identity)
        if known is None:
            self._put(entry)
            return [entry]
        if not known.live:
            known = known._replace(version=known.version + 1, tombstone=0)
            self._put(known)
        return [known]

    def delete(
        self, now: int, *, hostname: str | None = None, container: str | None = None, address: int | None = None
    ) -> list[Entry]:
        """Bury every live entry of ours that all given selectors match; the hostname in any spelling."""
        wanted = None if hostname is None else qualified(hostname).lower()
        buried = []
        for entry in self.own():
            if not entry.live or (wanted is not None and entry.hostname.lower() != wanted):
                continue
            if container in (None, entry.container) and address in (None, entry.address):
                buried.append(entry.buried(now))
        for entry in buried:
            self._put(entry)
        return merged(buried)

    # --- what others say ---

    def receive(self, entries: Sequence[Entry], now: int) -> Received:
        """Merge entries of a message; it may name an entry twice, the winning view counts."""
        received = Received()
        for theirs in merged(entries):
            entry = theirs
            if entry.origin == self._ourself:
                entry = self._answered(theirs, now)
                if entry is not theirs:
                    received.ours.append(entry)
            elif not self._known(entry.origin):
                received.strangers += 1
                continue
            received.kept.append(entry)
            known = self._entries.get(entry.identity)
            if known is None and entry.tombstone and now - entry.tombstone > TOMBSTONE_LIFE:
                # We have forgotten it already, and so will those who tell of it.
                continue
            if known is None or entry.beats(known):
                self._put(entry)
                received.news.append(entry)
        return received

    def _answered(self, theirs: Entry, now: int) -> Entry:
        """What we say to an entry of our own that came back: itself where there is nothing to say."""
        known = self._entries.get(theirs.identity)
        if known is None:
            return theirs.buried(now) if theirs.live else theirs
        if theirs.version > known.version or (theirs.version == known.version and theirs.tombstone != known.tombstone):
            return known._replace(version=theirs.version + 1)
        return theirs

    # --- what goes ---

    def peer_gone(self, name: PeerName) -> None:
        """A peer left the mesh, and its names with it. It brings them again if it returns."""
        for identity in list(self._by_origin.get(name, ())):
            self._remove(identity)

    def purge(self, now: int) -> None:
        """Forget tombstones that every peer has seen by now."""
        old = [e.identity for e in self._entries.values() if e.tombstone and now - e.tombstone > TOMBSTONE_LIFE]
        for identity in old:
            self._remove(identity)

    def _put(self, entry: Entry) -> None:
        identity = entry.identity
        known = self._entries.get(identity)
        if known is None:
            for index, key in self._indexes(identity):
                index.setdefault(key, {})[identity] = None
        self._count(known, -1)
        self._entries[identity] = entry
        self._count(entry, 1)
        self._note(identity, entry.live - (known is not None and known.live))

    def _remove(self, identity: Identity) -> None:
        entry = self._entries.pop(identity)
        self._count(entry, -1)
        for index, key in self._indexes(identity):
            del index[key][identity]
            if not index[key]:
                del index[key]
        self._note(identity, -entry.live)

    def _indexes(self, identity: Identity) -> Iterable[tuple[dict[object, dict[Identity, None]], object]]:
        return (
            (self._by_name, identity.hostname.lower()),
            (self._by_address, identity.address),
            (self._by_origin, identity.origin),
        )  # type: ignore[return-value]

    def _count(self, entry: Entry | None, sign: int) -> None:
        if entry is not None and entry.live:
            self.live += sign
            self.digest = (self.digest + sign * entry.fingerprint) & _MASK

    def _note(self, identity: Identity, lives: int) -> None:
        """Something changed; `lives` is by how much the number of live entries did."""
        name = identity.hostname.lower()
        if lives:
            self._live[name] += lives
            if not self._live[name]:
                del self._live[name]
        self.generation += 1
        self._sorted = None
        self._changed(name, identity.address)
