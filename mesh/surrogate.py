"""The stand-in for a gossip channel that this node does not use: it relays and understands nothing.

Gossip is relayed once: a message seen in the last 30 s is not passed on again. Both its age and its size are
bounded, the oldest messages go first. Source: mesh spec §11.5.
"""

from collections import OrderedDict

from mesh.config import Limits
from mesh.names import PeerName
from mesh.scheduler import Scheduler


class Surrogate:
    """One unknown channel (`mesh.seams.Gossiper`)."""

    __slots__ = ("_limits", "_memory", "_scheduler", "_seen", "_size")

    def __init__(self, scheduler: Scheduler, memory: float, limits: Limits) -> None:
        self._scheduler = scheduler
        self._memory = memory
        self._limits = limits
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._size = 0

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        """Nobody here to read it."""

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes | None:
        return message

    def on_gossip(self, message: bytes) -> bytes | None:
        if message in self._seen:
            return None
        now = self._scheduler.now()
        self._seen[message] = now
        self._size += len(message)
        self._prune(now)
        return message

    def gossip(self) -> bytes | None:
        return None

    def _prune(self, now: float) -> None:
        while self._seen:
            message, seen = next(iter(self._seen.items()))
            too_much = len(self._seen) > self._limits.surrogate_messages or self._size > self._limits.surrogate_bytes
            if not too_much and now - seen <= self._memory:
                return
            del self._seen[message]
            self._size -= len(message)
