"""The packet path: the narrow seam behind which sleeve's work per packet lies, and its plain-Python side.

Above the seam (`datapath.py`, `link.py`, `pmtu.py`): which peers there are, keys, addresses, how much fits, what a
frame that does not fit is answered. Below it: packing frames into datagrams, sealing and opening, the replay window,
sockets. Whatever is not a frame on its way comes up through `ChannelEvents`. This implementation is the reference
and the fallback of a native one.

Frames wait at most until the end of the batch that brought them. What waits is bounded: per channel and send path
one datagram being filled, and one run of finished ones (64 KiB). Source: data plane spec §3.1 to §3.5.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from mesh.names import NAME_SIZE, PeerName, peer_name_to_bytes
from overlay.frames import frames_of, is_special
from overlay.seams import Bridge, ForwardingTable, FrameSink
from sleeve.datagram import (
    FRAME_OVERHEAD,
    DatagramError,
    PlainSession,
    SealedSession,
    Session,
    decode_frames,
    frame_header,
)
from sleeve.link import Address
from sleeve.offload import Joiner
from sleeve.pmtu import UNKNOWN_PAYLOAD
from sleeve.tap import TapPort
from sleeve.udp import MAX_RUN, MAX_SEGMENTS, Origin, UdpSocket, udp_sockets

_MAX_FRAMES = 100


class ChannelEvents(Protocol):
    """What a channel hands up."""

    def special(self, source: PeerName, destination: PeerName, frame: bytes, sender: Address) -> None:
        """A special frame arrived, authenticated where the channel is; its peers are unchecked."""

    def too_big(self, path_mtu: int) -> None:
        """The kernel refused a datagram; `path_mtu` bytes of IP packet would have fit."""

    def malformed(self, error: DatagramError, sender: Address, number: int) -> None:
        """A datagram under our peer's name was not what it should be, the `number`-th. Said ever less often."""

    def trouble(self, reason: str | None) -> None:
        """Sending began to fail for this reason, or works again (None). Said once per change."""


class Channel(Protocol):
    """One link's packets. Nothing raises for what the network does: it is counted."""

    @property
    def encrypted(self) -> bool: ...

    @property
    def overhead(self) -> int:
        """Bytes of a datagram that are no frames."""

    @property
    def counts(self) -> Mapping[str, int]: ...

    def listen(self) -> None:
        """Take datagrams under the peer's name from now on, instead of an older channel."""

    def aim(self, remote: Address) -> None:
        """Send to this address from now on."""

    def answer_from(self, local: str) -> None:
        """Send from this address of ours, until aimed anew: a host with several answers from the one the peer knows."""

    def limit(self, max_payload: int, mtu: int, fragments_pass: bool) -> None:
        """What the path takes: bytes of a datagram that more than one frame goes into, bytes of inner IP packet,
        and whether datagrams that the underlay fragments arrive.
        """

    def send(self, source: PeerName, destination: PeerName, frame: bytes, df: bool) -> None:
        """Queue a frame for the path with DF, or the one without."""

    def send_alone(self, source: PeerName, destination: PeerName, frame: bytes, df: bool) -> None:
        """Send a frame at once, in a datagram of its own."""

    def note(self, what: str) -> None:
        """Count something that was decided above."""

    def close(self) -> None:
        """Forget the key; what still waits is lost."""


class Port(Bridge, Protocol):
    """The bridge's TAP port."""

    def start(self, captured: Callable[[bytes], None], batch_done: Callable[[], None]) -> None:
        """Begin to read: `captured` gets each frame that nobody else forwards, `batch_done` is called after."""

    def close(self) -> None:
        """The device disappears with its descriptor."""


class PacketPath(Protocol):
    """All channels and the sockets they share."""

    @property
    def name(self) -> str:
        """Which implementation this is, for status."""

    @property
    def counts(self) -> Counter[str]: ...

    @property
    def table(self) -> ForwardingTable | None:
        """By which frames are forwarded that nobody needs to decide about; None where all come up."""

    def port(self, descriptor: int) -> Port:
        """The TAP port of this descriptor, which is to be closed after the path."""

    def attach(self, sink: FrameSink) -> None:
        """Say who gets the frames that arrive."""

    def reaches(self, host: str) -> bool:
        """Whether there is a socket for this address."""

    def channel(
        self, peer: PeerName, key: bytes | None, *, outbound: bool, local: str, events: ChannelEvents
    ) -> Channel:
        """A channel, deaf and without an address to send to; `local` is where to send from."""

    def flush(self) -> None:
        """Send everything that waits."""

    def close(self) -> None:
        """Close the sockets."""


def worth_saying(number: int) -> bool:
    """Whether the `number`-th malformed datagram is."""
    return number in (1, 10, 100) or number % 1000 == 0


class _Queue:
    """One send path of a channel: the datagram being filled (`parts`), and finished ones (`run`)."""

    __slots__ = ("frames", "parts", "run", "run_size", "size")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.parts: list[bytes] = []
        self.frames = self.size = 0
        self.run: list[bytes] = []
        self.run_size = 0


class PlainChannel:
    """A channel in plain Python (`Channel`)."""

    def __init__(
        self, path: "PlainPath", peer: PeerName, session: Session, local: str, events: ChannelEvents
    ) -> None:
        self._path = path
        self._session = session
        self._events = events
        self._local = local
        self.key = peer_name_to_bytes(peer)
        self.counts: Counter[str] = Counter()
        self.encrypted = session.encrypted
        self.overhead = session.overhead
        self._remote: Address | None = None
        self._origin: Origin | None = None
        self._socket: UdpSocket | None = None
        self._max_payload = UNKNOWN_PAYLOAD
        self._queues = {True: _Queue(), False: _Queue()}
        self._trouble: str | None = None
        self._closed = False
        self._joiner = Joiner()
        self._ends = (peer, peer)

    def listen(self) -> None:
        self._path.register(self)

    def aim(self, remote: Address) -> None:
        self._remote = remote
        self._socket = self._path.socket_for(remote[0])
        self.answer_from(self._local)

    def answer_from(self, local: str) -> None:
        self._origin = None if self._socket is None else self._socket.origin(local)

    def limit(self, max_payload: int, mtu: int, fragments_pass: bool) -> None:
        self._max_payload = max_payload

    def note(self, what: str) -> None:
        self.counts[what] += 1

    def close(self) -> None:
        self._closed = True
        self._path.unregister(self)
        for queue in self._queues.values():
            queue.clear()
        self._session.close()

    # --- out ---

    def send(self, source: PeerName, destination: PeerName, frame: bytes, df: bool) -> None:
        queue = self._queues[df]
        header, described = b"", -1
        for each in frames_of(frame):
            length = len(each)
            if length != described:
                header, described = frame_header(source, destination, length), length
            size = FRAME_OVERHEAD + length
            if self._closed or self.overhead + size > UNKNOWN_PAYLOAD:
                self.counts["closed" if self._closed else "too-big-for-datagram"] += 1
                return
            if queue.frames and (self.overhead + queue.size + size > self._max_payload or queue.frames >= _MAX_FRAMES):
                self._finish(queue, df)
            queue.parts += (header, each)
            queue.size += size
            queue.frames += 1
        self._path.waiting(self)

    def send_alone(self, source: PeerName, destination: PeerName, frame: bytes, df: bool) -> None:
        if self._closed:
            return
        datagram = self._session.seal(frame_header(source, destination, len(frame)) + frame, df)
        if self._transmit([datagram], df) and self._trouble is not None:
            self._trouble = None
            self._events.trouble(None)

    def flush(self) -> None:
        """Send what waits on both send paths."""
        for df, queue in self._queues.items():
            if queue.frames:
                self._finish(queue, df)
            if queue.run:
                self._send_run(queue, df)

    def _finish(self, queue: _Queue, df: bool) -> None:
        """Seal the datagram being filled. A run of equal sizes costs the kernel little more than one datagram."""
        datagram = self._session.seal(b"".join(queue.parts), df)
        self.counts["frames-out"] += queue.frames
        queue.parts.clear()
        queue.size = queue.frames = 0
        if queue.run and queue.run_size + len(datagram) > MAX_RUN:
            self._send_run(queue, df)
        queue.run.append(datagram)
        queue.run_size += len(datagram)
        if len(queue.run) >= MAX_SEGMENTS:
            self._send_run(queue, df)

    def _send_run(self, queue: _Queue, df: bool) -> None:
        run, queue.run, queue.run_size = queue.run, [], 0
        self._transmit(run, df)

    def _transmit(self, run: list[bytes], df: bool) -> bool:
        """Hand datagrams to the kernel; whether it took them all."""
        if self._socket is None or self._remote is None:
            self.counts["awaiting-contact"] += len(run)
            return False
        self.counts["datagrams-out"] += len(run)
        self.counts["bytes-out"] += sum(map(len, run))
        refused = self._socket.send(run, self._remote, df, self._origin, self._max_payload)
        if refused is None:
            return True
        self.counts[refused.reason] += 1
        if refused.path_mtu is not None:
            self._events.too_big(refused.path_mtu)
        elif refused.lasting and refused.reason != self._trouble:
            self._trouble = refused.reason
            self._events.trouble(refused.reason)
        return False

    # --- in ---

    def received(self, datagram: bytes, sender: Address, sink: FrameSink) -> None:
        """One datagram that bears our peer's name."""
        counts = self.counts
        counts["datagrams-in"] += 1
        counts["bytes-in"] += len(datagram)
        try:
            body = self._session.open(datagram)
            if body is None:
                counts["replayed"] += 1
                return
            for source, destination, frame in decode_frames(body):
                counts["frames-in"] += 1
                if is_special(frame):
                    self._events.special(source, destination, frame, sender)
                    continue
                if (source, destination) != self._ends:
                    self.deliver(sink)
                    self._ends = (source, destination)
                for complete in self._joiner.push(frame):
                    sink.received(source, destination, complete)
        except DatagramError as error:
            counts["malformed"] += 1
            if worth_saying(counts["malformed"]):
                self._events.malformed(error, sender, counts["malformed"])

    def deliver(self, sink: FrameSink) -> None:
        """Hand on what waits for frames to go on with."""
        for complete in self._joiner.pull():
            sink.received(*self._ends, complete)


class PlainPath:
    """The packet path in plain Python (`PacketPath`). Binds its UDP port: OSError where it is taken."""

    name = "python"
    table = None

    def __init__(self, loop: asyncio.AbstractEventLoop, ourself: PeerName, host: str, port: int) -> None:
        self._loop = loop
        self._ourself = ourself
        self.counts: Counter[str] = Counter()
        self._sink: FrameSink | None = None
        self._channels: dict[bytes, PlainChannel] = {}
        self._waiting: set[PlainChannel] = set()
        self._delivering: set[PlainChannel] = set()
        self._scheduled = False
        self._sockets = [
            UdpSocket(loop, sock, self._received, self._batch_done, self.counts) for sock in udp_sockets(host, port)
        ]

    def port(self, descriptor: int) -> TapPort:
        return TapPort(self._loop, descriptor, self.counts)

    def attach(self, sink: FrameSink) -> None:
        self._sink = sink

    def reaches(self, host: str) -> bool:
        return self.socket_for(host) is not None

    def channel(
        self, peer: PeerName, key: bytes | None, *, outbound: bool, local: str, events: ChannelEvents
    ) -> PlainChannel:
        session: Session = (
            PlainSession(self._ourself) if key is None else SealedSession(self._ourself, key, outbound=outbound)
        )
        return PlainChannel(self, peer, session, local, events)

    def flush(self) -> None:
        self._scheduled = False
        while self._waiting:
            self._waiting.pop().flush()

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    # --- the channels' side ---

    def socket_for(self, host: str) -> UdpSocket | None:
        """The socket that reaches an address; None where this host has no such family."""
        v6 = ":" in host
        return next((sock for sock in self._sockets if sock.v6 == v6), None)

    def register(self, channel: PlainChannel) -> None:
        self._channels[channel.key] = channel

    def unregister(self, channel: PlainChannel) -> None:
        if self._channels.get(channel.key) is channel:
            del self._channels[channel.key]
        self._waiting.discard(channel)

    def waiting(self, channel: PlainChannel) -> None:
        """A channel has frames to send: at the end of this batch, or of this turn of the loop."""
        self._waiting.add(channel)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def _received(self, datagram: bytes, sender: Address) -> None:
        channel = self._channels.get(datagram[:NAME_SIZE])
        if channel is None or self._sink is None:
            self.counts["unknown-sender"] += 1
        else:
            channel.received(datagram, sender, self._sink)
            self._delivering.add(channel)

    def _batch_done(self) -> None:
        while self._delivering and self._sink is not None:
            self._delivering.pop().deliver(self._sink)
        self.flush()
