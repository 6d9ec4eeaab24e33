"""Two data paths with real sockets in a namespace of a test's own: what stands in for mesh, frame router and log."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh.names import PeerName
from mesh.seams import ConnectionParams
from overlay.frames import frames_of
from sleeve.datapath import SleeveDataPath, SleeveForwarder
from sleeve.path import PacketPath, PlainPath
from tests.namespaces import namespace, run, within

PORT = 6783
UID = 0x0102030405060708
KEY = bytes(range(32))
NO_CORE = "the native core is not built: it needs gcc and libsodium-dev, then script/bootstrap --dev"
MAC = {1: b"\2\0\0\0\0\1", 2: b"\2\0\0\0\0\2"}


def frame(size: int, *, df: bool = True, number: int = 0, source: int = 1, destination: int = 2) -> bytes:
    """A UDP-less IPv4 frame of `size` bytes of IP packet from peer `source`'s container, with a number in it."""
    head = bytes.fromhex("4500") + size.to_bytes(2, "big") + bytes(2) + (b"\x40\0" if df else b"\0\0")
    packet = head + b"\x40\xfd\0\0" + bytes((10, 32, 0, source)) + bytes((10, 32, 0, destination))
    packet += number.to_bytes(4, "big")
    return MAC[destination] + MAC[source] + b"\x08\0" + packet.ljust(size, b"x")


def frame6(size: int) -> bytes:
    """An IPv6 frame of `size` bytes of IP packet from peer 1's container to peer 2's."""
    packet = b"\x60\0\0\0" + (size - 40).to_bytes(2, "big") + b"\x11\x40" + b"\xfd" + bytes(14) + b"\1"
    return MAC[2] + MAC[1] + b"\x86\xdd" + (packet + b"\xfd" + bytes(14) + b"\2").ljust(size, b"x")


class Peers:
    """A topology in which everybody is known; the data path asks it only who we are."""

    def __init__(self, ourself: int) -> None:
        self.ourself = PeerName(ourself)

    def knows(self, name: PeerName) -> bool:
        return True

    def names(self) -> list[PeerName]:
        return [PeerName(1), PeerName(2)]

    def unicast(self, destination: PeerName) -> PeerName | None:
        return destination

    def broadcast(self, source: PeerName) -> list[PeerName]:
        return []

    def nickname(self, name: PeerName) -> str:
        return ""

    def short_id(self, name: PeerName) -> int | None:
        return None


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass(slots=True)
class Node:
    """One end: its data path and everything that it told anybody."""

    path: SleeveDataPath
    log: Lines
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    controls: list[tuple[int, bytes]] = field(default_factory=list)
    link: SleeveForwarder | None = None
    peer: "Node | None" = None

    @property
    def forwarder(self) -> SleeveForwarder:
        assert self.link is not None
        return self.link

    # What the frame router would be.

    def captured(self, frame: bytes) -> None:
        raise AssertionError("nothing is captured here")

    def received(self, source: PeerName, destination: PeerName, frame: bytes) -> None:
        self.frames += [(source, destination, each) for each in frames_of(frame)]

    # What the switch and the mesh would be.

    def established(self) -> None:
        self.heard.append("established")

    def failed(self, error: Exception) -> None:
        self.heard.append(str(error))

    def healthy(self, health: bool) -> None:
        raise AssertionError("sleeve says nothing of health")

    def send_control(self, tag: int, payload: bytes) -> None:
        self.controls.append((tag, payload))
        assert self.peer is not None
        self.path.loop.call_soon(self.peer.forwarder.control_message, tag, payload)


def make(number: int, host: str, port: int = PORT, packets: str = "python") -> Node:
    """A node, bound, with the packet path of this name."""
    log = logging.Logger(f"node{number}")
    lines = Lines()
    log.addHandler(lines)
    loop = asyncio.get_running_loop()
    path = _path(packets, loop, PeerName(number), host, port)
    node = Node(SleeveDataPath(loop, Peers(number), path, log=log), lines)
    node.path.attach(node)
    return node


def _path(packets: str, loop: asyncio.AbstractEventLoop, ourself: PeerName, host: str, port: int) -> PacketPath:
    if packets == "python":
        return PlainPath(loop, ourself, host, port)
    from sleeve.native import NativePath

    return NativePath(loop, ourself, host, port)


def join(one: Node, two: Node, addresses: tuple[tuple[str, int], tuple[str, int]], key: bytes | None) -> None:
    """Connect them: `one` dialed. Nothing is confirmed yet."""
    one.peer, two.peer = two, one
    first, second = addresses
    outbound = ConnectionParams(PeerName(2), "two", UID, key, first, second, True, {})
    inbound = ConnectionParams(PeerName(1), "one", UID, key, second, (first[0], 40000), False, {})
    one.link = one.path.prepare(outbound, one)
    two.link = two.path.prepare(inbound, two)


async def until(condition: Callable[[], object], seconds: float = 8.0) -> None:
    """Wait for something that must come to pass."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def up(node: Node) -> bool:
    """Established, fragments tested, path MTU known."""
    return "established" in node.heard and node.forwarder.link.fragments_pass and node.forwarder.mtu.verified


Scenario = Callable[[Node, Node], Awaitable[None]]
ADDRESSES = {4: (("127.0.0.1", PORT), ("127.0.0.2", PORT)), 6: (("fd00::1", PORT), ("fd00::2", PORT))}


def play(
    scenario: Scenario,
    packets: tuple[str, str],
    *,
    family: int = 4,
    key: bytes | None = KEY,
    mtu: int = 1500,
    wait: bool = True,
) -> None:
    """Run a scenario between two nodes, established unless `wait` is false, on a loopback of this MTU.

    `packets` names the packet path of each.
    """

    async def played() -> None:
        addresses = ADDRESSES[family]
        one = make(1, addresses[0][0], packets=packets[0])
        two = make(2, addresses[1][0], packets=packets[1])
        try:
            join(one, two, addresses, key)
            if wait:
                for node in (one, two):
                    node.forwarder.confirm()
                await until(lambda: up(one) and up(two))
            await scenario(one, two)
        finally:
            for node in (one, two):
                node.forwarder.stop()
                node.path.close()

    with namespace() as name:
        run("ip", "-n", name, "link", "set", "lo", "mtu", str(mtu))
        if family == 6:
            for address, _ in ADDRESSES[6]:
                run("ip", "-n", name, "addr", "add", f"{address}/128", "dev", "lo", "nodad")
        within(name, lambda: asyncio.run(played()))
