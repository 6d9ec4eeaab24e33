"""One table's gossip: what arrives is merged, what we change is said, once a turn of the event loop.

Peers who hold the same table say the same again and again, but for the time: what is known to hold no news, as long as
nothing here changes, is not decoded. The table is encoded once after each change.
Source: DNS spec §3, §4; §14 (F2, F4).
"""

import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from dns.entries import MAX_SKEW, Entry, merged
from dns.gossip_wire import Family, Message, decode, encode, encode_entries, seal, unseal
from dns.table import NameTable, Received
from mesh.gob import GobError
from mesh.names import PeerName, format_peer_name
from mesh.seams import Gossip, GossipError

_MOST_HEARD = 32


class NameChannel:
    """The user of one channel (`mesh.seams.Gossiper`). `soon(call)` makes a call at the end of the turn."""

    def __init__(
        self,
        family: Family,
        table: NameTable,
        now: Callable[[], int],
        soon: Callable[[Callable[[], None]], Any],
        log: logging.Logger,
    ) -> None:
        self._family = family
        self._table = table
        self._now = now
        self._soon = soon
        self._log = log
        self._gossip: Gossip | None = None
        self._pending: list[Entry] = []
        # The table's entries, encoded, and digests of entries without news; both of this generation of the table.
        self._generation = -1
        self._whole: bytes | None = None
        self._heard: set[bytes] = set()
        # Seconds that a peer's clock is ahead of ours, of those with whom it cost a message.
        self.skews: dict[PeerName, int] = {}

    def speak(self, gossip: Gossip) -> None:
        """Where to speak."""
        self._gossip = gossip

    def say(self, entries: list[Entry]) -> None:
        """Broadcast entries of ours, together with what else is said in this turn."""
        if entries and not self._pending:
            self._soon(self._flush)
        self._pending += entries

    def _flush(self) -> None:
        entries, self._pending = merged(self._pending), []
        if self._gossip is not None:
            self._gossip.broadcast(encode(self._family, Message(self._now(), entries)))

    # --- what arrives ---

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        """Nobody sends any."""

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes | None:
        theirs = self._read(message, source)
        if theirs is None:
            return None
        received = self._receive(theirs)
        if not received.kept:
            return None
        if received.kept == theirs.entries:
            return message
        return encode(self._family, Message(theirs.timestamp, merged(received.kept)))

    def on_gossip(self, message: bytes) -> bytes | None:
        cut = unseal(message) if self._family is Family.V4 else None
        digest = b"" if cut is None else blake2b(cut[1], digest_size=16).digest()
        self._follow()
        if cut is not None and digest in self._heard and abs(cut[0] - self._now()) <= MAX_SKEW:
            return None
        theirs = self._read(message, None)
        if theirs is None:
            return None
        received = self._receive(theirs)
        if cut is not None and not (received.news or received.ours or received.strangers):
            if len(self._heard) >= _MOST_HEARD:
                self._heard.pop()
            self._heard.add(digest)
        return encode(self._family, Message(self._now(), received.news)) if received.news else None

    def gossip(self) -> bytes | None:
        """The whole table. An empty one is said too: Weave Net does, and shows so that it has the channel."""
        if self._family is Family.V6:
            entries = sorted(self._table.entries())
            return encode(self._family, Message(self._now(), entries)) if entries else None
        self._follow()
        if self._whole is None:
            self._whole = encode_entries(sorted(self._table.entries()))
        return seal(self._now(), self._whole)

    def _follow(self) -> None:
        """What was known of another table is of no use."""
        if self._generation != self._table.generation:
            self._generation = self._table.generation
            self._whole = None
            self._heard.clear()

    def peer_gone(self, name: PeerName) -> None:
        """A peer left the mesh."""
        self.skews.pop(name, None)
        self._table.peer_gone(name)

    def _read(self, data: bytes, source: PeerName | None) -> Message | None:
        """A message, None where clocks differ too much. Raises GossipError where it is none."""
        try:
            message = decode(self._family, data)
        except GobError as error:
            raise GossipError(f"names: {error}") from error
        skew = message.timestamp - self._now()
        if abs(skew) <= MAX_SKEW:
            if source is not None:
                self.skews.pop(source, None)
            return message
        # To go on with it would make Weave Net peers close their connections to us.
        if source is not None and source not in self.skews:
            self._log.warning(
                "names of %s ignored: host clock skew of %ds exceeds %ds limit; set the clocks right",
                format_peer_name(source), skew, MAX_SKEW,
            )  # fmt: skip
            self.skews[source] = skew
        elif source is None:
            self._log.debug("names ignored: host clock skew of %ds exceeds %ds limit", skew, MAX_SKEW)
        return None

    def _receive(self, message: Message) -> Received:
        received = self._table.receive(message.entries, self._now())
        self.say(received.ours)
        return received
