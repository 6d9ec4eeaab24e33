"""Gossip channels: who gets what is handed in, relayed or kept for later.

A channel is a name in every message. Ours have a user (topology, and whoever registered); every other name gets
a surrogate that relays without understanding, so that a mesh can carry channels of which we know nothing.
Outgoing messages wait in each connection's outbox until the end of the loop turn, or for as long as a slow
connection needs. Source: mesh spec §11.
"""

import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

from mesh.config import Limits, Timing
from mesh.connection import Connection
from mesh.errors import MeshError
from mesh.messages import (
    Tag,
    decode_gossip,
    decode_gossip_unicast,
    encode_gossip,
    encode_gossip_unicast,
)
from mesh.names import PeerName, format_peer_name
from mesh.outbox import Pending
from mesh.routes import Routes
from mesh.scheduler import Coalesced, Scheduler
from mesh.seams import Gossiper, GossipError
from mesh.surrogate import Surrogate
from mesh.topology_gossip import TopologyGossip

TOPOLOGY_CHANNEL = "topology"


class Neighbours(Protocol):
    """The connections and routes that gossip travels on."""

    @property
    def ourself(self) -> PeerName: ...

    @property
    def connections(self) -> Mapping[PeerName, Connection]: ...

    def fresh_routes(self) -> Routes:
        """The routes, recalculated first if that was waiting."""

    @property
    def routes(self) -> Routes:
        """The routes as they were last calculated."""


class Channel:
    """One channel, as its user speaks on it (`mesh.seams.Gossip`)."""

    __slots__ = ("_channels", "name")

    def __init__(self, channels: "Channels", name: str) -> None:
        self._channels = channels
        self.name = name

    def unicast(self, destination: PeerName, message: bytes) -> None:
        self._channels.unicast(self.name, destination, message)

    def broadcast(self, message: bytes) -> None:
        self._channels.broadcast(self.name, message)

    def neighbours(self, message: bytes) -> None:
        self._channels.spread(self.name, message, exclude=None)


class Channels:
    """All gossip channels of this node."""

    def __init__(
        self,
        mesh: Neighbours,
        topology: TopologyGossip,
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
        # Told what a neighbour sent of its own state: its name, the channel, the message.
        self.listener: Callable[[PeerName, str, bytes], None] | None = None
        self._users: dict[str, Gossiper] = {}
        self._surrogates: dict[str, Surrogate] = {}
        self._waiting: set[Connection] = set()
        self._flush = Coalesced(scheduler, 0.0, self._flush_waiting)

    def open(self, name: str, user: Gossiper) -> Channel:
        """Register the user of a channel; one user a name."""
        if name in self._users or name == TOPOLOGY_CHANNEL:
            raise ValueError(f"gossip channel {name!r} has a user already")
        self._users[name] = user
        self._surrogates.pop(name, None)
        return Channel(self, name)

    # --- receiving ---

    def received(self, connection: Connection, tag: int, payload: bytes) -> None:
        """A message with tag 4, 5 or 6. Raises MeshError where the connection must end."""
        try:
            if tag == Tag.GOSSIP:
                self._on_gossip(connection, payload)
            elif tag == Tag.GOSSIP_BROADCAST:
                self._on_broadcast(connection, payload)
            else:
                self._on_unicast(payload)
        except GossipError as error:
            raise MeshError(str(error)) from error

    def _on_gossip(self, connection: Connection, payload: bytes) -> None:
        name, sender, data = decode_gossip(payload)
        if name == TOPOLOGY_CHANNEL:
            self._topology.on_gossip(connection, data)
        else:
            news = self._user(name).on_gossip(data)
            if news is not None:
                self.spread(name, news, exclude=sender)
        if self.listener is not None:
            self.listener(connection.name, name, data)

    def _on_broadcast(self, connection: Connection, payload: bytes) -> None:
        name, source, data = decode_gossip(payload)
        if name == TOPOLOGY_CHANNEL:
            self._topology.on_broadcast(connection, source, data)
            return
        news = self._user(name).on_broadcast(source, data)
        if news is not None:
            self._relay_broadcast(name, source, news)

    def _on_unicast(self, payload: bytes) -> None:
        name, origin, destination, data = decode_gossip_unicast(payload)
        if destination != self._mesh.ourself:
            try:
                self._send_unicast(destination, payload)
            except GossipError as error:
                self._log.info("%s", error)
            return
        if name == TOPOLOGY_CHANNEL:
            raise GossipError(f"unexpected topology gossip unicast from {format_peer_name(origin)}")
        self._user(name).on_unicast(origin, data)

    def _user(self, name: str) -> Gossiper:
        user = self._users.get(name) or self._surrogates.get(name)
        if user is not None:
            return user
        if len(self._surrogates) >= self._limits.channels:
            raise GossipError(f"too many unknown gossip channels: {len(self._surrogates)}, refused {name[:64]!r}")
        surrogate = Surrogate(self._scheduler, self._timing.surrogate_memory, self._limits)
        self._surrogates[name] = surrogate
        return surrogate

    # --- sending ---

    def unicast(self, name: str, destination: PeerName, message: bytes) -> None:
        """Send to one peer. Raises GossipError where there is no way to it."""
        self._send_unicast(destination, encode_gossip_unicast(name, self._mesh.ourself, destination, message))

    def broadcast(self, name: str, message: bytes) -> None:
        """Send along our own broadcast tree."""
        self._relay_broadcast(name, self._mesh.ourself, message)

    def spread(self, name: str, message: bytes, exclude: PeerName | None) -> None:
        """Hand a message to random neighbours, never back to `exclude`."""
        for connection in self._random_neighbours(exclude):
            connection.outbox.add_gossip(name, message)
            self._wait(connection)

    def periodic(self) -> None:
        """Every channel's whole state to random neighbours."""
        self._topology.periodic()
        for name in self._users:
            for connection in self._random_neighbours(None):
                connection.outbox.add_whole(name)
                self._wait(connection)

    def greet(self, connection: Connection) -> None:
        """Every channel's whole state to one new connection."""
        self._topology.greet(connection)
        for name in self._users:
            connection.outbox.add_whole(name)
        self._wait(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone, and what waited for it."""
        self._waiting.discard(connection)
        self._topology.forget(connection)

    def flush(self, connection: Connection) -> None:
        """Send what waits for this connection, unless its wire is full."""
        if connection.paused or not connection.active:
            return
        gossip, broadcasts = connection.outbox.take()
        ourself = self._mesh.ourself
        for name, pending in gossip.items():
            for message in self._encoded(name, pending):
                connection.send(Tag.GOSSIP, encode_gossip(name, ourself, message))
        for (name, source), pending in broadcasts.items():
            for message in pending.messages:
                connection.send(Tag.GOSSIP_BROADCAST, encode_gossip(name, source, message))

    def _encoded(self, name: str, pending: Pending) -> list[bytes]:
        if not pending.whole:
            return pending.messages
        user = self._users.get(name)
        state = user.gossip() if user is not None else None
        return [] if state is None else [state]

    def _flush_waiting(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for connection in sorted(waiting, key=lambda connection: connection.address):
            self.flush(connection)

    def _wait(self, connection: Connection) -> None:
        self._waiting.add(connection)
        self._flush.request()

    def _send_unicast(self, destination: PeerName, payload: bytes) -> None:
        hop = self._mesh.fresh_routes().unicast_all.get(destination)
        if hop is None:
            raise GossipError(f"unknown relay destination: {format_peer_name(destination)}")
        connection = self._mesh.connections.get(hop)
        if connection is None:
            raise GossipError(f"unable to find connection to relay peer {format_peer_name(hop)}")
        connection.send(Tag.GOSSIP_UNICAST, payload)

    def _relay_broadcast(self, name: str, source: PeerName, message: bytes) -> None:
        for hop in self._mesh.fresh_routes().broadcast_all(source):
            connection = self._mesh.connections.get(hop)
            if connection is not None:
                connection.outbox.add_broadcast(name, source, message)
                self._wait(connection)

    def _random_neighbours(self, exclude: PeerName | None) -> list[Connection]:
        names = self._mesh.fresh_routes().random_neighbours(self._rng, exclude)
        connections = (self._mesh.connections.get(name) for name in names)
        return [connection for connection in connections if connection is not None]
