"""The data path `fastdp` where the kernel takes no program: a plain VXLAN device for every direct peer.

The bridge learns, floods and forwards; a device takes what one peer captured for us, and nothing else. So such a link
carries what travels between its two ends alone: we tell the peer (feature `FastdpDirect`), everything else goes over
sleeve, and a peer whose floods we have to hand on goes over sleeve altogether. Devices stay when the router ends, and
for a while when a connection does. Whoever knows a network identifier may send by it: these devices check no sender.
Source: data plane spec §14.1.
"""

import asyncio
import contextlib
import ctypes
import logging
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastdp.forwarder import DIRECT_FEATURE, HEALTH, HEALTH_FEATURE, FastForwarder, is_ours, port_of
from fastdp.kernel import KernelError, present
from fastdp.maps import Kind, Route, Traffic, host, host_text
from fastdp.table import GRACE
from fastdp.wire import DEFAULT_MTU, Cause, vni
from mesh.names import PeerName
from mesh.seams import ConnectionParams, OverlayError
from overlay.seams import Forwarder, ForwarderEvents, KernelSink, Topology

_ALL_PROTOCOLS = 3
_SOL_PACKET, _IGNORE_OUTGOING = 263, 23
_ATTACH_FILTER = 26
_MAX_FRAME = 65536 + 64
_BATCH = 64
_CHECK = 1.0
_STATISTICS = Path("/proc/self/net/dev")
# Frames whose first twelve octets are zero: LD W ABS 0, JEQ, and so on (<linux/filter.h>).
_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0), (0x15, 0, 5, 0), (0x20, 0, 0, 4), (0x15, 0, 3, 0), (0x20, 0, 0, 8), (0x15, 0, 1, 0),
        (0x06, 0, 0, _MAX_FRAME), (0x06, 0, 0, 0),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ends:
    """What a device is for: short ids and addresses of us and of the peer, the UDP port."""

    ourself: int
    peer: int
    local: str
    remote: str
    port: int

    @property
    def name(self) -> str:
        return f"{self.peer:x}"

    def text(self) -> str:
        return f"{self.ourself} {self.peer} {self.local} {self.remote} {self.port}"

    @classmethod
    def parse(cls, text: str) -> "Ends":
        """Raises ValueError."""
        ourself, peer, local, remote, port = text.split()
        return cls(int(ourself), int(peer), local, remote, int(port))


class Devices(Protocol):
    """Plain VXLAN devices of this host, known by a short name each. All raise KernelError."""

    def found(self) -> Sequence[tuple[str, int, bool]]:
        """(what it is for, index, whether it is on the bridge) of those that are there."""

    def make(self, ends: Ends, vnis: tuple[int, int]) -> int:
        """A device up and off the bridge, in place of another of that name; its index. `vnis`: in, out."""

    def join(self, name: str) -> None:
        """Let the bridge give it frames."""

    def leave(self, name: str) -> None: ...

    def remove(self, name: str) -> None: ...


@dataclass(slots=True)
class _Device:
    """A device; `until` when it is kept without a link, in the clock's seconds."""

    ends: Ends
    index: int
    joined: bool
    until: float | None
    ear: socket.socket | None = None


class DirectDataPath:
    """All links of a node whose kernel takes no program (`overlay.seams.DataPath` and `ForwardingTable`).

    `port` is our mesh port, `mtu` of the bridge in octets, `problem` why there is no program.
    """

    name = "fastdp"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        topology: Topology,
        devices: Devices,
        *,
        port: int,
        mtu: int = DEFAULT_MTU,
        problem: str,
        log: logging.Logger,
    ) -> None:
        self.loop = loop
        self.ourself = topology.ourself
        self.log = log
        self.mtu = mtu
        self.problem = problem
        self.table = self
        self.counts: Counter[str] = Counter()
        self._topology = topology
        self._kernel = devices
        self._port = port
        self._links: dict[PeerName, FastForwarder] = {}
        self._chosen: set[PeerName] = set()
        self._sink: KernelSink | None = None
        self._devices: dict[int, _Device] = {}
        for text, index, joined in devices.found():
            with contextlib.suppress(ValueError):
                ends = Ends.parse(text)
                self._devices[ends.peer] = _Device(ends, index, joined, loop.time() + GRACE)
        self.adopted = bool(self._devices)
        self._timer: asyncio.TimerHandle | None = loop.call_later(_CHECK, self._check)

    def attach(self, sink: KernelSink) -> None:
        """Say who knows behind which peer an address is."""
        self._sink = sink

    def features(self) -> Mapping[str, str]:
        return {HEALTH_FEATURE: HEALTH, DIRECT_FEATURE: "1"}

    def now(self) -> float:
        return self.loop.time()

    def short(self, name: PeerName) -> int | None:
        return self._topology.short_id(name)

    def carries(self, link: FastForwarder, source: PeerName, destination: PeerName) -> bool:
        return source == self.ourself and destination == link.peer

    def in_kernel(self, source: PeerName, hop: PeerName) -> bool:
        """Whether the bridge gives this neighbour the floods of a source."""
        short = self.short(hop)
        device = None if short is None else self._devices.get(short)
        return source == self.ourself and device is not None and device.joined

    def traffic(self, link: int) -> Traffic:
        """What went through a device, given by its index; a run of segments counts as one frame."""
        with contextlib.suppress(OSError):
            name = socket.if_indextoname(link)
            for line in _STATISTICS.read_text().splitlines():
                found, _, numbers = line.partition(":")
                if found.strip() == name:
                    figures = [int(number) for number in numbers.split()]
                    return Traffic(figures[9], figures[8], figures[1], figures[0])
        return Traffic()

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> FastForwarder:
        local, remote = params.local_address[0], params.remote_address[0]
        if not is_ours(params):
            raise OverlayError(f"{self.problem}, and peers of Weave Net send what takes it")
        if params.session_key is not None:
            raise OverlayError(f"the connection is encrypted, and {self.problem}")
        try:
            return FastForwarder(self, params, events, Route(Kind.FAST, host(remote), host(local), direct=True))
        except (OSError, ValueError) as error:
            raise OverlayError(str(error)) from error

    def port_of(self, params: ConnectionParams) -> int:
        return port_of(params, self._port)

    def diagnostics(self) -> object:
        return None

    def links(self) -> Sequence[FastForwarder]:
        return list(self._links.values())

    @property
    def ports(self) -> list[int]:
        """UDP ports that are listened on."""
        return sorted({device.ends.port for device in self._devices.values()})

    # --- devices ---

    def register(self, forwarder: FastForwarder) -> int:
        """A link begins: its device is there from now on. The number of its counters. Raises KernelError."""
        index = self._device(forwarder).index
        self._links[forwarder.peer] = forwarder
        return index

    def _device(self, forwarder: FastForwarder) -> _Device:
        """The device of a link, made anew where it is for something else. Raises KernelError."""
        ourself, peer = self.short(self.ourself), self.short(forwarder.peer)
        if ourself is None or peer is None:
            raise KernelError("there is no short id")
        ends = Ends(ourself, peer, host_text(forwarder.route.local), host_text(forwarder.route.hop), forwarder.port)
        device = self._devices.get(peer)
        if device is None or device.ends != ends:
            if device is not None:
                self._forget(device)
            index = self._kernel.make(ends, (vni(peer, ourself), vni(ourself, peer)))
            device = self._devices[peer] = _Device(ends, index, joined=False, until=None)
        device.until = None
        if device.ear is None:
            device.ear = _ear(device.index)
            self.loop.add_reader(device.ear, self._readable, device.ear, forwarder.peer)
        return device

    def unregister(self, forwarder: FastForwarder) -> None:
        if self._links.get(forwarder.peer) is not forwarder:
            return
        del self._links[forwarder.peer]
        self._chosen.discard(forwarder.peer)
        peer = self.short(forwarder.peer)
        device = None if peer is None else self._devices.get(peer)
        if device is not None:
            device.until = self.now() + GRACE

    def _check(self) -> None:
        """Remove devices whose links ended long ago; make those again that somebody removed."""
        self._timer = self.loop.call_later(_CHECK, self._check)
        for device in list(self._devices.values()):
            if device.until is not None and device.until <= self.now():
                self._forget(device)
            elif not present(device.index):
                self._forget(device)
                link = next((one for one in self.links() if self.short(one.peer) == device.ends.peer), None)
                with self._counted():
                    if link is not None:
                        made = self._device(link)
                        if device.joined:
                            self._kernel.join(made.ends.name)
                        made.joined = device.joined

    def _forget(self, device: _Device) -> None:
        self._devices.pop(device.ends.peer, None)
        if device.ear is not None:
            self.loop.remove_reader(device.ear)
            device.ear.close()
        with self._counted():
            self._kernel.remove(device.ends.name)

    def close(self) -> None:
        """Leave the kernel forwarding."""
        if self._timer is not None:
            self._timer.cancel()
        for device in self._devices.values():
            if device.ear is not None:
                self.loop.remove_reader(device.ear)
                device.ear.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except KernelError as error:
            self.counts["device-error"] += 1
            self.log.warning("fastdp: %s", error)

    def _readable(self, ear: socket.socket, peer: PeerName) -> None:
        for _ in range(_BATCH):
            try:
                frame = ear.recv(_MAX_FRAME)
            except OSError:
                return
            link = self._links.get(peer)
            if link is None or not link.heard(frame):
                self.counts["foreign-heartbeat"] += 1

    # --- the table ---

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        """The bridge learns by itself."""

    def seen(self, mac: bytes) -> float:
        return 0.0

    def flood(self, source: PeerName, hops: Sequence[Forwarder] | None) -> None:
        """The bridge floods to the devices on it."""

    def routes(self, hops: Sequence[tuple[PeerName, Forwarder | None]]) -> None:
        for peer, link in list(self._links.items()):
            link.bar(Cause.RELAYS if self._topology.broadcast(peer) else Cause.NOTHING)
        carried = {name: forwarder for name, forwarder in hops if forwarder is not None}
        for device in list(self._devices.values()):
            self._place(device, carried)

    def _place(self, device: _Device, carried: Mapping[PeerName, Forwarder]) -> None:
        """On the bridge where the peer's link is the one that carries its frames; as it is, where there is none."""
        peer = next((name for name in carried if self.short(name) == device.ends.peer), None)
        if peer is None:
            return
        with self._counted():
            wanted = carried[peer] is self._links.get(peer)
            if wanted:
                device = self._device(self._links[peer])
            if wanted and not device.joined:
                assert self._sink is not None, "attach comes before routes"
                self._kernel.join(device.ends.name)
                # From now on the bridge knows; an address that we knew would be sent to twice.
                self._sink.forget(peer)
            elif not wanted and device.joined:
                self._kernel.leave(device.ends.name)
            device.joined = wanted


def _ear(index: int) -> socket.socket:
    """A socket that takes from a device what has zeros for addresses, which the bridge drops. Raises KernelError."""
    try:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
        length = len(_FILTER) // 8
        ear.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", length, ctypes.addressof(program)))
        with contextlib.suppress(OSError):
            ear.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        ear.bind((socket.if_indextoname(index), _ALL_PROTOCOLS))
        return ear
    except OSError as error:
        raise KernelError(f"heartbeats cannot be heard: {error.strerror}") from error
