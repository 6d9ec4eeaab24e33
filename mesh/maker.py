"""Which addresses we dial, and when: direct targets, discovered ones, back-off, and how many neighbours are enough.

A target is an address. Who answered there is remembered by name, so that a node which has a connection to that
peer (whoever dialled it) does not dial again. With a bounded degree a node dials only until it has that many
neighbours; beyond it only what it cannot reach over relays. Source: mesh spec §13, §18.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from random import Random
from typing import Protocol

from mesh.config import Limits, MeshConfig, Timing
from mesh.connection import Connection
from mesh.names import PeerName
from mesh.routes import Routes
from mesh.scheduler import Coalesced, Scheduler, Timer
from mesh.status import ConnectionRow
from mesh.topology import Topology


class TargetState(Enum):
    """What is going on with an address."""

    WAITING = auto()
    ATTEMPTING = auto()
    CONNECTED = auto()
    SUSPENDED = auto()


@dataclass(slots=True)
class Target:
    """One address (`ip:port`) that we dial. Times are the scheduler's; `try_after` None means never."""

    address: str
    try_after: float | None
    interval: float
    state: TargetState = TargetState.WAITING
    last_error: str | None = None
    attempts: int = 0
    # Who answered here last.
    name: PeerName | None = None


@dataclass(frozen=True, slots=True)
class DirectPeer:
    """A peer as the operator typed it, with the addresses it resolved to."""

    typed: str
    addresses: tuple[str, ...]
    explicit_port: bool


class MakerMesh(Protocol):
    """What the connection maker sees of the router."""

    @property
    def connections(self) -> Mapping[PeerName, Connection]: ...

    @property
    def routes(self) -> Routes: ...

    def all_connections(self) -> Iterable[Connection]:
        """Also those that are still being introduced."""


Dial = Callable[[str, int], None]
# Neighbours are drawn from this many times as many peers with the fewest.
_CHOICE = 4
_SPARE = 2


class ConnectionMaker:
    """Keeps the targets and has them dialled. `dial(address, attempt)` starts one attempt and returns."""

    def __init__(
        self,
        mesh: MakerMesh,
        topology: Topology,
        config: MeshConfig,
        dial: Dial,
        *,
        scheduler: Scheduler,
        rng: Random,
        timing: Timing,
        limits: Limits,
        log: logging.Logger,
    ) -> None:
        self._limits = limits
        self._mesh = mesh
        self._topology = topology
        self._config = config
        self._dial = dial
        self._scheduler = scheduler
        self._rng = rng
        self._timing = timing
        self._log = log
        self._direct: dict[str, DirectPeer] = {}
        self._targets: dict[str, Target] = {}
        self._evaluation = Coalesced(scheduler, timing.maker_delay, self.evaluate)
        self._alarm: Timer | None = None
        self._quiet_since = scheduler.now()

    # --- what the operator wants ---

    def add_direct(self, peers: Iterable[DirectPeer], *, replace: bool) -> None:
        """Dial these; with `replace` only these. A waiting retry of one that was named again is made now."""
        if replace:
            self._direct.clear()
        for peer in peers:
            self._direct[peer.typed] = peer
            for address in peer.addresses:
                target = self._targets.get(address)
                if target is not None and target.state is not TargetState.ATTEMPTING:
                    target.try_after = self._scheduler.now()
                    target.interval = self._timing.retry_initial
        self.changed()

    def forget(self, typed: Iterable[str]) -> None:
        """Stop dialling these; a connection that exists stays."""
        for name in typed:
            self._direct.pop(name, None)
        self.changed()

    @property
    def targets(self) -> tuple[str, ...]:
        """Direct peers as typed."""
        return tuple(self._direct)

    def tried_direct_peers(self) -> int:
        """How many direct peers are not ourselves or refused for good (the default quorum counts them)."""
        return sum(
            any(target is None or target.try_after is not None for target in map(self._targets.get, peer.addresses))
            for peer in self._direct.values()
        )

    def is_direct(self, address: str) -> bool:
        """Whether an address is a direct target now: only there may an unknown peer answer."""
        return any(address in peer.addresses for peer in self._direct.values())

    # --- what happens ---

    def changed(self) -> None:
        """Topology, connections or wishes changed: evaluate soon."""
        self._quiet_since = self._scheduler.now()
        self._evaluation.request()

    def identified(self, connection: Connection) -> None:
        """A peer said its name: remember it at the address we dialled."""
        if connection.outbound:
            target = self._targets.get(connection.address)
            if target is not None:
                target.name = connection.name

    def connected(self, connection: Connection) -> None:
        """A connection joined the mesh."""
        target = self._targets.get(connection.address) if connection.outbound else None
        if target is not None:
            target.state = TargetState.CONNECTED
            target.last_error = None
        self.changed()

    def failed(self, address: str, error: Exception) -> None:
        """Dialling failed, or an attempt ended before it became a connection."""
        target = self._targets.get(address)
        if target is not None:
            target.last_error = str(error)
            self._retry_later(target)
        self.changed()

    def ended(self, connection: Connection, error: Exception, *, never_again: bool) -> None:
        """A connection ended, whatever its stage; `never_again`: its address is no use to dial."""
        target = self._targets.get(connection.address) if connection.outbound else None
        if target is not None:
            target.last_error = str(error)
            if never_again:
                target.state = TargetState.WAITING
                target.try_after = None
            else:
                self._retry_after_end(target)
        self.changed()

    def _retry_after_end(self, target: Target) -> None:
        now = self._scheduler.now()
        if target.try_after is not None and now - target.try_after > self._timing.retry_reset:
            target.state = TargetState.WAITING
            target.interval = self._timing.retry_initial
            target.try_after = now
        else:
            self._retry_later(target)

    def _retry_later(self, target: Target) -> None:
        target.state = TargetState.WAITING
        if target.try_after is not None:
            target.try_after = self._scheduler.now() + target.interval * self._rng.uniform(0.5, 1.5)
        target.interval = min(target.interval * self._timing.retry_factor, self._timing.retry_max)

    # --- deciding ---

    def evaluate(self) -> None:
        """Bring the targets in line with what is wanted, dial what is due, set the alarm for the next one."""
        self._evaluation.cancel()
        wanted = self._wanted()
        for address in [address for address in self._targets if address not in wanted]:
            if self._targets[address].state is not TargetState.ATTEMPTING:
                del self._targets[address]
        now = self._scheduler.now()
        for address in sorted(wanted):
            if address not in self._targets:
                self._targets[address] = Target(address, now, self._timing.retry_initial)
        connected = {connection.address for connection in self._mesh.all_connections()}
        busy = {target.address for target in self._targets.values() if target.state is TargetState.ATTEMPTING}
        due: list[Target] = []
        for target in self._targets.values():
            if target.address in busy:
                continue
            if target.address in connected:
                target.state = TargetState.CONNECTED
            elif self._suspended(target):
                target.state = TargetState.SUSPENDED
            else:
                target.state = TargetState.WAITING
                if target.try_after is not None and target.try_after <= now:
                    due.append(target)
        self._dial_due(due, now, len(busy))
        self._set_alarm(now)

    def _wanted(self) -> set[str]:
        wanted = {address for peer in self._direct.values() for address in peer.addresses}
        if self._config.discovery:
            wanted |= self._discovered()
        return wanted

    def _discovered(self) -> set[str]:
        """Addresses of peers that somebody has a connection to and we have not."""
        connections = self._mesh.connections
        ourself = self._topology.ourself.name
        missing = [name for name in self._topology.names() if name not in connections and name != ourself]
        if not missing:
            return set()
        if self._config.mesh_degree is not None:
            return self._few_discovered(set(missing))
        absent = set(missing)
        port = self._config.port
        return {address for _, address in self._addresses(absent, port)}

    def _few_discovered(self, missing: set[PeerName]) -> set[str]:
        """With a bounded degree: as many random ones as neighbours are lacking, kept until they are tried."""
        degree = self._config.mesh_degree or 0
        lacking = degree - len(self._mesh.connections)
        if lacking <= 0:
            return {target.address for target in self._targets.values() if target.state is TargetState.ATTEMPTING}
        willing = {name for name in missing if self._has_room(name)}
        by_peer = dict(self._addresses(willing, self._config.port))
        known = set(by_peer.values())
        kept = {address for address in self._targets if address in known and not self.is_direct(address)}
        # One that failed waits for its next try; meanwhile somebody else takes its place.
        promising = [address for address in kept if self._targets[address].last_error is None]
        more = max(0, lacking - len(promising))
        # Of the peers with the fewest neighbours, random ones: degrees even out, and the graph stays random.
        fewest = sorted(by_peer, key=lambda name: (self._degree_of(name), name))[: _CHOICE * more]
        candidates = sorted({by_peer[name] for name in fewest} - kept)
        return kept | set(self._rng.sample(candidates, min(more, len(candidates))))

    def _degree_of(self, name: PeerName) -> int:
        entry = self._topology.get(name)
        return 0 if entry is None else len(entry.links)

    def _has_room(self, name: PeerName) -> bool:
        """Whether a peer with our own bound would accept one more neighbour, with some to spare for a race."""
        bound = (self._config.mesh_degree or 0) * self._limits.degree_slack
        return self._degree_of(name) < bound - _SPARE

    def _addresses(self, absent: set[PeerName], port: int) -> Iterator[tuple[PeerName, str]]:
        """(peer, address) for each listed link to one of the absent peers."""
        for name in self._topology.names():
            entry = self._topology.get(name)
            if entry is None:
                continue
            for link in entry.links.values():
                if link.remote in absent and link.address:
                    address = link.address if link.outbound else _with_port(link.address, port)
                    yield link.remote, address

    def _suspended(self, target: Target) -> bool:
        """Whether we are connected to whoever is at this address, without having dialled it."""
        if target.name is not None and target.name in self._mesh.connections:
            return True
        host = _host(target.address)
        implied = not any(target.address in peer.addresses and peer.explicit_port for peer in self._direct.values())
        return implied and any(
            not connection.outbound and connection.remote[0] == host for connection in self._mesh.connections.values()
        )

    def _dial_due(self, due: list[Target], now: float, attempting: int) -> None:
        degree = self._config.mesh_degree
        if degree is None:
            for target in due:
                self._attempt(target)
            return
        self._rng.shuffle(due)
        room = degree - len(self._mesh.connections) - attempting
        reached = self._reachable_hosts() if due else {}
        settled = now - self._quiet_since >= self._timing.want_timeout
        for target in due:
            name = target.name or reached.get(_host(target.address))
            reachable = name is not None and name in self._mesh.routes.unicast_all
            if reachable and name is not None and not self._has_room(name):
                continue
            if room > 0 or (not reachable and settled):
                self._attempt(target)
                room -= 1
                settled = False

    def _reachable_hosts(self) -> dict[str, PeerName]:
        """Hosts of peers that relays reach."""
        reach = set(self._mesh.routes.unicast_all)
        return {_host(address): name for name, address in self._addresses(reach, self._config.port)}

    def _attempt(self, target: Target) -> None:
        limit = self._config.conn_limit
        if limit and sum(1 for _ in self._mesh.all_connections()) >= limit:
            self.failed(target.address, ConnectionError(f"Connection limit reached ({limit})"))
            return
        target.state = TargetState.ATTEMPTING
        target.attempts += 1
        self._log.info("->[%s] attempting connection", target.address)
        self._dial(target.address, target.attempts)

    def _set_alarm(self, now: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        waiting = [
            target.try_after
            for target in self._targets.values()
            if target.state is TargetState.WAITING and target.try_after is not None
        ]
        if waiting:
            # A target that is due but held back (bounded degree) is looked at again when things have settled.
            delay = max(min(waiting) - now, 0.0) or self._timing.want_timeout
            self._alarm = self._scheduler.call_later(delay, self.evaluate)

    def stop(self) -> None:
        """Dial nothing any more."""
        self._evaluation.cancel()
        if self._alarm is not None:
            self._alarm.cancel()

    # --- status ---

    def rows(self, format_time: Callable[[float], str]) -> Iterator[ConnectionRow]:
        """The rows of targets that are not connected."""
        for target in sorted(self._targets.values(), key=lambda target: target.address):
            error = target.last_error
            if target.state is TargetState.ATTEMPTING:
                state = "connecting" if error is None else "retrying"
                yield ConnectionRow(target.address, True, state, error or "", None)
            elif target.state is TargetState.WAITING:
                until = "never" if target.try_after is None else format_time(target.try_after)
                if error is None:
                    yield ConnectionRow(target.address, True, "waiting", f"until: {until}", None)
                else:
                    yield ConnectionRow(target.address, True, "failed", f"{error}, retry: {until}", None)


def _host(address: str) -> str:
    """The host part of `ip:port` or `[ip6]:port`."""
    return address.rpartition(":")[0].strip("[]")


def _with_port(address: str, port: int) -> str:
    """The same host at another port; an address that is none is kept as it is."""
    host = _host(address)
    try:
        version = ip_address(host).version
    except ValueError:
        return address
    return f"[{host}]:{port}" if version == 6 else f"{host}:{port}"
