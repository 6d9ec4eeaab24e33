"""What is known of all peers: their entries, merged from gossip, and our own, which only we change.

Entries are immutable and replaced whole; a version of a (name, UID) never goes back. Whoever cannot be reached
over listed links is collected. Source: mesh spec §1.2, §8, §9.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, KeysView, Mapping, MutableMapping
from dataclasses import dataclass
from random import Random

from mesh.names import PeerName
from mesh.shortids import ShortIds
from mesh.topology_wire import (
    Described,
    Link,
    Pair,
    decode_pair,
    decode_stream,
    encode_messages,
    encode_pair,
    encode_stream,
    split_pairs,
)

_FINGERPRINT = struct.Struct(">QQQI")
_MASK = (1 << 64) - 1
MAX_SHORT_ID = 4095
# Whoever claims more of a former self of ours lies, and would leave us no version to go on to.
MAX_FORMER_VERSION = 1 << 63


class Entry:
    """One peer, as last heard. Never changed; shared freely between topologies of one process."""

    __slots__ = (
        "_fingerprint",
        "_messages",
        "_pair",
        "has_short_id",
        "links",
        "name",
        "nickname",
        "short_id",
        "uid",
        "version",
    )

    def __init__(
        self,
        name: PeerName,
        nickname: str = "",
        uid: int = 0,
        version: int = 0,
        short_id: int = 0,
        has_short_id: bool = False,
        links: Mapping[PeerName, Link] | None = None,
    ) -> None:
        self.name = name
        self.nickname = nickname
        self.uid = uid
        self.version = version
        self.short_id = short_id
        self.has_short_id = has_short_id
        self.links: Mapping[PeerName, Link] = {} if links is None else links
        self._pair: Pair | None = None
        self._messages: bytes | None = None
        self._fingerprint: int | None = None

    def but(
        self,
        *,
        version: int,
        short_id: int | None = None,
        links: Mapping[PeerName, Link] | None = None,
    ) -> "Entry":
        """The same peer at another version, with another short id or other links."""
        return Entry(
            self.name,
            self.nickname,
            self.uid,
            version,
            self.short_id if short_id is None else short_id,
            True if short_id is not None else self.has_short_id,
            self.links if links is None else links,
        )

    @property
    def pair(self) -> Pair:
        """The entry's canonical bytes."""
        if self._pair is None:
            described = Described(
                self.name, self.nickname, self.uid, self.version, self.short_id, self.has_short_id, dict(self.links)
            )
            self._pair = encode_pair(described)
        return self._pair

    @property
    def messages(self) -> bytes:
        """The entry as it goes out, behind our descriptors."""
        if self._messages is None:
            self._messages = encode_messages(self.pair)
        return self._messages

    @property
    def fingerprint(self) -> int:
        """64 bits of (name, UID, version, short id); 0 for a placeholder, of which nothing is known."""
        if self._fingerprint is None:
            short_id = self.short_id if self.has_short_id else MAX_SHORT_ID + 1
            packed = _FINGERPRINT.pack(self.name & _MASK, self.uid, self.version, short_id & 0xFFFFFFFF)
            digest = hashlib.blake2b(packed, digest_size=8).digest()
            self._fingerprint = int.from_bytes(digest, "big") if self.uid else 0
        return self._fingerprint


@dataclass(frozen=True, slots=True)
class Merge:
    """What an update changed. `new`: created as described, or replaced; `described`: all it spoke of."""

    new: frozenset[PeerName]
    described: frozenset[PeerName]
    our_version_bumped: bool
    short_id_lost: bool


class Topology:
    """All known peers. `cache` shares decoded entries between the topologies of a simulation.

    `short_id` is the one that ourself had before, if it is to have that again.
    """

    def __init__(
        self,
        name: PeerName,
        nickname: str,
        uid: int,
        *,
        rng: Random,
        cache: MutableMapping[Pair, Entry] | None = None,
        short_id: int | None = None,
    ) -> None:
        self.short_ids = ShortIds()
        self._cache = cache
        self._peers: dict[PeerName, Entry] = {}
        self._known: dict[bytes, PeerName] = {}
        self._held: Counter[PeerName] = Counter()
        self.digest = 0
        # Nothing happened since the last collection that could leave anybody unreachable.
        self._settled = False
        # Names whose entries changed since the routes were last calculated.
        self.changed: set[PeerName] = set()
        self._name = name
        if short_id is None:
            short_id = self.short_ids.choose(rng)
        assert short_id is not None, "nobody claims one yet"
        self._put(Entry(name, nickname, uid, 0, short_id, True))

    # --- looking up ---

    @property
    def ourself(self) -> Entry:
        return self._peers[self._name]

    def get(self, name: PeerName) -> Entry | None:
        return self._peers.get(name)

    def names(self) -> KeysView[PeerName]:
        return self._peers.keys()

    def __len__(self) -> int:
        return len(self._peers)

    def knows(self, name: PeerName) -> bool:
        return name in self._peers

    def describes(self, name: PeerName) -> bool:
        """Whether more than the name is known."""
        entry = self._peers.get(name)
        return entry is not None and entry.uid != 0

    def nickname(self, name: PeerName) -> str:
        entry = self._peers.get(name)
        return "" if entry is None else entry.nickname

    def short_id(self, name: PeerName) -> int | None:
        entry = self._peers.get(name)
        return entry.short_id if entry is not None and entry.has_short_id else None

    @property
    def lacks_short_id(self) -> bool:
        """Whether a lower name owns the id that we announced."""
        return self.short_ids.owner(self.ourself.short_id) != self._name

    # --- our own entry ---

    def add_link(self, remote: PeerName, address: str, outbound: bool) -> None:
        """A connection joined the mesh; not established yet."""
        self._change_links({**self.ourself.links, remote: Link(remote, address, outbound, False)})

    def establish_link(self, remote: PeerName) -> None:
        """Our overlay works on this connection."""
        link = self.ourself.links[remote]
        self._change_links({**self.ourself.links, remote: link._replace(established=True)})

    def delete_link(self, remote: PeerName) -> None:
        """A connection is gone."""
        self._change_links({name: link for name, link in self.ourself.links.items() if name != remote})

    def _change_links(self, links: Mapping[PeerName, Link]) -> None:
        self._put(self.ourself.but(version=self.ourself.version + 1, links=links))

    def choose_short_id(self, rng: Random) -> bool:
        """Take a free id if there is one; tells whether ours changed."""
        chosen = self.short_ids.choose(rng)
        if chosen is None:
            return False
        self._put(self.ourself.but(version=self.ourself.version + 1, short_id=chosen))
        return True

    # --- others ---

    def introduce(self, name: PeerName, nickname: str, uid: int, short_id: int | None) -> None:
        """A peer that connected: recorded if it is unknown; what gossip said of a known one stays."""
        if name not in self._peers:
            self._put(Entry(name, nickname, uid, 0, short_id or 0, short_id is not None))

    def hold(self, name: PeerName) -> None:
        """A local connection refers to the peer: it is not collected."""
        self._held[name] += 1

    def release(self, name: PeerName) -> None:
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]
            self._settled = False

    def merge(self, data: bytes) -> Merge:
        """Apply an update. Raises GobError with nothing applied."""
        cut = split_pairs(data, self._known)
        if cut is None:
            entries = [_entry(peer) for peer in decode_stream(data)]
            described = {entry.name for entry in entries}
        else:
            entries = [self._decode(pair) for pair in cut.unknown]
            described = {*cut.known, *(entry.name for entry in entries)}
        new, bumped = self._apply(entries)
        return Merge(frozenset(new), frozenset(described), bumped, bool(new or bumped) and self.lacks_short_id)

    def matches(self, data: bytes) -> bool | None:
        """Whether a message about everybody says exactly what we know; None where it leaves out somebody we know.

        Nothing is decoded but what differs. Raises GobError.
        """
        cut = split_pairs(data, self._known)
        if cut is None:
            return None
        differing = {decode_pair(pair).name for pair in cut.unknown}
        if len(differing.union(cut.known)) < sum(1 for entry in self._peers.values() if entry.uid):
            return None
        return not differing

    def _decode(self, pair: Pair) -> Entry:
        if self._cache is not None:
            cached = self._cache.get(pair)
            if cached is not None:
                return cached
        entry = _entry(decode_pair(pair))
        if self._cache is not None:
            self._cache[pair] = entry
        return entry

    def _apply(self, entries: list[Entry]) -> tuple[set[PeerName], bool]:
        new: set[PeerName] = set()
        bumped = False
        for entry in entries:
            if entry.name == self._name:
                bumped = self._hear_of_ourself(entry) or bumped
            elif self._is_news(entry):
                new.add(entry.name)
                self._put(entry)
        for entry in entries:
            for remote in entry.links:
                if remote not in self._peers:
                    self._put(Entry(remote))
        return new, bumped

    def _hear_of_ourself(self, entry: Entry) -> bool:
        """Our former self is still known somewhere: pass its version, or nobody listens to us (§1.2)."""
        ours = self.ourself
        if entry.uid == ours.uid or not ours.version <= entry.version <= MAX_FORMER_VERSION:
            return False
        self._put(ours.but(version=entry.version + 1))
        return True

    def _is_news(self, entry: Entry) -> bool:
        known = self._peers.get(entry.name)
        if known is None:
            return True
        if entry.version != known.version:
            return entry.version > known.version
        if entry.uid != known.uid:
            return entry.uid > known.uid
        return entry.has_short_id and not known.has_short_id

    def _put(self, entry: Entry) -> None:
        old = self._peers.get(entry.name)
        if old is not None:
            self._known.pop(old.pair.summary, None)
            self.digest -= old.fingerprint
        self._claim(entry.name, old, entry)
        self._peers[entry.name] = entry
        self._known[entry.pair.summary] = entry.name
        self.digest = (self.digest + entry.fingerprint) & _MASK
        self.changed.add(entry.name)
        self._settled = False

    def _drop(self, entry: Entry) -> None:
        del self._peers[entry.name]
        self._known.pop(entry.pair.summary, None)
        self.digest = (self.digest - entry.fingerprint) & _MASK
        self._claim(entry.name, entry, None)
        self.changed.add(entry.name)

    def _claim(self, name: PeerName, old: Entry | None, new: Entry | None) -> None:
        """Follow a change of short id; an entry that keeps its own changes nobody's meaning."""
        before = old.short_id if old is not None and old.has_short_id else None
        after = new.short_id if new is not None and new.has_short_id else None
        if before == after:
            return
        if before is not None:
            self.short_ids.remove(before, name)
        if after is not None:
            self.short_ids.add(after, name)

    def collect(self) -> list[Entry]:
        """Forget every peer that no chain of listed links leads to and no local connection refers to."""
        if self._settled:
            return []
        self._settled = True
        reached = set(self._breadth_first(self._name, *self._held))
        gone = [entry for name, entry in self._peers.items() if name not in reached]
        for entry in gone:
            self._drop(entry)
        return gone

    # --- encoding ---

    def encode(self, names: Iterable[PeerName]) -> bytes:
        """The current entries of these peers as one update; unknown names are left out."""
        return encode_stream(self._messages(names))

    def encode_chunks(self, names: Iterable[PeerName], limit: int) -> Iterator[bytes]:
        """The same in updates of about `limit` bytes."""
        chunk: list[bytes] = []
        size = 0
        for message in self._messages(names):
            if chunk and size + len(message) > limit:
                yield encode_stream(chunk)
                chunk, size = [], 0
            chunk.append(message)
            size += len(message)
        if chunk:
            yield encode_stream(chunk)

    def encode_full(self, limit: int) -> Iterator[bytes]:
        """Everything, breadth-first from ourselves: a receiver that collects between two chunks loses nobody."""
        order = dict.fromkeys(self._breadth_first(self._name))
        order.update(dict.fromkeys(self._peers))
        return self.encode_chunks(order, limit)

    def _messages(self, names: Iterable[PeerName]) -> Iterator[bytes]:
        for name in names:
            entry = self._peers.get(name)
            if entry is not None:
                yield entry.messages

    def _breadth_first(self, *start: PeerName) -> Iterator[PeerName]:
        """Known peers by their distance from `start` over listed links, whoever lists them."""
        peers = self._peers
        reached = {name for name in start if name in peers}
        level = [peers[name] for name in reached]
        while level:
            yield from (entry.name for entry in level)
            found: list[Entry] = []
            for entry in level:
                if len(reached) == len(peers):
                    break
                for remote in entry.links.keys() - reached:
                    linked = peers.get(remote)
                    if linked is not None:
                        reached.add(remote)
                        found.append(linked)
            level = found


def _entry(peer: Described) -> Entry:
    entry = Entry(peer.name, peer.nickname, peer.uid, peer.version, peer.short_id, peer.has_short_id, peer.links)
    entry._pair = peer.pair
    return entry
