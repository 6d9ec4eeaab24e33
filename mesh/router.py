"""The mesh node: who is connected, what follows from it, and what others are told. No I/O, no clock of its own.

Every change of a connection runs through here, one at a time: admission (names, duplicates, limits), the own
topology entry, routes, gossip, the connection maker and the overlay. The shell (`mesh/tcp.py`) brings open
streams and dialled addresses, the simulator in the tests brings hundreds of routers and a virtual clock.
Source: mesh spec §6, §8, §9, §10, §12.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from random import Random

from mesh.config import LIMITS, MAX_PROTOCOL_VERSION, TIMING, Limits, MeshConfig, Timing
from mesh.connection import Connection, Wire
from mesh.errors import MeshError
from mesh.gossip import Channel, Channels
from mesh.handshake import Handshake
from mesh.maker import ConnectionMaker, DirectPeer
from mesh.messages import ExtensionTag, Tag
from mesh.names import PeerName, peer_label
from mesh.routes import Routes
from mesh.scheduler import Coalesced, Scheduler, Timer
from mesh.seams import ConnectionParams, Gossiper, Overlay, OverlayError
from mesh.status import ConnectionRow, MeshStatus, PeerLinkRow, PeerRow
from mesh.topology import Merge, Topology
from mesh.topology_gossip import EXTENSIONS_FEATURE, SUMMARY_EXTENSION, TopologyGossip, announces_summaries


class NeverAgainError(MeshError):
    """The address leads to ourselves, or to a peer with our name: dialling it again is no use."""


class SelfConnectionError(NeverAgainError):
    """The address leads to ourselves."""


def duplicates_kept(existing: int, new: int) -> tuple[bool, bool]:
    """Of two connections to one peer, by their uids: whether the existing one stays, whether the new one does (§6.3).

    The lower uid wins, so that both ends decide alike; equal ones both go.
    """
    return existing < new, new < existing


class _OverlayEvents:
    """One connection, as its overlay reports on it (`mesh.seams.ConnectionEvents`)."""

    __slots__ = ("_connection", "_router")

    def __init__(self, router: "Router", connection: Connection) -> None:
        self._router = router
        self._connection = connection

    def established(self) -> None:
        self._router.overlay_established(self._connection)

    def failed(self, error: Exception) -> None:
        self._connection.close(error)

    def send_control(self, tag: int, payload: bytes) -> None:
        if self._connection.active:
            self._connection.send(tag, payload)


class Router:
    """One mesh node. `entropy(n)` gives n secret random bytes; `dial(address, attempt)` starts a TCP connect."""

    def __init__(
        self,
        config: MeshConfig,
        *,
        uid: int,
        scheduler: Scheduler,
        rng: Random,
        entropy: Callable[[int], bytes],
        dial: Callable[[str, int], None],
        log: logging.Logger,
        timing: Timing = TIMING,
        limits: Limits = LIMITS,
        topology: Topology | None = None,
    ) -> None:
        self.config = config
        self._scheduler = scheduler
        self._rng = rng
        self._entropy = entropy
        self._log = log
        self._timing = timing
        self._limits = limits
        self.topology = topology or Topology(config.name, config.nickname, uid, rng=rng)
        self.routes = Routes(self.topology)
        self._connections: dict[PeerName, Connection] = {}
        self._introducing: set[Connection] = set()
        self._overlay: Overlay | None = None
        self.termination_count = 0
        self._topology_gossip = TopologyGossip(
            self, self.topology, scheduler=scheduler, rng=rng, timing=timing, limits=limits, log=log
        )
        self._channels = Channels(
            self, self._topology_gossip, scheduler=scheduler, rng=rng, timing=timing, limits=limits, log=log
        )
        self.maker = ConnectionMaker(
            self, self.topology, config, dial, scheduler=scheduler, rng=rng, timing=timing, limits=limits, log=log
        )
        self._recalculation = Coalesced(scheduler, timing.route_delay, self._recalculate)
        self._collection = Coalesced(scheduler, timing.collect_delay, self.collect)
        self._periodic: Timer | None = None
        self._stopped = False

    # --- life ---

    def attach_overlay(self, overlay: Overlay) -> None:
        """Say what carries frames; before `start`."""
        self._overlay = overlay

    @property
    def overlay(self) -> Overlay:
        assert self._overlay is not None, "attach_overlay comes before start"
        return self._overlay

    def start(self) -> None:
        """Begin periodic gossip and dialling."""
        self.routes.recalculate()
        self._periodic = self._scheduler.call_later(self._timing.periodic_gossip, self._gossip_periodically)
        self.maker.changed()

    def stop(self) -> None:
        """Close every connection and do nothing more."""
        self._stopped = True
        self.maker.stop()
        for connection in list(self.all_connections()):
            connection.close(MeshError("router is stopping"))
        for coalesced in (self._recalculation, self._collection):
            coalesced.cancel()
        self._topology_gossip.stop()
        if self._periodic is not None:
            self._periodic.cancel()

    def open_channel(self, name: str, user: Gossiper) -> Channel:
        """Register the user of a gossip channel."""
        return self._channels.open(name, user)

    def listen(self, listener: Callable[[PeerName, str, bytes], None]) -> None:
        """Be told what neighbours send of their own state, after it was taken in: whose, the channel, the message."""
        self._channels.listener = listener

    # --- what others look up ---

    @property
    def ourself(self) -> PeerName:
        return self.config.name

    @property
    def connections(self) -> Mapping[PeerName, Connection]:
        """Connections that are part of the mesh, by peer."""
        return self._connections

    # What forwarding asks, frame by frame (`overlay.seams.Topology`).

    def knows(self, name: PeerName) -> bool:
        return self.topology.knows(name)

    def names(self) -> Iterable[PeerName]:
        return self.topology.names()

    def unicast(self, destination: PeerName) -> PeerName | None:
        return self.routes.unicast.get(destination)

    def broadcast(self, source: PeerName) -> tuple[PeerName, ...]:
        return self.routes.broadcast(source)

    def nickname(self, name: PeerName) -> str:
        return self.topology.nickname(name)

    def short_id(self, name: PeerName) -> int | None:
        return self.topology.short_id(name)

    def all_connections(self) -> Iterable[Connection]:
        """Also those still being introduced."""
        yield from self._connections.values()
        yield from self._introducing

    def fresh_routes(self) -> Routes:
        """The routes, with nothing waiting to be recalculated."""
        self._recalculation.run_now()
        return self.routes

    # --- streams, from the shell ---

    def opened(self, wire: Wire, *, local: tuple[str, int], remote: tuple[str, int], attempt: int = 0) -> Connection:
        """A TCP stream is open; `attempt` is 0 for one we accepted, else which try of the target it is."""
        outbound = attempt > 0
        connection = Connection(
            self,
            wire,
            self._handshake(remote, outbound, attempt),
            scheduler=self._scheduler,
            timing=self._timing,
            limits=self._limits,
            log=self._log,
            local=local,
            remote=remote,
            outbound=outbound,
        )
        self._introducing.add(connection)
        if not outbound:
            connection.log("connection accepted")
            if len(self._introducing) > self._limits.unidentified:
                connection.close(MeshError(f"too many connections are being introduced ({len(self._introducing)})"))
                return connection
        connection.start()
        return connection

    def dial_failed(self, address: str, error: Exception) -> None:
        """A dialled address did not answer."""
        self.maker.unanswered(address, error)

    def connect(self, peers: Iterable[DirectPeer], *, replace: bool = False) -> None:
        """Make these addresses direct targets."""
        self.maker.add_direct(peers, replace=replace)

    def forget(self, peers: Iterable[str]) -> None:
        """Stop dialling these."""
        self.maker.forget(peers)

    def _handshake(self, remote: tuple[str, int], outbound: bool, attempt: int) -> Handshake:
        config = self.config
        passwords = config.passwords
        if passwords and outbound:
            # A failed attempt may have been the wrong one of several valid passwords: the next one leads next.
            turn = (attempt - 1) % len(passwords)
            passwords = passwords[turn:] + passwords[:turn]
        return Handshake(
            outbound=outbound,
            name=config.name,
            nickname=config.nickname,
            uid=self.topology.ourself.uid,
            conn_id=self._rng.getrandbits(64),
            short_id=self.topology.ourself.short_id,
            trusted=self._trusts(remote[0]),
            extra={**self.overlay.features(), EXTENSIONS_FEATURE: SUMMARY_EXTENSION},
            passwords=passwords,
            min_version=config.min_protocol_version,
            max_version=MAX_PROTOCOL_VERSION,
            key_seed=self._entropy(32) if passwords else b"",
        )

    def _trusts(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in subnet for subnet in self.config.trusted_subnets)

    # --- connections, from themselves (ConnectionOwner) ---

    def introduced(self, connection: Connection) -> None:
        """A peer said who it is: admit it to the mesh or refuse it (§6.2, steps 3 to 10)."""
        features = connection.features
        assert features is not None
        connection.speaks_summaries = announces_summaries(features)
        self.maker.identified(connection)
        self._check_identity(connection)
        name = connection.name
        known = self.topology.get(name)
        if known is None and connection.outbound and not self.maker.is_direct(connection.address):
            raise MeshError(f"Found unknown remote name: {connection.label} at {connection.address}")
        restarted = known is not None and known.uid not in (0, features.uid)
        reachable = name in self.routes.unicast
        self.topology.introduce(name, features.nickname, features.uid, features.short_id)
        if self.topology.lacks_short_id:
            self._choose_short_id()
        self.topology.hold(name)
        try:
            connection.log(f"connection ready; using protocol version {connection.version}")
            self._prepare_overlay(connection)
            self._check_room(connection)
        except MeshError:
            self.topology.release(name)
            raise
        self._introducing.discard(connection)
        self._connections[name] = connection
        connection.activate()
        self.topology.add_link(name, connection.address, connection.outbound)
        what = " (new peer)" if known is None else " (restarted peer)" if restarted else ""
        connection.log(f"connection added{what}")
        if restarted or not reachable:
            self._channels.greet(connection)
        self._recalculation.request()
        self._topology_gossip.announce({name})
        self.maker.connected(connection)
        if connection.overlay is not None and connection.active:
            connection.overlay.confirm()

    def _check_identity(self, connection: Connection) -> None:
        features = connection.features
        assert features is not None
        ours = self.topology.ourself
        if features.name != ours.name:
            return
        if features.uid == ours.uid:
            raise SelfConnectionError("cannot connect to ourself")
        ourselves = peer_label(ours.name, ours.nickname)
        raise NeverAgainError(f'local "{ourselves}" and remote "{connection.label}" peer names collision')

    def _prepare_overlay(self, connection: Connection) -> None:
        features = connection.features
        assert features is not None
        trusted = features.trusted and self._trusts(connection.remote[0])
        params = ConnectionParams(
            remote=features.name,
            remote_nickname=features.nickname,
            connection_uid=connection.uid,
            session_key=None if trusted else connection.session_key,
            local_address=connection.local,
            remote_address=connection.remote,
            outbound=connection.outbound,
            features=features.raw,
        )
        connection.encrypted_overlay = params.session_key is not None
        try:
            connection.overlay = self.overlay.prepare_connection(params, _OverlayEvents(self, connection))
        except OverlayError as error:
            raise MeshError(str(error)) from error

    def _check_room(self, connection: Connection) -> None:
        """Duplicates (§6.3), then the limit (§6.4), then our own bound on neighbours."""
        ours = self.topology.ourself
        existing = self._connections.get(connection.name)
        if existing is not None:
            us = peer_label(ours.name, ours.nickname)
            error = MeshError(f"Multiple connections to {connection.label} added to {us}")
            keep_existing, keep_new = duplicates_kept(existing.uid, connection.uid)
            if not keep_existing:
                existing.close(error)
            if not keep_new:
                raise error
        limit = self.config.conn_limit
        if limit and len(self._connections) >= limit:
            raise MeshError(f"Connection limit reached ({limit})")
        degree = self.config.mesh_degree
        if degree is None or connection.outbound or not connection.speaks_summaries:
            return
        enough = degree * self._limits.degree_slack
        if len(self._connections) >= enough and connection.name in self.routes.unicast_all:
            raise MeshError(f"Connection limit reached ({enough} of --mesh-degree {degree})")

    def message(self, connection: Connection, tag: int, payload: bytes) -> None:
        """One message of a peer that is part of the mesh."""
        if Tag.GOSSIP <= tag <= Tag.GOSSIP_BROADCAST:
            self._channels.received(connection, tag, payload)
        elif tag == Tag.OVERLAY_CONTROL or Tag.SLEEVE_ESTABLISHED <= tag <= Tag.SLEEVE_MTU_VERIFIED:
            if connection.overlay is not None:
                connection.overlay.control_message(tag, payload)
        elif ExtensionTag.DIGEST <= tag <= ExtensionTag.WANT:
            self._topology_gossip.on_extension(connection, tag, payload)
        else:
            connection.log(f"ignoring unknown tag {tag}", logging.DEBUG)

    def flush(self, connection: Connection) -> None:
        """A slow connection has room again."""
        self._topology_gossip.flush(connection)
        self._channels.flush(connection)

    def closed(self, connection: Connection, error: Exception) -> None:
        """A connection is over: the mesh learns of it, the target is tried again later (§6.2, step 12)."""
        self._introducing.discard(connection)
        if connection.features is not None and self._connections.get(connection.name) is connection:
            name = connection.name
            del self._connections[name]
            self._channels.forget(connection)
            self.topology.delete_link(name)
            self.topology.release(name)
            connection.log("connection deleted")
            if not self._stopped:
                self.collect()
                self._recalculation.request()
                self._topology_gossip.announce()
        if connection.overlay is not None:
            connection.overlay.stop()
        if not isinstance(error, SelfConnectionError):
            self.termination_count += 1
        self.maker.ended(connection, error, never_again=isinstance(error, NeverAgainError))

    def overlay_established(self, connection: Connection) -> None:
        """The overlay carries frames on this connection."""
        if connection.established or not connection.active:
            return
        connection.established = True
        self.topology.establish_link(connection.name)
        connection.log("connection fully established")
        self._recalculation.request()
        self._topology_gossip.announce()

    # --- topology ---

    def merged(self, merge: Merge) -> None:
        """An update was applied: what follows from it happens soon, not in the receive path (§8.2)."""
        if merge.our_version_bumped:
            self._topology_gossip.announce()
        if merge.new or merge.our_version_bumped:
            self._recalculation.request()
            self.maker.changed()
        if merge.short_id_lost:
            self._choose_short_id()
        self._collection.request()

    def _choose_short_id(self) -> None:
        if self.topology.choose_short_id(self._rng):
            self._topology_gossip.announce()
            self._recalculation.request()

    def collect(self) -> None:
        """Forget the peers that no chain of links leads to (§8.5)."""
        gone = self.topology.collect()
        for entry in gone:
            self._log.info("Removed unreachable peer %s", peer_label(entry.name, entry.nickname))
            self._topology_gossip.collected(entry.name, entry.uid, entry.version)
            if self._overlay is not None:
                self._overlay.peer_gone(entry.name)
        if gone:
            self._recalculation.request()
            self.maker.changed()
            if self.topology.lacks_short_id:
                self._choose_short_id()

    def _recalculate(self) -> None:
        self.routes.recalculate()
        if self._overlay is not None:
            self._overlay.routes_changed()

    def _gossip_periodically(self) -> None:
        self._periodic = self._scheduler.call_later(self._timing.periodic_gossip, self._gossip_periodically)
        self._channels.periodic()

    # --- status ---

    def status(self, format_time: Callable[[float], str]) -> MeshStatus:
        """What to show; `format_time` turns the scheduler's time into a date."""
        config = self.config
        routes = self.fresh_routes()
        broadcasts = sorted(routes.cached_broadcasts())
        return MeshStatus(
            protocol_min_version=config.min_protocol_version,
            protocol_max_version=MAX_PROTOCOL_VERSION,
            encryption=config.encrypted,
            peer_discovery=config.discovery,
            name=config.name,
            nickname=config.nickname,
            port=config.port,
            peers=tuple(self._peer_rows()),
            unicast_routes=tuple(sorted(routes.unicast.items())),
            broadcast_routes=tuple((source, tuple(routes.broadcast(source))) for source in broadcasts),
            connections=tuple(self._connection_rows(format_time)),
            termination_count=self.termination_count,
            targets=self.maker.targets,
            overlay_diagnostics=self.overlay.diagnostics(),
            trusted_subnets=tuple(str(subnet) for subnet in config.trusted_subnets),
        )

    def _peer_rows(self) -> Iterator[PeerRow]:
        ourself = self.ourself
        for name in sorted(self.topology.names(), key=lambda name: (name != ourself, name)):
            entry = self.topology.get(name)
            assert entry is not None
            nickname = self.topology.nickname
            links = tuple(
                PeerLinkRow(link.remote, nickname(link.remote), link.address, link.outbound, link.established)
                for link in sorted(entry.links.values(), key=lambda link: link.remote)
            )
            yield PeerRow(name, entry.nickname, entry.uid, entry.short_id, entry.version, links)

    def _connection_rows(self, format_time: Callable[[float], str]) -> Iterator[ConnectionRow]:
        for name in sorted(self._connections):
            connection = self._connections[name]
            attrs = connection.overlay.attrs() if connection.overlay is not None else {"name": "none"}
            info = f"{attrs.get('name', 'none')!s:<6} {connection.label}"
            if self.config.encrypted:
                info = f"{'encrypted' if connection.encrypted_overlay else 'unencrypted':<11} {info}"
            state = "established" if connection.established else "pending"
            yield ConnectionRow(
                address=connection.address,
                outbound=connection.outbound,
                state=state,
                info=info,
                attrs=attrs,
                peer=name,
                bytes_in=connection.bytes_in,
                bytes_out=connection.bytes_out,
            )
        yield from self.maker.rows(format_time)
