"""What waits to be sent on one connection: merged while it waits, encoded at the moment of sending.

A slow link therefore carries fewer and fresher messages, and what one neighbour can make us hold is bounded.
Topology waits as names, other channels as their messages; too many of those become "the whole state".
Source: mesh spec §11.4.
"""

from dataclasses import dataclass, field

from mesh.config import Limits
from mesh.names import PeerName


@dataclass(slots=True)
class Pending:
    """Messages of one channel; `whole` stands for the channel's state at the time of sending."""

    messages: list[bytes] = field(default_factory=list)
    size: int = 0
    whole: bool = False


class Outbox:
    """The pending gossip of one connection, by channel, and pending broadcasts by channel and source."""

    __slots__ = ("_limits", "broadcasts", "gossip", "names", "notices")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.names: set[PeerName] = set()
        self.notices: set[PeerName] = set()
        self.gossip: dict[str, Pending] = {}
        self.broadcasts: dict[tuple[str, PeerName], Pending] = {}

    def __bool__(self) -> bool:
        return bool(self.names or self.notices or self.gossip or self.broadcasts)

    def add_gossip(self, channel: str, message: bytes) -> None:
        """One more message to a neighbour; identical ones and ones covered by a whole state are merged."""
        pending = self.gossip.setdefault(channel, Pending())
        if not pending.whole:
            self._append(pending, message)

    def add_whole(self, channel: str) -> None:
        """The channel's whole state, whatever it is when it is sent."""
        self.gossip[channel] = Pending(whole=True)

    def add_broadcast(self, channel: str, source: PeerName, message: bytes) -> None:
        """One more broadcast of `source`; past the bound the whole state takes its place as plain gossip."""
        key = (channel, source)
        pending = self.broadcasts.setdefault(key, Pending())
        self._append(pending, message)
        if pending.whole:
            del self.broadcasts[key]
            self.add_whole(channel)

    def _append(self, pending: Pending, message: bytes) -> None:
        if message in pending.messages:
            return
        pending.messages.append(message)
        pending.size += len(message)
        if len(pending.messages) > self._limits.pending_messages or pending.size > self._limits.pending_bytes:
            pending.messages.clear()
            pending.size = 0
            pending.whole = True

    def take_topology(self) -> tuple[set[PeerName], set[PeerName]]:
        """The names whose entries, and the names whose notices, wait; both are empty afterwards."""
        names, notices = self.names, self.notices
        self.names, self.notices = set(), set()
        return names, notices

    def take(self) -> tuple[dict[str, Pending], dict[tuple[str, PeerName], Pending]]:
        """Gossip and broadcasts that wait, which are then no longer waiting."""
        gossip, broadcasts = self.gossip, self.broadcasts
        self.gossip, self.broadcasts = {}, {}
        return gossip, broadcasts
