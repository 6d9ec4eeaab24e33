"""One whole node, from TAP to UDP, that runs only when told to: to compare the core with plain Python, step by step.

The TAP is a pair of sockets that keep messages apart, the underlay is loopback, and peers are ears of ours that seal
and open. Nothing runs in the background: `settle` lets a node work until it has nothing more to do.
"""

import contextlib
import logging
import select
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from mesh.names import PeerName
from mesh.seams import ConnectionParams
from overlay.forwarding import FrameRouter
from overlay.switch import OverlaySwitch
from overlay.table import TableWriter
from sleeve.datagram import PlainSession, SealedSession, Session, decode_frames
from sleeve.datapath import SleeveDataPath, SleeveForwarder
from sleeve.path import PacketPath, PlainPath
from tests.sleeve.offload import Vnet, cut

OURSELF = PeerName(0x1)
# Peers 2 and 3 are neighbours, 4 and 5 lie behind 3; 9 is known to nobody.
NEIGHBOURS = {2: bytes(range(32)), 3: None, 6: bytes(range(1, 33))}
HOPS = {2: 2, 3: 3, 4: 3, 5: 3, 6: 6}
FLOODS = {1: [2, 3, 6], 2: [3], 3: [2, 6], 4: [], 5: [6], 6: []}
LOCAL, LOCAL2, REMOTE, FAR, STRANGER = (bytes((2, 0, 0, 0, 0, n)) for n in (1, 2, 3, 4, 5))
OWNERS = {REMOTE: 2, FAR: 4}
MTU = 1400

Sent = tuple[int, bool, int, int, bytes]


class Loop:
    """An event loop that turns when it is told to."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], None]] = {}
        self.soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.now = 1000.0

    def add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        self.readers[descriptor] = callback

    def remove_reader(self, descriptor: int) -> None:
        self.readers.pop(descriptor, None)

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self.soon.append((callback, arguments))

    def call_at(self, at: float, callback: Callable[[], None]) -> "Loop":
        return self

    def cancel(self) -> None:
        """Timers never fire here."""

    def time(self) -> float:
        return self.now

    def turn(self) -> bool:
        """Run what is due; whether anything was."""
        due, self.soon = self.soon, []
        for callback, arguments in due:
            callback(*arguments)
        ready = select.select(list(self.readers), [], [], 0)[0] if self.readers else []
        for descriptor in ready:
            self.readers[descriptor]()
        return bool(due or ready)


class Topology:
    """The mesh of the tables above."""

    ourself = OURSELF

    def knows(self, name: PeerName) -> bool:
        return name in FLOODS

    def names(self) -> list[PeerName]:
        return [PeerName(name) for name in FLOODS]

    def unicast(self, destination: PeerName) -> PeerName | None:
        return PeerName(HOPS[destination]) if destination in HOPS else None

    def broadcast(self, source: PeerName) -> list[PeerName]:
        return [PeerName(hop) for hop in FLOODS.get(source, [])]

    def nickname(self, name: PeerName) -> str:
        return ""

    def short_id(self, name: PeerName) -> int | None:
        return None


class Silent:
    """Nobody listens to the connection's events."""

    def established(self) -> None: ...

    def failed(self, error: Exception) -> None: ...

    def send_control(self, tag: int, payload: bytes) -> None: ...


class Ear:
    """A neighbour: where it listens, and its side of the session."""

    def __init__(self, name: int, key: bytes | None, port: int) -> None:
        self.name = name
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind(("127.0.0.1", 0))
        self.to = ("127.0.0.1", port)
        self.session: Session = (
            PlainSession(PeerName(name)) if key is None else SealedSession(PeerName(name), key, outbound=False)
        )

    def send(self, body: bytes, df: bool = True) -> None:
        self.send_raw(self.session.seal(body, df))

    def send_raw(self, datagram: bytes) -> None:
        self.sock.sendto(datagram, self.to)

    def heard(self) -> tuple[list[Sent], int]:
        """Frames that arrived, each with whether it came on the path with DF, and the number of datagrams."""
        frames: list[Sent] = []
        datagrams = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self.sock.recv(65536)
                datagrams += 1
                df = self.session.encrypted and bool(datagram[6] & 0x80)
                body = self.session.open(datagram)
                assert datagram[:6] == b"\0\0\0\0\0\1"
                assert body is not None
                frames += [(self.name, df, source, to, frame) for source, to, frame in decode_frames(body)]
        return frames, datagrams


def _path(packets: str, loop: Any) -> PacketPath:
    if packets == "python":
        return PlainPath(loop, OURSELF, "127.0.0.1", 0)
    from sleeve.native import NativePath

    class Stepped(NativePath):
        """Without threads."""

        def _run(self, name: str, loops: int) -> None: ...

    return Stepped(loop, OURSELF, "127.0.0.1", 0)


class Stack:
    """A node with the packet path of this name."""

    def __init__(self, packets: str, *, fragments_pass: bool = True, offloads: bool = False) -> None:
        self.packets = packets
        self.loop = Loop()
        log = logging.Logger("stack")
        log.addHandler(logging.NullHandler())
        loop: Any = self.loop
        self.path = _path(packets, loop)
        self.data_path = SleeveDataPath(loop, Topology(), self.path, log=log)
        switch = OverlaySwitch([self.data_path], log=log, peer_gone=lambda name: None)
        self.tap, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        for end in (self.tap, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        port = self.path.port(theirs.detach())
        writer = None
        if self.path.table is not None:
            writer = TableWriter(Topology(), switch.link, self.path.table, self.loop.call_soon)
            switch.changed = writer.request
        self.router = FrameRouter(
            Topology(), port, switch.link, clock=lambda: self.loop.now, log=log, writer=writer
        )
        self.data_path.attach(self.router)
        port.start(self.router.captured, self.data_path.flush)
        if offloads:
            # A pair of sockets knows none; the test does the kernel's part.
            port._offloads = 1  # type: ignore[attr-defined]
        self.port = port
        self.ears: dict[int, Ear] = {}
        for name, key in NEIGHBOURS.items():
            self._connect(switch, name, key, fragments_pass)
        for mac in (LOCAL, LOCAL2):
            self.router.macs.learn_local(mac, 0.0)
        for mac, owner in OWNERS.items():
            self.router.macs.learn_remote(mac, PeerName(owner), 0.0)
        if writer is not None:
            for source in FLOODS:
                writer.flooded(PeerName(source))
        self.settle()

    def _connect(self, switch: OverlaySwitch, name: int, key: bytes | None, fragments_pass: bool) -> None:
        if self.packets == "python":
            ours = self.path._sockets[0]._sock.getsockname()[1]  # type: ignore[attr-defined]
        else:
            ours = self.path._sockets[0][0].getsockname()[1]  # type: ignore[attr-defined]
        ear = self.ears[name] = Ear(name, key, ours)
        there = ear.sock.getsockname()
        features = {"Overlays": "sleeve"}
        params = ConnectionParams(PeerName(name), "", 7, key, ("127.0.0.1", 1), there, True, features)
        connection = switch.prepare_connection(params, Silent())
        connection.confirm()
        forwarder = connection.forwarder
        assert isinstance(forwarder, SleeveForwarder)
        forwarder.mtu.mtu = MTU
        forwarder.mtu.max_payload = MTU + 58
        forwarder.link.fragments_pass = fragments_pass
        forwarder._settle()

    def settle(self) -> None:
        """Work until nothing is left to do."""
        while True:
            stepped = False
            if self.packets == "native":
                from sleeve._sleeve import lib

                stepped = lib.core_step_rx(self.path.core) > 0  # type: ignore[attr-defined]
                stepped |= lib.core_step_tx(self.path.core) > 0  # type: ignore[attr-defined]
            if not (self.loop.turn() or stepped):
                return

    def injected(self) -> list[bytes]:
        """Frames on the bridge, cut where they had been merged."""
        frames: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                written = self.tap.recv(70000)
                frames += cut(Vnet.read(written), written[Vnet.SIZE :])
        return frames

    def heard(self) -> list[Sent]:
        """Frames at the neighbours, specials left out."""
        found = [ear.heard()[0] for ear in self.ears.values()]
        return [sent for sents in found for sent in sents if any(sent[4][:14])]

    @property
    def counts(self) -> Counter[str]:
        """What both kinds of path count alike."""
        kept = ("replayed", "malformed", "frames-in", "datagrams-in", "bytes-in", "too-big-for-datagram")
        total: Counter[str] = Counter()
        for link in self.data_path.links():
            total.update({name: number for name, number in link.counts.items() if name in kept})
        return total

    def close(self) -> None:
        for link in self.data_path.links():
            link.stop()
        self.data_path.close()
        with contextlib.suppress(OSError):
            self.port.close()
        self.tap.close()
        for ear in self.ears.values():
            ear.sock.close()
