"""The channel `topology`: how peers, and the links between them, become known everywhere.

Towards a Weave Net 2.8 neighbour entries travel as it expects them: changes at once, everything to a new
neighbour, and every 30 s what changed lately with a rotating slice of the rest, so that a large mesh does not
send all it knows again and again. Towards a neighbour of our own kind only notices travel (name, UID, version: 22
bytes), and whoever lacks an entry asks for it, once; every 30 s a digest of 12 bytes says "nothing new", and where
two digests differ the two lists of notices are compared. Both kinds mix freely: an entry is an entry.

Messages of our own (only after both announced the feature `Extensions: summary`; 2.8 ignores unknown tags):
DIGEST u64 digest, u32 count; SUMMARY u8 whole, then records; WANT names of 6 bytes each.
Source: mesh spec §8, §11.3, §18.
"""

import logging
import struct
from collections.abc import Iterable, Mapping
from random import Random
from typing import Protocol

from mesh.config import Limits, Timing
from mesh.connection import Connection
from mesh.errors import ProtocolError
from mesh.features import Features
from mesh.messages import ExtensionTag, Tag, encode_gossip
from mesh.names import PeerName
from mesh.routes import Routes
from mesh.scheduler import Coalesced, Scheduler
from mesh.topology import Merge, Topology

TOPOLOGY_CHANNEL = "topology"
EXTENSIONS_FEATURE = "Extensions"
SUMMARY_EXTENSION = "summary"

_DIGEST = struct.Struct(">QI")
_RECORD = struct.Struct(">6sQQ")
_NAME_SIZE = 6
# Entries a frame carries at most, in bytes before sealing: well under the 10 MiB at which 2.8 hangs up.
_CHUNK = 4 << 20
_BATCH = 512


class TopologyMesh(Protocol):
    """What this channel needs of the router."""

    @property
    def connections(self) -> Mapping[PeerName, Connection]: ...

    @property
    def routes(self) -> Routes: ...

    def merged(self, merge: Merge) -> None:
        """An update was applied: routes, collection, dialling and short ids follow."""


def announces_summaries(features: Features) -> bool:
    """Whether a peer announced our extension."""
    return SUMMARY_EXTENSION in features.raw.get(EXTENSIONS_FEATURE, "").split(" ")


class TopologyGossip:
    """Everything this node sends and receives about topology."""

    def __init__(
        self,
        mesh: TopologyMesh,
        topology: Topology,
        *,
        scheduler: Scheduler,
        rng: Random,
        timing: Timing,
        limits: Limits,
        log: logging.Logger,
    ) -> None:
        self._mesh = mesh
        self._topology = topology
        self._scheduler = scheduler
        self._rng = rng
        self._timing = timing
        self._limits = limits
        self._log = log
        self._announcing: set[PeerName] = set()
        self._announce = Coalesced(scheduler, timing.announce_delay, self._send_announcement)
        self._announced: list[float] = []
        self._waiting: set[Connection] = set()
        self._flush = Coalesced(scheduler, timing.relay_delay, self._flush_waiting)
        self._changed_since_periodic: set[PeerName] = set()
        self._rotation: list[PeerName] = []
        self._wanted: dict[PeerName, tuple[int, int, float]] = {}
        self._collected: dict[PeerName, tuple[int, int, float]] = {}
        # Newer versions of known entries, and who has them: asked for after a moment, the newest only.
        self._newer: dict[PeerName, tuple[int, int, Connection]] = {}
        self._ask = Coalesced(scheduler, timing.want_delay, self._ask_for_newer)

    # --- what this node itself has to say ---

    def announce(self, also: Iterable[PeerName] = ()) -> None:
        """Our own entry changed: tell the neighbours soon, with the entries of `also` (new link ends)."""
        self._announcing.update(also)
        self._announce.request(self._announce_delay())

    def _announce_delay(self) -> float:
        """One second; more while our links flap, so that the mesh hears of the outcome only."""
        now = self._scheduler.now()
        self._announced = [at for at in self._announced if now - at < self._timing.flap_window]
        extra = max(0, len(self._announced) - self._timing.flap_free) * self._timing.flap_step
        return min(self._timing.announce_delay + extra, self._timing.announce_delay_max)

    def _send_announcement(self) -> None:
        self._announced.append(self._scheduler.now())
        names = {self._topology.ourself.name, *self._announcing}
        self._announcing.clear()
        self._spread(names, exclude=None)

    def periodic(self) -> None:
        """The 30 s round: a digest to our own kind, changes and a slice of the rest to 2.8."""
        names = self._slice()
        for connection in self._random_neighbours(None):
            if connection.speaks_summaries:
                self._send_digest(connection)
            else:
                connection.outbox.names |= names
                self._wait(connection)
        self._changed_since_periodic.clear()
        self._forget_old()

    def _slice(self) -> set[PeerName]:
        everybody = list(self._topology.names())
        if len(everybody) <= self._limits.whole_topology:
            return set(everybody)
        if not self._rotation:
            self._rotation = sorted(everybody)
            self._rng.shuffle(self._rotation)
        size = -(-len(everybody) // self._limits.rotation)
        part, self._rotation = self._rotation[:size], self._rotation[size:]
        return {self._topology.ourself.name, *part, *self._changed_since_periodic}

    def greet(self, connection: Connection) -> None:
        """All we know, to a new neighbour."""
        if connection.speaks_summaries:
            self._send_summary(connection, self._topology.names(), whole=True)
            return
        connection.outbox.take_topology()
        for chunk in self._topology.encode_full(_CHUNK):
            self._send_entries(connection, chunk)

    def forget(self, connection: Connection) -> None:
        """The connection is gone; what was asked of it may be asked of others."""
        self._waiting.discard(connection)

    def stop(self) -> None:
        """Say nothing any more."""
        self._announce.cancel()
        self._ask.cancel()
        self._flush.cancel()

    def collected(self, name: PeerName, uid: int, version: int) -> None:
        """A peer was collected: do not learn the same entry again from a slower neighbour."""
        self._collected[name] = (version, uid, self._scheduler.now())

    # --- receiving ---

    def on_gossip(self, connection: Connection, data: bytes) -> None:
        """Entries from a neighbour: what was new to us travels on. Raises TopologyError."""
        merge = self._merge(data)
        if merge.new:
            self._spread(set(merge.new), exclude=connection.name)

    def on_broadcast(self, connection: Connection, source: PeerName, data: bytes) -> None:
        """The legacy form of older releases: every described entry travels on along the source's tree."""
        merge = self._merge(data)
        names = merge.described
        if not names:
            return
        message = encode_gossip(TOPOLOGY_CHANNEL, source, self._topology.encode(names))
        for hop in self._mesh.routes.broadcast_all(source):
            neighbour = self._mesh.connections.get(hop)
            if neighbour is not None:
                neighbour.send(Tag.GOSSIP_BROADCAST, message)

    def _merge(self, data: bytes) -> Merge:
        merge = self._topology.merge(data)
        for name in merge.new:
            self._wanted.pop(name, None)
            self._collected.pop(name, None)
        self._changed_since_periodic |= merge.new
        self._mesh.merged(merge)
        return merge

    def on_extension(self, connection: Connection, tag: int, payload: bytes) -> None:
        """A message of our own kind's. Raises ProtocolError on a malformed one."""
        if tag == ExtensionTag.DIGEST:
            self._on_digest(connection, payload)
        elif tag == ExtensionTag.SUMMARY:
            self._on_summary(connection, payload)
        else:
            self._on_want(connection, payload)

    def _on_digest(self, connection: Connection, payload: bytes) -> None:
        if len(payload) != _DIGEST.size:
            raise ProtocolError(f"topology digest of {len(payload)} bytes instead of {_DIGEST.size}")
        digest, _count = _DIGEST.unpack(payload)
        if digest != self._topology.digest:
            self._send_summary(connection, self._topology.names(), whole=True)

    def _on_summary(self, connection: Connection, payload: bytes) -> None:
        if not payload or (len(payload) - 1) % _RECORD.size:
            raise ProtocolError(f"topology summary of {len(payload)} bytes is not whole records of {_RECORD.size}")
        whole = bool(payload[0])
        now = self._scheduler.now()
        listed: set[PeerName] = set()
        wanted: list[bytes] = []
        theirs_older: set[PeerName] = set()
        topology = self._topology
        ourself = topology.ourself.name
        for raw, uid, version in _RECORD.iter_unpack(memoryview(payload)[1:]):
            name = PeerName(int.from_bytes(raw, "big"))
            listed.add(name)
            entry = topology.get(name)
            if entry is None or entry.uid == 0:
                # A whole list brings everybody on the way to a peer as well: nobody on it is without a path.
                echo = not whole and self._is_echo(name, version, uid)
                if not echo and self._worth_asking(name, version, uid, now):
                    wanted.append(raw)
            elif (version, uid) > (entry.version, entry.uid):
                # Our own name in a former run is asked for as well: its entry tells us the version to pass.
                if name != ourself or uid != entry.uid:
                    self._note_newer(name, version, uid, connection)
            elif (version, uid) < (entry.version, entry.uid):
                theirs_older.add(name)
        self._send_want(connection, wanted)
        if whole:
            theirs_older.update(name for name in self._described() if name not in listed)
            # Notices, not entries: of everybody who could send it an entry, the peer asks one.
            connection.outbox.notices |= theirs_older
            if theirs_older:
                self._wait(connection)

    def _note_newer(self, name: PeerName, version: int, uid: int, connection: Connection) -> None:
        noted = self._newer.get(name)
        if noted is None or (version, uid) > noted[:2]:
            self._newer[name] = (version, uid, connection)
            self._ask.request()

    def _ask_for_newer(self) -> None:
        newer, self._newer = self._newer, {}
        now = self._scheduler.now()
        wanted: dict[Connection, list[bytes]] = {}
        for name, (version, uid, connection) in newer.items():
            entry = self._topology.get(name)
            known = (0, 0) if entry is None else (entry.version, entry.uid)
            if (version, uid) > known and connection.active and self._worth_asking(name, version, uid, now):
                wanted.setdefault(connection, []).append(name.to_bytes(_NAME_SIZE, "big"))
        for connection, names in wanted.items():
            self._send_want(connection, names)

    @staticmethod
    def _send_want(connection: Connection, names: list[bytes]) -> None:
        for start in range(0, len(names), _BATCH):
            connection.send(ExtensionTag.WANT, b"".join(names[start : start + _BATCH]))

    def _is_echo(self, name: PeerName, version: int, uid: int) -> bool:
        """Whether this is an entry that we collected a moment ago, told by somebody who has not yet."""
        collected = self._collected.get(name)
        return collected is not None and (version, uid) <= collected[:2]

    def _worth_asking(self, name: PeerName, version: int, uid: int, now: float) -> bool:
        asked = self._wanted.get(name)
        if asked is not None and (version, uid) <= asked[:2] and now - asked[2] < self._timing.want_timeout:
            return False
        self._wanted[name] = (version, uid, now)
        return True

    def _on_want(self, connection: Connection, payload: bytes) -> None:
        if len(payload) % _NAME_SIZE:
            raise ProtocolError(f"topology want of {len(payload)} bytes is not whole names of {_NAME_SIZE}")
        names = (payload[at : at + _NAME_SIZE] for at in range(0, len(payload), _NAME_SIZE))
        connection.outbox.names.update(PeerName(int.from_bytes(raw, "big")) for raw in names)
        self.flush(connection)

    # --- sending ---

    def _spread(self, names: set[PeerName], exclude: PeerName | None) -> None:
        """Pass on what is new: entries to 2.8 by its weights, notices to our own kind.

        Notices go to neighbours drawn alike: by weight, one that lies on few paths would often be left out by all.
        """
        for connection in self._random_neighbours(exclude):
            if not connection.speaks_summaries:
                connection.outbox.names |= names
                self._wait(connection)
        connections = self._mesh.connections.items()
        kin = [connection for name, connection in connections if connection.speaks_summaries and name != exclude]
        for connection in self._rng.sample(kin, min(self._mesh.routes.fanout(), len(kin))):
            connection.outbox.notices |= names
            self._wait(connection)

    def _random_neighbours(self, exclude: PeerName | None) -> list[Connection]:
        connections = self._mesh.connections
        chosen = self._mesh.routes.random_neighbours(self._rng, exclude)
        return [connections[name] for name in chosen if name in connections]

    def _wait(self, connection: Connection) -> None:
        self._waiting.add(connection)
        self._flush.request()

    def _flush_waiting(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for connection in sorted(waiting, key=lambda connection: connection.address):
            self.flush(connection)

    def flush(self, connection: Connection) -> None:
        """Send what waits for this connection, unless its wire is full."""
        if connection.paused or not connection.active:
            return
        names, notices = connection.outbox.take_topology()
        for chunk in self._topology.encode_chunks(names, _CHUNK):
            self._send_entries(connection, chunk)
        if notices:
            self._send_summary(connection, notices, whole=False)

    def _send_entries(self, connection: Connection, data: bytes) -> None:
        connection.send(Tag.GOSSIP, encode_gossip(TOPOLOGY_CHANNEL, self._topology.ourself.name, data))

    def _send_digest(self, connection: Connection) -> None:
        connection.send(ExtensionTag.DIGEST, _DIGEST.pack(self._topology.digest, len(self._topology)))

    def _send_summary(self, connection: Connection, names: Iterable[PeerName], *, whole: bool) -> None:
        parts = [bytes((whole,))]
        for name in names:
            entry = self._topology.get(name)
            if entry is not None and entry.uid:
                parts.append(_RECORD.pack(name.to_bytes(_NAME_SIZE, "big"), entry.uid, entry.version))
        if whole or len(parts) > 1:
            connection.send(ExtensionTag.SUMMARY, b"".join(parts))

    def _described(self) -> Iterable[PeerName]:
        return (name for name in self._topology.names() if self._topology.describes(name))

    def _forget_old(self) -> None:
        now = self._scheduler.now()
        timing = self._timing
        for memory, age in ((self._wanted, timing.want_timeout), (self._collected, timing.collected_memory)):
            for name in [name for name, (_, _, at) in memory.items() if now - at > age]:
                del memory[name]
