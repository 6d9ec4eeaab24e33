"""Which addresses we dial, and when: direct targets, discovered ones, back-off, and how many neighbours are enough.

A target is an address. Who answered there is remembered by name, so that a node which has a connection to that
peer (whoever dialled it) does not dial again. Back-off is for those that answer and refuse; an address that is silent
is asked again every few seconds, and at once when somebody else reaches it. With a bounded degree a node dials only
until it has that many neighbours; beyond it only what it cannot reach over relays. Source: mesh spec §13, §18.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from math import inf
from random import Random
from typing import Protocol

from mesh.config import Limits, MeshConfig, Timing
from mesh.connection import Connection
from mesh.errors import SilenceError
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
    """One address (`ip:port`) that we dial. Times are the scheduler's; `try_after` None means never.

    `interval` is the back-off; an attempt before `told_after` is one that the log leaves out, `quiet`.
    """

    address: str
    try_after: float | None
    interval: float
    state: TargetState = TargetState.WAITING
    last_error: str | None = None
    attempts: int = 0
    told_after: float = 0.0
    quiet: bool = False
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
        self._wanted: set[str] = set()
        # Given with a port: who called from there need not be who listens there.
        self._explicit: set[str] = set()
        self._discovered: set[str] = set()
        self._news = True
        self._evaluation = Coalesced(scheduler, timing.maker_delay, self.evaluate)
        self._alarm: Timer | None = None
        self._alarm_at = inf
        self._waiting = 0
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
                    self._retry_now(target)
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
        self._news = True
        self._evaluate_soon()

    def _evaluate_soon(self) -> None:
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

    def unanswered(self, address: str, error: Exception) -> None:
        """Dialling failed."""
        target = self._targets.get(address)
        level = logging.DEBUG if target is not None and target.quiet else logging.INFO
        self._log.log(level, "->[%s] error during connection attempt: %s", address, error)
        if target is not None:
            target.last_error = str(error)
            self._retry_later(target, silent=True)
        if target is None or target.try_after is None or self._config.mesh_degree is not None:
            self._evaluate_soon()
        else:
            self._wake(target.try_after)

    def ended(self, connection: Connection, error: Exception, *, never_again: bool) -> None:
        """A connection ended, whatever its stage; `never_again`: its address is no use to dial."""
        target = self._targets.get(connection.address) if connection.outbound else None
        if target is not None:
            target.last_error = str(error)
            if never_again:
                target.state = TargetState.WAITING
                target.try_after = None
            else:
                self._retry_after_end(target, silent=isinstance(error, SilenceError))
        self.changed()

    def _retry_after_end(self, target: Target, *, silent: bool) -> None:
        now = self._scheduler.now()
        if target.try_after is not None and now - target.try_after > self._timing.retry_reset:
            target.state = TargetState.WAITING
            self._retry_now(target)
        else:
            self._retry_later(target, silent=silent)

    def _retry_now(self, target: Target) -> None:
        target.interval = self._timing.retry_initial
        target.try_after = target.told_after = self._scheduler.now()

    def _retry_later(self, target: Target, *, silent: bool = False) -> None:
        target.state = TargetState.WAITING
        if target.try_after is None:
            return
        now = self._scheduler.now()
        if not target.quiet:
            target.told_after = now + target.interval * self._rng.uniform(0.5, 1.5)
            target.interval = min(target.interval * self._timing.retry_factor, self._timing.retry_max)
        target.try_after = target.told_after
        if silent:
            target.try_after = min(target.try_after, now + self._patience() * self._rng.uniform(0.5, 1.5))

    def _patience(self) -> float:
        """The mean time between two attempts at an address that does not answer, in seconds."""
        return max(self._timing.retry_silent, self._timing.retry_spacing * self._waiting)

    # --- deciding ---

    def evaluate(self) -> None:
        """Bring the targets in line with what is wanted, dial what is due, set the alarm for the next one."""
        self._evaluation.cancel()
        wanted = self._look_around()
        for address in [address for address in self._targets if address not in wanted]:
            if self._targets[address].state is not TargetState.ATTEMPTING:
                del self._targets[address]
        now = self._scheduler.now()
        for address in sorted(wanted):
            if address not in self._targets:
                self._targets[address] = Target(address, now, self._timing.retry_initial)
        connected = {connection.address for connection in self._mesh.all_connections()}
        callers = {one.remote[0] for one in self._mesh.connections.values() if not one.outbound}
        busy = {target.address for target in self._targets.values() if target.state is TargetState.ATTEMPTING}
        due: list[Target] = []
        for target in self._targets.values():
            if target.address in busy:
                continue
            if target.address in connected:
                target.state = TargetState.CONNECTED
            elif self._suspended(target, callers):
                target.state = TargetState.SUSPENDED
            else:
                target.state = TargetState.WAITING
                if target.try_after is not None and target.try_after <= now:
                    due.append(target)
        self._dial_due(due, now, len(busy))
        self._set_alarm(now)

    def _look_around(self) -> set[str]:
        """The addresses that are wanted."""
        bounded = self._config.mesh_degree is not None
        if not (self._news or bounded):
            return self._wanted
        self._news = False
        self._wanted = {address for peer in self._direct.values() for address in peer.addresses}
        self._explicit = {
            address for peer in self._direct.values() if peer.explicit_port for address in peer.addresses
        }
        if self._config.discovery:
            discovered = self._discover()
            if not bounded:
                # Somebody reaches again who did not answer us.
                for address in discovered - self._discovered:
                    target = self._targets.get(address)
                    if target is not None and target.state is TargetState.WAITING and target.try_after is not None:
                        self._retry_now(target)
            self._discovered = discovered
            self._wanted |= discovered
        return self._wanted

    def _discover(self) -> set[str]:
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

    def _suspended(self, target: Target, callers: set[str]) -> bool:
        """Whether we are connected to whoever is at this address, without having dialled it."""
        if target.name is not None and target.name in self._mesh.connections:
            return True
        return target.address not in self._explicit and _host(target.address) in callers

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
            target.last_error = f"Connection limit reached ({limit})"
            target.quiet = False
            self._retry_later(target)
            return
        target.state = TargetState.ATTEMPTING
        target.attempts += 1
        target.quiet = self._scheduler.now() < target.told_after
        level = logging.DEBUG if target.quiet else logging.INFO
        self._log.log(level, "->[%s] attempting connection", target.address)
        self._dial(target.address, target.attempts)

    def _set_alarm(self, now: float) -> None:
        self._cancel_alarm()
        waiting = [
            target.try_after
            for target in self._targets.values()
            if target.state is TargetState.WAITING and target.try_after is not None
        ]
        self._waiting = len(waiting)
        if waiting:
            # A target that is due but held back (bounded degree) is looked at again when things have settled.
            first = min(waiting)
            self._wake(first if first > now else now + self._timing.want_timeout)

    def _wake(self, at: float) -> None:
        """Evaluate then, if not before; not for every one of many targets by itself."""
        if at < self._alarm_at:
            self._cancel_alarm()
            self._alarm_at = at
            delay = max(at - self._scheduler.now(), self._timing.maker_pause)
            self._alarm = self._scheduler.call_later(delay, self.evaluate)

    def _cancel_alarm(self) -> None:
        self._alarm_at = inf
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def stop(self) -> None:
        """Dial nothing any more."""
        self._evaluation.cancel()
        self._cancel_alarm()

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
