"""The packet path in C: threads that hold no interpreter lock, and what of their work comes up here.

The core (`sleeve/core/`, built as `sleeve._sleeve`) forwards frames by the table that `NativeTable` writes. Special
frames, what the kernel refused, and frames that the table has no answer for lie in its rings; an eventfd says so.
Events are taken before frames, and frames in turns, so that a flood of unknown frames delays no heartbeat. No decisions
here: they are `datapath.py`'s and the frame router's. Source: data plane spec §3.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mesh.names import PeerName
from overlay.seams import Forwarder, FrameSink
from sleeve._sleeve import ffi, lib
from sleeve.datagram import PLAIN_OVERHEAD, SEALED_OVERHEAD, DatagramError
from sleeve.datapath import SleeveForwarder
from sleeve.link import Address
from sleeve.path import ChannelEvents
from sleeve.tap import TCP_OFFLOADS, UDP_OFFLOADS, TapPort
from sleeve.udp import path_mtu, sending_twin, udp_sockets

_SESSION_COUNTS = (
    "frames-out", "datagrams-out", "bytes-out", "frames-in", "datagrams-in", "bytes-in", "replayed", "malformed",
    "too-big-for-datagram", "awaiting-contact", "over-path-mtu", "send-queue-full", "no-buffers", "refused-by-firewall",
    "network-unreachable", "host-unreachable", "connection-refused", "network-down", "invalid-address",
    "address-not-available", "send-error",
)  # fmt: skip
_CORE_COUNTS = (
    "unknown-sender", "receive-error", "no-receive-offload", "no-send-offload", "tap-read-error", "tap-write-error",
    "tap-malformed", "tap-queue-full", "core-local", "core-sent", "core-flooded", "core-relayed", "core-injected",
    "core-merged", "core-to-python", "core-not-to-python",
)  # fmt: skip
_EVENT_RINGS = (lib.EVENTS_PYTHON, lib.EVENTS_TX, lib.EVENTS_RX)
_FRAME_RINGS = (lib.FRAMES_TX, lib.FRAMES_RX)
_TURN = 64
# With so few, waking another thread costs more than it wins: bench/sleeve has shown one loop ahead on two cores.
_FEW_CORES = 2


def _number(name: str) -> int:
    return int(getattr(lib, name.upper().replace("-", "_")))


def _packed(host: str) -> tuple[bytes, int]:
    """An address as 4 or 16 bytes, and the index of its scope."""
    address, _, scope = host.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not scope:
        return socket.inet_pton(family, address), 0
    return socket.inet_pton(family, address), int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


def _sender(record: Any) -> Address:
    """A record's sender, as the socket module writes it."""
    octets = bytes(record.address)
    if record.family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, octets[:4]), record.port
    text = socket.inet_ntop(socket.AF_INET6, octets)
    if record.scope:
        with contextlib.suppress(OSError):
            text += f"%{socket.if_indextoname(record.scope)}"
    return text, record.port


def _error(record: Any) -> DatagramError:
    """What was wrong with a datagram, in the words of `sleeve.datagram`."""
    if record.source == lib.TOO_SHORT:
        return DatagramError(f"encrypted UDP packet too short; expected length >= 8, got {record.first}")
    if record.source == lib.NOT_OPENED:
        return DatagramError("UDP packet decryption failed")
    if record.source == lib.TRAILING_GARBAGE:
        return DatagramError(f"{record.first} octets of trailing garbage")
    return DatagramError(f"too short; expected frame of length {record.first}, got {record.second}")


class NativeChannel:
    """One link's session in the core (`sleeve.path.Channel`)."""

    def __init__(
        self,
        path: "NativePath",
        peer: PeerName,
        key: bytes | None,
        *,
        outbound: bool,
        local: str,
        events: ChannelEvents,
    ) -> None:
        self._path = path
        self.serial = path.next_serial()
        self.session = lib.session_new(path.core, self.serial, peer, ffi.NULL if key is None else key, outbound)
        if self.session == ffi.NULL:
            raise MemoryError("no memory for a session")
        self.peer = peer
        self.events = events
        self._local = local
        self._remote: Address | None = None
        self._noted: Counter[str] = Counter()
        self._last: Counter[str] = Counter()
        self.encrypted = key is not None
        self.overhead = PLAIN_OVERHEAD if key is None else SEALED_OVERHEAD
        path.register(self)

    @property
    def counts(self) -> Counter[str]:
        """A snapshot."""
        if self.session is None:
            return self._last + self._noted
        found = {name: lib.session_count(self.session, _number(name)) for name in _SESSION_COUNTS}
        return Counter({name: number for name, number in found.items() if number}) + self._noted

    def listen(self) -> None:
        if self.session is not None:
            lib.session_listen(self._path.core, self.session)

    def aim(self, remote: Address) -> None:
        if self.session is None:
            return
        self._remote = remote
        address, scope = _packed(remote[0])
        v6 = ":" in remote[0]
        lib.session_aim(self._path.core, self.session, v6, address, remote[1], scope)
        self.answer_from(self._local)

    def answer_from(self, local: str) -> None:
        if self._remote is None or self.session is None:
            return
        v6 = ":" in self._remote[0]
        if self._path.bound_to_any(v6) and (":" in local) == v6:
            with contextlib.suppress(OSError):
                lib.session_origin(self._path.core, self.session, v6, _packed(local)[0])

    def limit(self, max_payload: int, mtu: int, fragments_pass: bool) -> None:
        if self.session is not None:
            lib.session_limit(self._path.core, self.session, max_payload, mtu, fragments_pass)

    def note(self, what: str) -> None:
        self._noted[what] += 1

    def send(self, source: PeerName, destination: PeerName, frame: bytes, df: bool) -> None:
        if self.session is None:
            self._noted["closed"] += 1
            return
        lib.session_send(self._path.core, self.session, source, destination, frame, len(frame), df)
        self._path.waiting()

    def send_alone(self, source: PeerName, destination: PeerName, frame: bytes, df: bool) -> None:
        if self.session is not None:
            lib.session_send_alone(self._path.core, self.session, source, destination, frame, len(frame), df)
            self._path.take_own()

    def close(self) -> None:
        if self.session is not None:
            self._last = self.counts - self._noted
            self._path.unregister(self)
            lib.session_close(self._path.core, self.session)
            self.session = None

    # --- what the core says of it ---

    def told(self, record: Any, frame: bytes) -> None:
        """A record of the core about this session."""
        if record.kind == lib.SPECIAL:
            self.events.special(PeerName(record.source), PeerName(record.destination), frame, _sender(record))
        elif record.kind == lib.PATH_MTU:
            self._too_big()
        elif record.kind == lib.TROUBLE:
            reason = record.first
            self.events.trouble(next((name for name in _SESSION_COUNTS if reason and _number(name) == reason), None))
        elif record.kind == lib.BAD_DATAGRAM:
            self.events.malformed(_error(record), _sender(record), record.number)

    def _too_big(self) -> None:
        if self._remote is not None:
            mtu = path_mtu(self._remote, self._local if self._path.bound_to_any(":" in self._remote[0]) else None)
            if mtu is not None:
                self.events.too_big(mtu)


class NativeTap(TapPort):
    """The TAP port, read by the core. What comes here is what the core's table has no answer for."""

    def __init__(self, path: "NativePath", loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        super().__init__(loop, descriptor, path.python_counts)
        self._path = path

    def start(self, captured: Callable[[bytes], None], batch_done: Callable[[], None]) -> None:
        offloads = self.ask_for(TCP_OFFLOADS | UDP_OFFLOADS, TCP_OFFLOADS, 0)
        self._path.capture(self._descriptor, bool(offloads & UDP_OFFLOADS), captured)

    def close(self) -> None:
        os.close(self._descriptor)


class NativeTable:
    """The core's table (`overlay.seams.ForwardingTable`)."""

    def __init__(self, path: "NativePath") -> None:
        self._path = path

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        if self._path.closed:
            return
        if owner is None:
            lib.table_no_mac(self._path.core, mac)
        else:
            lib.table_mac(self._path.core, mac, owner)

    def seen(self, mac: bytes) -> float:
        return 0.0 if self._path.closed else float(lib.table_seen(self._path.core, mac))

    def routes(self, hops: Sequence[tuple[PeerName, Forwarder | None]]) -> None:
        if self._path.closed:
            return
        core = self._path.core
        lib.table_begin(core, len(hops))
        for name, forwarder in hops:
            lib.table_peer(core, name, self._session(forwarder))
        lib.table_end(core)

    def flood(self, source: PeerName, hops: Sequence[Forwarder] | None) -> None:
        if self._path.closed:
            return
        sessions = [self._session(forwarder) for forwarder in hops or ()]
        if hops is None or ffi.NULL in sessions:
            lib.table_no_flood(self._path.core, source)
        else:
            lib.table_flood(self._path.core, source, sessions, len(sessions))

    def _session(self, forwarder: Forwarder | None) -> Any:
        """The core's session of a sleeve link; NULL for anything else, which Python then carries."""
        if isinstance(forwarder, SleeveForwarder) and isinstance(forwarder.channel, NativeChannel):
            return forwarder.channel.session or ffi.NULL
        return ffi.NULL


class NativePath:
    """The packet path in C (`sleeve.path.PacketPath`). Binds its UDP port: OSError where it is taken."""

    name = "native"

    def __init__(self, loop: asyncio.AbstractEventLoop, ourself: PeerName, host: str, port: int) -> None:
        self._loop = loop
        self.closed = False
        self.core = lib.core_new(ourself)
        if self.core == ffi.NULL:
            raise MemoryError("no memory for the core")
        self.python_counts: Counter[str] = Counter()
        self.table = NativeTable(self)
        self._sink: FrameSink | None = None
        self._captured: Callable[[bytes], None] = lambda frame: None
        self._channels: dict[int, NativeChannel] = {}
        self._serial = 0
        self._threads: list[threading.Thread] = []
        self._flush_scheduled = self._turn_scheduled = False
        self._taking_own = False
        self._one_loop = len(os.sched_getaffinity(0)) <= _FEW_CORES
        try:
            self._sockets = self._bind(host, port)
        except BaseException:
            lib.core_free(self.core)
            raise
        self._wake = lib.core_wake_fd(self.core)
        loop.add_reader(self._wake, self._woken)

    def _bind(self, host: str, port: int) -> list[tuple[socket.socket, socket.socket]]:
        pairs = [(sock, sending_twin(sock)) for sock in udp_sockets(host, port)]
        for sock, twin in pairs:
            lib.core_socket(self.core, sock.family == socket.AF_INET6, sock.fileno(), twin.fileno())
        return pairs

    # --- the data path's side ---

    @property
    def counts(self) -> Counter[str]:
        """A snapshot."""
        if self.closed:
            return Counter(self.python_counts)
        found = {name: lib.core_count(self.core, _number(name)) for name in _CORE_COUNTS}
        return Counter({name: number for name, number in found.items() if number}) + self.python_counts

    def attach(self, sink: FrameSink) -> None:
        self._sink = sink
        if self._one_loop:
            self._run("sleeve", lib.RUN_TX | lib.RUN_RX)
        else:
            self._run("sleeve-rx", lib.RUN_RX)

    def reaches(self, host: str) -> bool:
        return any((sock.family == socket.AF_INET6) == (":" in host) for sock, _ in self._sockets)

    def port(self, descriptor: int) -> NativeTap:
        return NativeTap(self, self._loop, descriptor)

    def channel(
        self, peer: PeerName, key: bytes | None, *, outbound: bool, local: str, events: ChannelEvents
    ) -> NativeChannel:
        return NativeChannel(self, peer, key, outbound=outbound, local=local, events=events)

    def flush(self) -> None:
        self._flush_scheduled = False
        if not self.closed:
            lib.core_flush(self.core)
            self.take_own()

    def close(self) -> None:
        if self.closed:
            return
        self._loop.remove_reader(self._wake)
        lib.core_stop(self.core)
        for thread in self._threads:
            thread.join()
        for channel in list(self._channels.values()):
            channel.close()
        self.python_counts = self.counts
        self.closed = True
        for pair in self._sockets:
            for sock in pair:
                sock.close()
        lib.core_free(self.core)

    # --- the channels' side ---

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def register(self, channel: NativeChannel) -> None:
        self._channels[channel.serial] = channel

    def unregister(self, channel: NativeChannel) -> None:
        self._channels.pop(channel.serial, None)

    def bound_to_any(self, v6: bool) -> bool:
        """Whether the socket of this family has no address of its own."""
        return any(
            (sock.family == socket.AF_INET6) == v6 and sock.getsockname()[0] in ("0.0.0.0", "::")
            for sock, _ in self._sockets
        )

    def waiting(self) -> None:
        """A channel has frames to send: at the end of this batch, or of this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    # --- the port's side ---

    def capture(self, descriptor: int, merge_udp: bool, captured: Callable[[bytes], None]) -> None:
        """Read this TAP from now on, and write to it."""
        self._captured = captured
        lib.core_tap(self.core, descriptor, merge_udp)
        if not self._one_loop:
            self._run("sleeve-tx", lib.RUN_TX)

    def _run(self, name: str, loops: int) -> None:
        thread = threading.Thread(target=lib.core_run, args=(self.core, loops), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    # --- the core's side ---

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 8)
        self._turn()

    def _turn(self) -> None:
        """Take all events and some frames; if that is not all, go on in the loop's next turn."""
        self._turn_scheduled = False
        if self.closed:
            return
        for ring in _EVENT_RINGS:
            while self._take(ring):
                pass
        left = _TURN
        for ring in _FRAME_RINGS:
            while left and self._take(ring):
                left -= 1
        self.flush()
        if not left and not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def take_own(self) -> None:
        """Take what came of our own sending."""
        if self._taking_own:
            # Sending again is part of what follows from an event: the call that took that one goes on.
            return
        self._taking_own = True
        try:
            while not self.closed and self._take(lib.EVENTS_PYTHON):
                pass
        finally:
            self._taking_own = False

    def _take(self, ring: int) -> bool:
        """Deal with one record; False where there is none."""
        record = lib.ring_next(self.core, ring)
        if record == ffi.NULL:
            return False
        frame = bytes(ffi.buffer(lib.ring_frame(record), record.length))
        copy = ffi.new("record *", record[0])
        lib.ring_done(self.core, ring)
        if copy.kind == lib.CAPTURED:
            self._captured(frame)
        elif copy.kind == lib.RECEIVED:
            if self._sink is not None:
                self._sink.received(PeerName(copy.source), PeerName(copy.destination), frame)
        else:
            channel = self._channels.get(copy.serial)
            if channel is not None:
                channel.told(copy, frame)
        return True
