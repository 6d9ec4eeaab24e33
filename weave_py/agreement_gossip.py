"""The channel on which nodes of our kind tell each other digests: the core `agreement` on the loop's clock.

    agreement = AgreementGossip(hold=..., peers=..., uid=uid)
    agreement.start(service.channel(agreement.CHANNEL, agreement))
    service.router.listen(agreement.neighbour_said)
    ...
    agreement.document()        # for the report, `/status/agree` and `weave doctor`
    agreement.stop()

Broadcasts only, of about fifty bytes: 2.8 relays them along the tree, and keeps none.
Source: mesh spec §11.2, §11.5.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mesh.names import PeerName
from mesh.seams import Gossip
from weave_py.agreement import CHANNEL, Agreement, Digest, decode, encode

_TICK = 5.0
Reader = Callable[[bytes], Digest | None]


class AgreementGossip:
    """A user of the channel (`mesh.seams.Gossiper`).

    `hold` tells what we hold, by subject (the topology's and the names' own digests, `agreement.ring_digest`);
    a subject that is not used is left out. `peers` tells name and nickname of everybody else in the topology. `uid` is
    the one that the mesh announces. `readers`, by the channel, find in gossip of a neighbour what it holds of a subject
    (`{"IPallocation": ("ring", lambda message: neighbour_ring(message, universe))}`); None: the message does not tell.
    """

    CHANNEL = CHANNEL

    def __init__(
        self,
        *,
        hold: Callable[[], Mapping[str, Digest]],
        peers: Callable[[], Iterable[tuple[PeerName, str]]],
        uid: int,
        readers: Mapping[str, tuple[str, Reader]] | None = None,
        tick: float = _TICK,
    ) -> None:
        self._hold = hold
        self._peers = peers
        self._uid = uid
        self._readers = readers or {}
        self._tick = tick
        self._agreement = Agreement()
        self._channel: Gossip | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.unknown_records = 0

    # --- life ---

    def start(self, channel: Gossip) -> None:
        """Speak on this channel from now on."""
        self._channel = channel
        self._turn()

    def stop(self) -> None:
        """Say nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick, self._turn)
        now = time.time()
        self._agreement.keep([name for name, _ in self._peers()])
        self._agreement.hold(self._hold(), now)
        if self._channel is not None and self._agreement.due(now):
            self._channel.broadcast(encode(self._agreement.record(self._uid, now)))

    # --- the channel ---

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        """Nobody sends any."""

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes:
        """A record, or one of a later format: either travels on."""
        record = decode(message)
        if record is None:
            self.unknown_records += 1
        else:
            self._agreement.heard(source, record, time.time())
        return message

    def on_gossip(self, message: bytes) -> None:
        """Nobody sends any."""

    def gossip(self) -> None:
        """Nothing periodic: a record belongs to its sender's own broadcast."""

    def neighbour_said(self, name: PeerName, channel: str, message: bytes) -> None:
        """Gossip of a neighbour on any channel, which its user has already taken in."""
        if channel not in self._readers:
            return
        subject, reader = self._readers[channel]
        now = time.time()
        if self._agreement.glance_due(name, subject, now):
            found = reader(message)
            if found is not None:
                self._agreement.hold(self._hold(), now)
                self._agreement.glanced(name, subject, found, now)

    # --- showing ---

    def document(self) -> dict[str, Any]:
        """The report's object `Agreement`."""
        now = time.time()
        self._agreement.hold(self._hold(), now)
        return self._agreement.document(self._peers(), now)
