"""The data path `sleeve`: one forwarder per connection, in plain Python.

The reference and the fallback of the per-packet work: choosing the send path, packing frames into datagrams,
sealing and opening. Frames wait at most until the end of the batch that brought them; a queue is bounded by one
datagram. Source: data plane spec §3.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from mesh.names import NAME_SIZE, PeerName, peer_label
from mesh.seams import AttrValue, ConnectionParams
from overlay.frames import ETHERNET_HEADER, ipv4_header, is_ipv6, is_special
from overlay.icmp import frag_needed, packet_too_big
from overlay.seams import ForwarderEvents, FrameSink, Topology
from sleeve.datagram import (
    FRAME_OVERHEAD,
    DatagramError,
    PlainSession,
    SealedSession,
    Session,
    decode_frames,
    frame_header,
)
from sleeve.fragment import fragment
from sleeve.link import Address, SleeveLink
from sleeve.pmtu import PathMtu
from sleeve.udp import UdpSocket, udp_sockets

_UDP_HEADER = 8
_IPV4_HEADER = 20
_IPV6_HEADER = 40
_MAX_PAYLOAD = 65507
_MAX_FRAMES = 100


class _Queue:
    """Frames of one send path that go into the next datagram."""

    __slots__ = ("frames", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.frames = 0

    def add(self, header: bytes, frame: bytes) -> None:
        self.parts += (header, frame)
        self.size += FRAME_OVERHEAD + len(frame)
        self.frames += 1

    def take(self) -> bytes:
        body = b"".join(self.parts)
        self.parts.clear()
        self.size = self.frames = 0
        return body


class SleeveForwarder:
    """Sleeve on one connection (`overlay.seams.Forwarder`, `sleeve.link.LinkEffects`)."""

    def __init__(self, path: "SleeveDataPath", params: ConnectionParams, events: ForwarderEvents) -> None:
        self._path = path
        self._events = events
        self.peer = params.remote
        self._label = peer_label(params.remote, params.remote_nickname)
        self.session: Session = (
            PlainSession(path.ourself)
            if params.session_key is None
            else SealedSession(path.ourself, params.session_key, outbound=params.outbound)
        )
        ip_header = _IPV6_HEADER if ":" in params.remote_address[0] else _IPV4_HEADER
        headers = ip_header + _UDP_HEADER
        overhead = headers + self.session.overhead + FRAME_OVERHEAD + ETHERNET_HEADER
        remote = params.remote_address if params.outbound else None
        self.mtu = PathMtu(overhead, headers)
        self.link = SleeveLink(self, params.remote, params.connection_uid, self.mtu, remote)
        self._socket = path.socket_for(params.remote_address[0])
        self._queues = {True: _Queue(), False: _Queue()}
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.counts: Counter[str] = Counter()

    # --- the switch's side ---

    def confirm(self) -> None:
        self._path.register(self)
        self.link.confirm(self._path.now())
        self._rearm()

    def control_message(self, tag: int, payload: bytes) -> None:
        self.link.control(tag, payload, self._path.now())
        self._rearm()

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.link.stop()
        self._rearm()
        self._path.unregister(self)
        self.session.close()

    def accepts(self, source: PeerName, destination: PeerName) -> bool:
        return True

    def attrs(self) -> Mapping[str, AttrValue]:
        attrs: dict[str, AttrValue] = {"name": "sleeve", "mtu": self.mtu.mtu}
        if self.session.encrypted:
            attrs["encrypted"] = True
        return attrs

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        """Choose the send path of one frame (§3.8)."""
        if self._stopped or self.link.remote is None:
            self.counts["awaiting-contact"] += 1
            return
        header = ipv4_header(frame)
        fits = len(frame) <= self.mtu.mtu + ETHERNET_HEADER
        if header is None:
            if not fits and not broadcast and is_ipv6(frame):
                self._answer(source, destination, packet_too_big(frame, self.mtu.mtu))
            self._enqueue(source, destination, frame, df=False)
        elif header.df:
            if fits:
                self._enqueue(source, destination, frame, df=True)
            elif broadcast:
                self.counts["too-big-broadcast"] += 1
            else:
                self._answer(source, destination, frag_needed(frame, self.mtu.mtu))
        elif self.link.fragments_pass:
            self._enqueue(source, destination, frame, df=False)
        elif fits:
            self._enqueue(source, destination, frame, df=True)
        else:
            for piece in fragment(frame, self.mtu.mtu):
                self._enqueue(source, destination, piece, df=True)

    def _answer(self, source: PeerName, destination: PeerName, answer: bytes | None) -> None:
        """An ICMP error travels as if the frame's destination had sent it."""
        if answer is not None:
            self.counts["too-big"] += 1
            self._path.sink.received(destination, source, answer)

    # --- datagrams out ---

    def _enqueue(self, source: PeerName, destination: PeerName, frame: bytes, *, df: bool) -> None:
        queue = self._queues[df]
        size = self.session.overhead + FRAME_OVERHEAD + len(frame)
        if queue.frames and (queue.size + size > self.mtu.max_payload or queue.frames >= _MAX_FRAMES):
            self._flush(queue, df)
        if size > _MAX_PAYLOAD:
            self.counts["too-big-for-datagram"] += 1
            return
        queue.add(frame_header(source, destination, len(frame)), frame)
        self._path.waiting(self)

    def flush(self) -> None:
        """Send what waits on both send paths."""
        for df, queue in self._queues.items():
            if queue.frames:
                self._flush(queue, df)

    def _flush(self, queue: _Queue, df: bool) -> None:
        self.counts["frames-out"] += queue.frames
        self._transmit(queue.take(), df)

    def _transmit(self, body: bytes, df: bool) -> None:
        remote = self.link.remote
        if remote is None or self._socket is None or self._stopped:
            self.counts["awaiting-contact"] += 1
            return
        datagram = self.session.seal(body, df)
        self.counts["datagrams-out"] += 1
        self.counts["bytes-out"] += len(datagram)
        path_mtu = self._socket.send(datagram, remote, df)
        if path_mtu is not None:
            self.counts["over-path-mtu"] += 1
            self.link.too_big(path_mtu, self._path.now())
            self._rearm()

    # --- the link's effects ---

    def send_special(self, frame: bytes, df: bool) -> None:
        header = frame_header(self._path.ourself, self.peer, len(frame))
        self._transmit(header + frame, df)

    def send_control(self, tag: int, payload: bytes) -> None:
        self._events.send_control(tag, payload)

    def established(self) -> None:
        self._events.established()

    def failed(self, error: Exception) -> None:
        self._events.failed(error)

    def mtu_verified(self, mtu: int) -> None:
        self._path.log.info("sleeve ->[%s|%s]: Effective MTU verified at %d", self._remote_text(), self._label, mtu)

    def _remote_text(self) -> str:
        if self.link.remote is None:
            return "<awaiting contact>"
        host, port = self.link.remote
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    # --- datagrams in ---

    def received(self, datagram: bytes, source: Address) -> None:
        """One datagram that bears our peer's name."""
        counts = self.counts
        counts["datagrams-in"] += 1
        counts["bytes-in"] += len(datagram)
        try:
            body = self.session.open(datagram)
            if body is None:
                counts["replayed"] += 1
                return
            for origin, destination, frame in decode_frames(body):
                if is_special(frame):
                    self._special(origin, destination, frame, source)
                else:
                    self._path.sink.received(origin, destination, frame)
        except DatagramError as error:
            counts["malformed"] += 1
            if counts["malformed"] in (1, 10, 100) or counts["malformed"] % 1000 == 0:
                self._path.log.info("sleeve ->[%s|%s]: %s (%d so far)", *source, error, counts["malformed"])

    def _special(self, origin: PeerName, destination: PeerName, frame: bytes, source: Address) -> None:
        if origin != self.peer or destination != self._path.ourself or self._stopped:
            self.counts["foreign-special"] += 1
            return
        before = self.link.remote
        self.link.special(frame, source, self._path.now())
        if self.link.remote != before:
            self._socket = self._path.socket_for(source[0])
        self._rearm()

    # --- the timer ---

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.link.next_timer()
        if at is not None and not self._stopped:
            self._timer = self._path.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.link.tick(self._path.now())
        self._rearm()


class SleeveDataPath:
    """All sleeve links (`overlay.seams.DataPath`). Construction binds the UDP port: OSError where it is taken."""

    name = "sleeve"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        topology: Topology,
        *,
        host: str,
        port: int,
        log: logging.Logger,
    ) -> None:
        self.loop = loop
        self.ourself = topology.ourself
        self.log = log
        self.counts: Counter[str] = Counter()
        self._sink: FrameSink | None = None
        self._links: dict[bytes, SleeveForwarder] = {}
        self._waiting: set[SleeveForwarder] = set()
        self._scheduled = False
        self._sockets = {
            sock.family: UdpSocket(loop, sock, self._received, self.flush, self.counts)
            for sock in udp_sockets(host, port)
        }

    def attach(self, sink: FrameSink) -> None:
        """Say who gets frames that arrive."""
        self._sink = sink

    @property
    def sink(self) -> FrameSink:
        assert self._sink is not None, "attach comes before the first connection"
        return self._sink

    def now(self) -> float:
        return self.loop.time()

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> SleeveForwarder:
        return SleeveForwarder(self, params, events)

    def diagnostics(self) -> object:
        """Nothing that Weave Net's report had."""
        return None

    def links(self) -> Sequence[SleeveForwarder]:
        """For status: all confirmed links."""
        return list(self._links.values())

    def close(self) -> None:
        """Close the sockets; links are stopped by their connections."""
        for sock in self._sockets.values():
            sock.close()

    def socket_for(self, host: str) -> UdpSocket | None:
        """The socket that reaches an address; None where this host has no such family."""
        v6 = ":" in host
        return next((sock for family, sock in self._sockets.items() if (family.name == "AF_INET6") == v6), None)

    def register(self, forwarder: SleeveForwarder) -> None:
        self._links[forwarder.peer.to_bytes(NAME_SIZE, "big")] = forwarder

    def unregister(self, forwarder: SleeveForwarder) -> None:
        name = forwarder.peer.to_bytes(NAME_SIZE, "big")
        if self._links.get(name) is forwarder:
            del self._links[name]
        self._waiting.discard(forwarder)

    def waiting(self, forwarder: SleeveForwarder) -> None:
        """A forwarder has frames to send: at the end of this batch, or of this turn of the loop."""
        self._waiting.add(forwarder)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send everything that waits."""
        self._scheduled = False
        while self._waiting:
            self._waiting.pop().flush()

    def _received(self, datagram: bytes, source: Address) -> None:
        forwarder = self._links.get(datagram[:NAME_SIZE])
        if forwarder is None:
            self.counts["unknown-sender"] += 1
        else:
            forwarder.received(datagram, source)
