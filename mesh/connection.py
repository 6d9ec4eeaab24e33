"""One mesh connection, from the open TCP stream to its end: introduction, messages, heartbeats, deadlines.

The connection knows nothing of other connections: who may stay, what a message means and who is told are its
owner's business (`mesh/router.py`). Bytes come in through `receive`, go out through a `Wire`. Everything a peer
can get wrong ends in `close(error)` and nowhere else. Source: mesh spec §2, §5, §6.
"""

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from mesh.config import Limits, Timing
from mesh.errors import MeshError, SilenceError
from mesh.features import Features
from mesh.handshake import HEADER_TIMEOUT, INTRODUCTION_TIMEOUT, Handshake, MessageCodec
from mesh.messages import Tag
from mesh.names import PeerName, peer_label
from mesh.outbox import Outbox
from mesh.scheduler import Scheduler, Timer
from mesh.seams import OverlayConnection


class Wire(Protocol):
    """The byte stream under a connection. Never blocks; what it cannot send yet it keeps and counts."""

    def send(self, data: bytes) -> None: ...

    def abort(self) -> None:
        """End the stream at once, unsent bytes discarded."""

    def unsent(self) -> int:
        """Bytes accepted by `send` that have not left yet."""


class State(Enum):
    """Where a connection is in its life; it only ever moves forward."""

    INTRODUCING = auto()
    REFUSABLE = auto()
    ACTIVE = auto()
    CLOSED = auto()


class ConnectionOwner(Protocol):
    """What a connection asks of the router."""

    def introduced(self, connection: "Connection") -> None:
        """The peer said who it is. Raises MeshError to refuse it."""

    def message(self, connection: "Connection", tag: int, payload: bytes) -> None:
        """A message of the peer. Raises MeshError where it must end the connection."""

    def closed(self, connection: "Connection", error: Exception) -> None:
        """The connection is over, for this reason; called once."""

    def flush(self, connection: "Connection") -> None:
        """The wire has room again."""


class Connection:
    """A connection to one peer. `address` is the peer's, as text (`ip:port`, IPv6 in brackets)."""

    __slots__ = (
        "_codec",
        "_handshake",
        "_limits",
        "_log",
        "_owner",
        "_scheduler",
        "_timer",
        "_timing",
        "_wire",
        "address",
        "bytes_in",
        "bytes_out",
        "encrypted_overlay",
        "error",
        "established",
        "features",
        "last_heard",
        "local",
        "outbound",
        "outbox",
        "overlay",
        "paused",
        "remote",
        "session_key",
        "speaks_summaries",
        "state",
        "uid",
        "version",
    )

    def __init__(
        self,
        owner: ConnectionOwner,
        wire: Wire,
        handshake: Handshake,
        *,
        scheduler: Scheduler,
        timing: Timing,
        limits: Limits,
        log: logging.Logger,
        local: tuple[str, int],
        remote: tuple[str, int],
        outbound: bool,
    ) -> None:
        self._owner = owner
        self._wire = wire
        self._handshake: Handshake | None = handshake
        self._codec: MessageCodec | None = None
        self._scheduler = scheduler
        self._timing = timing
        self._limits = limits
        self._log = log
        self._timer: Timer | None = None
        self.local = local
        self.remote = remote
        self.outbound = outbound
        self.address = address_text(remote)
        self.state = State.INTRODUCING
        self.features: Features | None = None
        self.uid = 0
        self.session_key: bytes | None = None
        self.version = 0
        self.established = False
        self.encrypted_overlay = False
        # Whether the peer takes notices and digests instead of whole topologies.
        self.speaks_summaries = False
        self.overlay: OverlayConnection | None = None
        self.outbox = Outbox(limits)
        self.paused = False
        self.last_heard = scheduler.now()
        self.error: Exception | None = None
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def name(self) -> PeerName:
        """The peer's name; only after the introduction."""
        assert self.features is not None, "a connection has no name before its introduction"
        return self.features.name

    @property
    def label(self) -> str:
        """`NAME(NICK)` of the peer."""
        assert self.features is not None, "a connection has no name before its introduction"
        return peer_label(self.features.name, self.features.nickname)

    @property
    def active(self) -> bool:
        """Whether the connection is part of the mesh now."""
        return self.state is State.ACTIVE

    def log(self, text: str, level: int = logging.INFO) -> None:
        """A line with the prefix that scripts look for."""
        if self.features is None:
            self._log.log(level, "->[%s] %s", self.address, text)
        else:
            self._log.log(level, "->[%s|%s]: %s", self.address, self.label, text)

    def start(self) -> None:
        """Begin the introduction."""
        assert self._handshake is not None
        self._arm(HEADER_TIMEOUT, self._introduction_late)
        self._put(self._handshake.start(self._scheduler.now()))

    def receive(self, data: bytes) -> None:
        """Bytes from the peer, in any portions."""
        if self.state is State.CLOSED:
            return
        self.bytes_in += len(data)
        self._guarded(lambda: self._receive(data))

    def send(self, tag: int, payload: bytes = b"") -> None:
        """Send one message now; a message that cannot be sent ends the connection, not the caller."""
        if self._codec is None or self.state is State.CLOSED:
            return
        codec = self._codec
        self._guarded(lambda: self._put(codec.encode(bytes((tag,)) + payload)))

    def close(self, error: Exception) -> None:
        """End the connection for this reason; a second call changes nothing."""
        if self.state is State.CLOSED:
            return
        introduced = self.state is not State.INTRODUCING
        self.state = State.CLOSED
        self.error = error
        during = "" if introduced else " during handshake"
        self.log(f"connection shutting down due to error{during}: {error}")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if introduced:
            self._wire.abort()
        else:
            self._part()
        self._owner.closed(self, error)

    def lost(self, reason: str) -> None:
        """The peer ended the stream, or the network did."""
        handshake = self._handshake
        self.close(MeshError(reason) if handshake is None else handshake.closed_early(reason))

    def _part(self) -> None:
        """End an introduction: what we had said so far goes out first, so that the peer learns its mistake too."""
        if self._handshake is not None:
            self._wire.send(self._handshake.take_output())
        self._scheduler.call_later(self._timing.parting, self._wire.abort)

    def pause(self) -> None:
        """The wire is full: gossip waits in the outbox from now on."""
        self.paused = True

    def resume(self) -> None:
        """The wire has room again."""
        self.paused = False
        if self.state is State.ACTIVE:
            self._owner.flush(self)

    def activate(self) -> None:
        """The owner added the connection to the mesh: start heartbeats."""
        self.state = State.ACTIVE
        self.last_heard = self._scheduler.now()
        self._arm(self._timing.heartbeat, self._heartbeat)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step in which the peer's bytes, or its slowness, may end the connection."""
        try:
            step()
        except MeshError as error:
            self.close(error)

    def _put(self, data: bytes) -> None:
        if not data or self.state is State.CLOSED:
            return
        self.bytes_out += len(data)
        self._wire.send(data)
        if self._wire.unsent() > self._limits.unsent_bytes:
            raise MeshError(f"peer does not read: {self._wire.unsent()} bytes wait to be sent")

    def _receive(self, data: bytes) -> None:
        if self._codec is None:
            rest = self._introduce(data)
            if rest is None:
                return
            data = rest
        codec = self._codec
        assert codec is not None
        for plaintext in codec.feed(data):
            self.last_heard = self._scheduler.now()
            if not plaintext:
                self._log.debug("->[%s] ignored an empty message", self.address)
            elif plaintext[0] != Tag.HEARTBEAT:
                self._owner.message(self, plaintext[0], plaintext[1:])
            if self.closed:
                return

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    def _introduce(self, data: bytes) -> bytes | None:
        """Feed the introduction; returns the bytes behind it once it is complete."""
        handshake = self._handshake
        assert handshake is not None
        header_seen = handshake.header_received
        self._put(handshake.receive(data, self._scheduler.now()))
        if handshake.header_received and not header_seen:
            self._arm(INTRODUCTION_TIMEOUT, self._introduction_late)
        self._watch_dialer(handshake)
        result = handshake.result
        if result is None:
            return None
        self._handshake = None
        self._codec = result.codec
        self.features = result.features
        self.uid = result.connection_uid
        self.session_key = result.session_key
        self.version = result.version
        self.state = State.REFUSABLE
        self._owner.introduced(self)
        return None if self.closed else result.leftover

    def _watch_dialer(self, handshake: Handshake) -> None:
        """With several passwords the dialer waits a moment for the acceptor's first message (§4.2)."""
        deadline = handshake.deadline
        if deadline is None:
            return
        delay = max(0.0, deadline - self._scheduler.now())
        self._scheduler.call_later(delay, lambda: self._guarded(self._dialer_waited))

    def _dialer_waited(self) -> None:
        if self._handshake is not None and not self.closed:
            self._put(self._handshake.tick(self._scheduler.now()))
            # A timer may fire a moment early.
            self._watch_dialer(self._handshake)

    def _introduction_late(self) -> None:
        waiting_for_header = self._handshake is not None and not self._handshake.header_received
        what = "failed to receive remote protocol header: " if waiting_for_header else ""
        self.close(SilenceError(f"{what}read tcp {address_text(self.local)}->{self.address}: i/o timeout"))

    def _heartbeat(self) -> None:
        if self._scheduler.now() - self.last_heard >= self._timing.read_timeout:
            self.close(SilenceError(f"read tcp {address_text(self.local)}->{self.address}: i/o timeout"))
            return
        self.send(Tag.HEARTBEAT)
        if not self.closed:
            self._arm(self._timing.heartbeat, self._heartbeat)

    def _arm(self, delay: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._scheduler.call_later(delay, call)


def address_text(address: tuple[str, int]) -> str:
    """`ip:port`, with brackets around IPv6."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
