"""A mesh of router cores on virtual time: streams with latency, partitions, deaths; deterministic by its seed.

Bytes of one stream arrive in order, as TCP gives them; streams overtake each other at random. A cut path loses
what is under way and both ends notice only by silence, or at once where `reset` says so.
"""

import heapq
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from random import Random

from mesh.config import LIMITS, TIMING, Limits, MeshConfig, Timing
from mesh.connection import Connection
from mesh.errors import MeshError
from mesh.maker import DirectPeer
from mesh.names import PeerName
from mesh.router import Router
from mesh.seams import AttrValue, ConnectionEvents, ConnectionParams
from mesh.topology import Entry, Topology
from mesh.topology_wire import Pair


class Timer:
    """A call on virtual time."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """Virtual time (`mesh.scheduler.Scheduler`)."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Timer]] = []

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._queue, (self._now + delay, next(self._order), timer))
        return timer

    def run(self, seconds: float, until: Callable[[], bool] | None = None, check: float = 0.25) -> bool:
        """Let time pass; with `until`, only until it holds (looked at every `check` seconds)."""
        end = self._now + seconds
        look = self._now
        while self._queue and self._queue[0][0] <= end:
            if until is not None and self._queue[0][0] >= look:
                if until():
                    return True
                look = self._queue[0][0] + check
            when, _, timer = heapq.heappop(self._queue)
            self._now = max(self._now, when)
            if timer.call is not None:
                call, timer.call = timer.call, None
                call()
        self._now = end
        return until() if until is not None else True


class SimOverlay:
    """An overlay that establishes a connection a moment after both ends confirmed it."""

    def __init__(self, clock: Clock, latency: float) -> None:
        self._clock = clock
        self._latency = latency

    def features(self) -> Mapping[str, str]:
        return {"Overlays": "sleeve"}

    def prepare_connection(self, params: ConnectionParams, events: ConnectionEvents) -> "SimOverlayConnection":
        return SimOverlayConnection(self._clock, self._latency, events)

    def routes_changed(self) -> None:
        """Nothing to forward here."""

    def peer_gone(self, name: PeerName) -> None:
        """Nothing to forget here."""

    def diagnostics(self) -> Mapping[str, object]:
        return {"sleeve": None}


class SimOverlayConnection:
    def __init__(self, clock: Clock, latency: float, events: ConnectionEvents) -> None:
        self._clock = clock
        self._latency = latency
        self._events = events
        self._stopped = False

    def confirm(self) -> None:
        self._clock.call_later(2 * self._latency, self._establish)

    def _establish(self) -> None:
        if not self._stopped:
            self._events.established()

    def control_message(self, tag: int, payload: bytes) -> None:
        """The simulated overlay has none."""

    def stop(self) -> None:
        self._stopped = True

    def attrs(self) -> Mapping[str, AttrValue]:
        return {"name": "sleeve", "mtu": 1438}


class SimWire:
    """One end of a stream (`mesh.connection.Wire`)."""

    def __init__(self, network: "Network", owner: "Node") -> None:
        self.network = network
        self.owner = owner
        self.other: SimWire | None = None
        self.connection: Connection | None = None
        self.open = True
        self._arrival = 0.0

    def send(self, data: bytes) -> None:
        if self.open:
            self.network.bytes += len(data)
            self._deliver(lambda other: other.connection.receive(data) if other.connection else None)

    def abort(self) -> None:
        if self.open:
            self.open = False
            self._deliver(lambda other: other.ended())

    def unsent(self) -> int:
        return 0

    def ended(self) -> None:
        """The other end reset the stream."""
        self.open = False
        if self.connection is not None:
            self.connection.lost("read tcp: connection reset by peer")

    def _deliver(self, call: Callable[["SimWire"], object]) -> None:
        network, other = self.network, self.other
        assert other is not None
        self._arrival = max(self._arrival, network.clock.now() + network.latency())

        def arrive() -> None:
            if other.owner.alive and not network.is_cut(self.owner, other.owner) and (other.open):
                call(other)

        network.clock.call_later(self._arrival - network.clock.now(), arrive)


class Node:
    """One router and its address."""

    def __init__(self, network: "Network", number: int, uid: int, **changes: object) -> None:
        self.network = network
        self.number = number
        self.address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:6783"
        self.alive = True
        self.wires: list[SimWire] = []
        rng = Random(network.rng.getrandbits(64))
        config = MeshConfig(name=PeerName(number), nickname=f"n{number}", **changes)  # type: ignore[arg-type]
        self.router = Router(
            config,
            uid=uid,
            scheduler=network.clock,
            rng=rng,
            entropy=rng.randbytes,
            dial=self._dial,
            log=network.log,
            timing=network.timing,
            limits=network.limits,
            topology=Topology(config.name, config.nickname, uid, rng=rng, cache=network.cache),
        )
        self.router.attach_overlay(SimOverlay(network.clock, network.base_latency))
        self.router.start()

    def connect(self, others: Iterable["Node"]) -> None:
        self.router.connect([DirectPeer(o.address, (o.address,), True) for o in others])

    def _dial(self, address: str, attempt: int) -> None:
        self.network.clock.call_later(2 * self.network.latency(), lambda: self._arrive(address, attempt))

    def _arrive(self, address: str, attempt: int) -> None:
        if not self.alive:
            return
        other = self.network.by_address.get(address)
        if other is None or not other.alive or self.network.is_cut(self, other):
            self.router.dial_failed(address, MeshError(f"dial tcp :0->{address}: connect: connection refused"))
            return
        ours, theirs = SimWire(self.network, self), SimWire(self.network, other)
        ours.other, theirs.other = theirs, ours
        port = 1024 + self.network.rng.randrange(60000)
        local, remote = (_host(self.address), port), (_host(address), 6783)
        self.wires.append(ours)
        other.wires.append(theirs)
        theirs.connection = other.router.opened(theirs, local=remote, remote=local)
        ours.connection = self.router.opened(ours, local=local, remote=remote, attempt=attempt)
        self.wires = [wire for wire in self.wires if wire.open]

    def die(self) -> None:
        """Gone at once; the kernel resets its streams."""
        for wire in self.wires:
            wire.abort()
        self.alive = False
        self.router.stop()
        del self.network.nodes[self.number]
        del self.network.by_address[self.address]


def _host(address: str) -> str:
    return address.rpartition(":")[0]


class Network:
    """All nodes, and what lies between them."""

    def __init__(
        self, seed: int = 1, *, latency: float = 0.01, timing: Timing = TIMING, limits: Limits = LIMITS
    ) -> None:
        self.rng = Random(seed)
        self.clock = Clock()
        self.base_latency = latency
        self.timing = timing
        self.limits = limits
        self.nodes: dict[int, Node] = {}
        self.by_address: dict[str, Node] = {}
        self.cache: dict[Pair, Entry] | None = {}
        self.groups: dict[int, int] = {}
        self.bytes = 0
        self.log = logging.getLogger("sim")
        self._uids = itertools.count(1)

    def add(self, number: int, **changes: object) -> Node:
        node = Node(self, number, next(self._uids), **changes)
        self.nodes[number] = node
        self.by_address[node.address] = node
        return node

    def latency(self) -> float:
        return self.base_latency * self.rng.uniform(0.5, 1.5)

    def partition(self, *groups: Iterable[int]) -> None:
        """Only nodes of one group reach each other; no groups: everybody does."""
        self.groups = {number: index for index, group in enumerate(groups) for number in group}

    def is_cut(self, one: Node, other: Node) -> bool:
        return self.groups.get(one.number) != self.groups.get(other.number)

    def agree(self) -> bool:
        """Every node knows every living node, in the same words, and has a route to it."""
        digests = {node.router.topology.digest for node in self.nodes.values()}
        sizes = {len(node.router.topology) for node in self.nodes.values()}
        return (
            len(digests) == 1
            and sizes == {len(self.nodes)}
            and all(len(node.router.fresh_routes().unicast) == len(self.nodes) for node in self.nodes.values())
        )
