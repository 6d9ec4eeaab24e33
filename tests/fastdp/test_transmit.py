"""Transmit devices: what they send is what the program would, and nothing comes in by them."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence

import pytest
from pyroute2 import IPRoute

from fastdp import wires
from fastdp.kernel import KernelError, interface
from fastdp.maps import Kind
from fastdp.wire import packet
from fastdp.wires import Wire, Wires
from host import transmit
from lab.net import inside, run
from lab.router import socket_in
from tests.fastdp.test_programs import LISTENS, ONE, OURSELF, THREE, Lab, lab, unicast  # noqa: F401
from tests.namespaces import namespace, within
from weave_py.transmit_devices import TransmitDevices

FAR = "02aa00000900"
OWN = "02cc00000001"


@contextlib.contextmanager
def container(made: Lab) -> Iterator[Callable[[bytes], object]]:
    """Something on the bridge that sends frames."""
    name = made.underlay.host(2).namespace
    run("ip", "-n", name, "link", "add", "c0", "master", "weave", "type", "veth", "peer", "name", "c1")
    for link in ("c0", "c1", "weave"):
        run("ip", "-n", name, "link", "set", link, "up")
    time.sleep(1)
    with socket_in(name, socket.SOCK_RAW, socket.AF_PACKET) as sender:
        sender.bind(("c1", 0))
        yield lambda frame: sender.send(frame)


@pytest.mark.parametrize("size", [46, 1376])
def test_the_same_packet(lab: Lab, size: int) -> None:  # noqa: F811
    frame = bytes.fromhex(FAR + OWN) + b"\x88\xb5" + bytes(size)
    lab.send("10.99.0.3", packet(THREE, OURSELF, unicast(OWN, FAR)))
    with container(lab) as send:
        lab.heard()
        for wired in (0, lab.wire(0, "10.99.0.3", THREE)):
            lab.route(THREE, Kind.FAST, "10.99.0.3", wired)
            before = lab.kernel.traffic(3)
            send(frame)
            # What an outer header has is looked at there.
            assert lab.heard() == [("10.99.0.3", packet(OURSELF, THREE, frame))]
            now = lab.kernel.traffic(3).since(before)
            assert (now.frames_out, now.bytes_out) == (1, len(frame))
    shown = run("ip", "-n", lab.underlay.host(2).namespace, "-s", "link", "show", "vethwe-w0").splitlines()
    assert shown[-1].split()[1] == "1"


def test_nothing_comes_in(lab: Lab) -> None:  # noqa: F811
    """Who knows its port and an identifier reaches no socket of the host, nor the bridge, nor anybody by it."""
    name = lab.underlay.host(2).namespace
    lab.wire(0, "10.99.0.3", THREE)
    mac = run("ip", "-n", name, "link", "show", "vethwe-w0").partition("link/ether ")[2].split()[0]
    inner = bytes.fromhex(mac.replace(":", "") + OWN) + b"\x08\x00" + _datagram("10.77.0.1", "10.99.0.2", 5005)
    for setting in ("all", "default", "vethwe-w0"):
        run(*inside(name, "sysctl", "-q", "-w", f"net.ipv4.conf.{setting}.rp_filter=0"))
    with socket_in(name, socket.SOCK_DGRAM) as open_:
        open_.bind(("10.99.0.2", 5005))
        open_.setblocking(False)
        for number in range(4):
            data = b"\x08\0\0\0" + (number << 8).to_bytes(4, "big") + inner
            lab.senders["10.99.0.1"].sendto(data, ("10.99.0.2", LISTENS))
        assert lab.heard() == []
        with pytest.raises(BlockingIOError):
            open_.recv(100)
        assert lab.kernel.counts()["refused"] == 1
        # The host would have taken it: without the program it arrives.
        run("tc", "-n", name, "qdisc", "del", "dev", "vethwe-w0", "clsact")
        lab.senders["10.99.0.1"].sendto(b"\x08\0\0\0\0\0\x01\0" + inner, ("10.99.0.2", LISTENS))
        time.sleep(0.2)
        assert open_.recv(100) == b"forged"


def _datagram(source: str, target: str, port: int) -> bytes:
    """An IPv4 packet with a few octets of UDP."""
    content = bytes.fromhex("04d2") + port.to_bytes(2, "big") + (8 + 6).to_bytes(2, "big") + b"\0\0" + b"forged"
    header = bytearray(b"\x45\0" + (20 + len(content)).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0")
    header += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = ((~total) & 0xFFFF).to_bytes(2, "big")
    return bytes(header) + content


class World:
    """What follows devices in one namespace; `seal` may refuse."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.refuse = False
        self.changes = 0
        self.wires = Wires(loop, TransmitDevices(1376), self.seal, self.changed, logging.getLogger("test.transmit"))

    def seal(self, index: int) -> None:
        if self.refuse:
            raise KernelError("it cannot be set up: Address already in use")
        with IPRoute() as ip:
            ip.link("set", index=index, state="up")

    def changed(self) -> None:
        self.changes += 1

    async def follow(self, *wanted: Wire, used: tuple[int, ...] = ()) -> None:
        """Until there is nothing left to do."""
        for _ in range(12):
            self.wires.follow(wanted, used)
            await asyncio.sleep(0.1)

    def names(self, *wanted: Wire) -> list[str]:
        return [interface(self.wires.index(one)) for one in wanted]


def wire(number: int, local: str = "127.0.0.1") -> Wire:
    return Wire(local, f"127.0.1.{number}", 6784, number)


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    with namespace() as name:
        within(name, lambda: asyncio.run(scenario()))


def world() -> World:
    return World(asyncio.get_running_loop())


async def there() -> Sequence[transmit.Found]:
    """All devices. Netlink brings a loop of its own."""
    return await asyncio.to_thread(transmit.devices)


def test_devices_follow_what_is_wanted() -> None:
    one, two, other = wire(1), wire(2), wire(1, "127.0.0.2")

    async def scenario() -> None:
        made = world()
        await made.follow(one, two)
        assert made.names(one, two) == ["vethwe-w0", "vethwe-w1"] and made.changes == 2
        # It fits no more, and is still sent by.
        former = made.wires.index(one)
        await made.follow(other, two, used=(former,))
        assert interface(former) == "vethwe-w0" and made.names(other) == ["vethwe-w2"]
        await made.follow(other, two)
        assert interface(former) == "" and made.wires.index(one) == 0
        assert len(made.wires.indices()) == len(await there()) == 2
        # They listen on one port.
        assert len({device.listens for device in await there()}) == 1
        made.wires.close()

    play(scenario)


def test_somebody_removes_one() -> None:
    async def scenario() -> None:
        made = world()
        await made.follow(wire(1))
        await asyncio.to_thread(transmit.remove_all)
        made.wires.follow([wire(1)], ())
        assert made.wires.index(wire(1)) == 0 and made.changes == 2, "at once"
        await made.follow(wire(1))
        assert made.names(wire(1)) == ["vethwe-w0"]
        made.wires.close()

    play(scenario)


def test_they_are_taken_over() -> None:
    """But those that are not complete, or cannot be sealed."""

    async def scenario() -> None:
        made = world()
        await made.follow(wire(1), wire(2))
        before = made.wires.indices()
        made.wires.close()
        await asyncio.to_thread(run, "ip", "link", "add", "vethwe-w7", "type", "vxlan", "id", "9", "dstport", "7999")
        made = world()
        assert made.wires.indices() == before and len(await there()) == 2
        await made.follow(wire(1), wire(2), wire(3))
        assert set(before) < set(made.wires.indices()) and len({device.listens for device in await there()}) == 1
        made.wires.close()

    play(scenario)


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left over, it is said, and tried again."""

    async def scenario() -> None:
        made = world()
        made.refuse = True
        await made.follow(wire(1))
        assert made.wires.problem.endswith("Address already in use") and not await there() and not made.changes
        made.refuse = False
        await made.follow(wire(1))
        assert not made.wires.indices(), "not at once"
        made.wires.close()
        monkeypatch.setattr(wires, "_RETRY", 0.0)
        made = world()
        made.refuse = True
        made.wires.follow([wire(1)], ())
        await asyncio.sleep(0.3)
        made.refuse = False
        await made.follow(wire(1))
        assert made.names(wire(1)) == ["vethwe-w0"] and not made.wires.problem
        made.wires.close()

    play(scenario)


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "LIMIT", 2)

    async def scenario() -> None:
        made = world()
        await made.follow(wire(1), wire(2), wire(3))
        assert [bool(made.wires.index(wire(number))) for number in (1, 2, 3)] == [True, True, False]
        await made.follow(wire(2), wire(3))
        assert [bool(made.wires.index(wire(number))) for number in (1, 2, 3)] == [False, True, True]
        made.wires.close()

    play(scenario)
