"""What policy refused, for people and for metrics: which connection, whose pods, which policies isolated.

A connection that tries again is told once a minute. Figures are bounded: ports beyond the first 200 count as `other`.
Pure; time is an argument. Source: NPC spec §1.5, §7.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from npc.packet import TCP, Packet, parse
from npc.plan import Direction

PREFIX = "wnpc:"
_KEPT = 1000
_FLOWS = 10_000
_AGAIN = 60.0
_PORTS = 200
_COUNTED = {6: "tcp", 17: "udp", 132: "sctp"}
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Judged:
    """Who is on an end of a connection, and the policies that isolate it there."""

    name: str
    policies: tuple[str, ...] = ()


# Says of an address who it is, as the one that a direction isolates.
Who = Callable[[Direction, bytes], Judged]


@dataclass(frozen=True, slots=True)
class Drop:
    """A refused connection. `at` in seconds since 1970; `isolated` is the pod whose policies refused it."""

    at: float
    direction: Direction
    packet: Packet
    source: str
    destination: str
    policies: tuple[str, ...]

    @property
    def isolated(self) -> str:
        """The pod on whose side it was refused."""
        return self.destination if self.direction is Direction.INGRESS else self.source

    def __str__(self) -> str:
        way = self.direction.name.lower()
        why = f" ({way} {self.isolated}, policies: {', '.join(self.policies) or 'none'})"
        return f"{self.packet} blocked by Weave NPC.{why}"

    def document(self) -> dict[str, object]:
        """For programs."""
        packet = self.packet
        return {
            "time": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "direction": self.direction.name.lower(),
            "protocol": packet.protocol_name,
            "source": packet.end(packet.source, packet.source_port),
            "destination": packet.end(packet.destination, packet.port),
            "sourceName": self.source,
            "destinationName": self.destination,
            "policies": list(self.policies),
            "text": str(self),
        }


class Drops:
    """The last ones, and how many there were."""

    def __init__(self, who: Who) -> None:
        self.blocked: Counter[tuple[str, str]] = Counter()
        self.last: deque[Drop] = deque(maxlen=_KEPT)
        self._who = who
        self._told: OrderedDict[tuple[Direction, bytes, bytes, int, int], float] = OrderedDict()
        self._ports: set[int] = set()

    def see(self, prefix: str, packet: bytes, now: float) -> Drop | None:
        """A logged packet; the drop if it is one to tell of. `now` in seconds since 1970."""
        seen = parse(packet)
        letter = prefix.removeprefix(PREFIX)[:1]
        if not prefix.startswith(PREFIX) or seen is None or letter not in (way.value for way in Direction):
            return None
        direction = Direction(letter)
        if seen.protocol in _COUNTED and seen.opens:
            self.blocked[_COUNTED[seen.protocol], self._label(seen.port)] += 1
        if (seen.protocol == TCP and not seen.opens) or not self._new(direction, seen, now):
            return None
        drop = self._drop(direction, seen, now)
        self.last.append(drop)
        return drop

    def between(self, source: bytes, destination: bytes) -> list[Drop]:
        """The last drops from one address to another, oldest first."""
        return [one for one in self.last if (one.packet.source, one.packet.destination) == (source, destination)]

    def _drop(self, direction: Direction, seen: Packet, now: float) -> Drop:
        here, there = self._who(Direction.EGRESS, seen.source), self._who(Direction.INGRESS, seen.destination)
        policies = there.policies if direction is Direction.INGRESS else here.policies
        return Drop(now, direction, seen, here.name, there.name, policies)

    def _label(self, port: int) -> str:
        if port not in self._ports:
            if len(self._ports) >= _PORTS:
                return OTHER
            self._ports.add(port)
        return str(port)

    def _new(self, direction: Direction, seen: Packet, now: float) -> bool:
        flow = (direction, seen.source, seen.destination, seen.protocol, seen.port)
        before = self._told.get(flow)
        if before is not None and now - before < _AGAIN:
            return False
        self._told[flow] = now
        self._told.move_to_end(flow)
        while len(self._told) > _FLOWS:
            self._told.popitem(last=False)
        return True
