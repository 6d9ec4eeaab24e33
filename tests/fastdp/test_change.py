"""A peer with a thousand addresses gets another next hop, and not a frame is lost."""

import socket
import time
from collections.abc import Callable
from typing import cast

import pytest

from fastdp.maps import Kind, Route, host
from fastdp.table import KernelTable
from lab.net import run
from lab.router import socket_in
from mesh.names import PeerName
from overlay.seams import Forwarder, Topology
from tests.fastdp.test_programs import ONE, OURSELF, THREE, Lab, lab  # noqa: F401

US, FAR = PeerName(4026), PeerName(2639)
OTHERS = [PeerName(number) for number in range(1, 100)]
ADDRESSES = 1000
FRAMES = 2000


class World:
    """A hundred peers; each one's name is its short id."""

    ourself = US

    def short_id(self, name: PeerName) -> int | None:
        return int(name)


def address(number: int) -> bytes:
    return b"\x02\xbb" + number.to_bytes(4, "big")


Hops = list[tuple[PeerName, Forwarder | None]]


def tables(made: Lab, wires: dict[str, int]) -> tuple[KernelTable, Callable[[str], Hops]]:
    """A table over the programs' maps that knows a peer's addresses, and what it is told of next hops."""
    hops = {one: Route(Kind.FAST, host(one), host("10.99.0.2"), made.kernel.port) for one in made.ears}

    def neighbour(forwarder: Forwarder) -> tuple[PeerName, Route]:
        return FAR, hops[cast(str, forwarder)]

    table = KernelTable(
        made.kernel.maps, cast(Topology, World()), neighbour, clock=time.monotonic, later=lambda *rest: None,
        wired=lambda forwarder, number: wires.get(cast(str, forwarder), 0), wires=lambda: set(wires.values()),
    )  # fmt: skip
    table.start(made.kernel.sleeve, made.kernel.ctl_index, made.kernel.port)

    def towards(hop: str) -> Hops:
        rest = [(name, cast(Forwarder, "10.99.0.1")) for name in OTHERS]
        return [(US, None), (FAR, cast(Forwarder, hop)), *rest]

    table.routes(towards("10.99.0.1"))
    for number in range(ADDRESSES):
        table.address(address(number), FAR)
    return table, towards


@pytest.mark.parametrize("wired", [False, True], ids=["by keys", "by transmit devices"])
def test_another_next_hop(lab: Lab, wired: bool) -> None:  # noqa: F811
    wires = {hop: lab.wire(one, hop, int(FAR)) for one, hop in enumerate(lab.ears)} if wired else {}
    table, towards = tables(lab, wires)
    name = lab.underlay.host(2).namespace
    run("ip", "-n", name, "link", "add", "c0", "master", "weave", "type", "veth", "peer", "name", "c1")
    for link in ("c0", "c1", "weave"):
        run("ip", "-n", name, "link", "set", link, "up")
    time.sleep(1)
    took = []
    arrived: dict[str, int] = dict.fromkeys(lab.ears, 0)
    with socket_in(name, socket.SOCK_RAW, socket.AF_PACKET) as sender:
        sender.bind(("c1", 0))
        for number in range(FRAMES):
            sender.send(address(number % ADDRESSES) + bytes.fromhex("02cc00000001") + b"\x88\xb5" + bytes(46))
            if number % 20 == 10:
                hop = ("10.99.0.1", "10.99.0.3")[number // 20 % 2]
                begun = time.perf_counter()
                table.routes(towards(hop))
                took.append(time.perf_counter() - begun)
            if number % 50 == 0:
                for receiver, _ in lab.heard(0.0):
                    arrived[receiver] += 1
    for receiver, _ in lab.heard():
        arrived[receiver] += 1
    assert sum(arrived.values()) == FRAMES and all(arrived.values())
    sent_by = run("ip", "-n", name, "-s", "link", "show", "vethwe-w0") if wired else ""
    assert not wired or int(sent_by.splitlines()[-1].split()[1]) > FRAMES / 3
    # A busy machine may take longer now and then.
    assert sorted(took)[len(took) // 2] < 0.005
    print(f"median {sorted(took)[len(took) // 2] * 1e3:.2f} ms, worst {max(took) * 1e3:.2f} ms")
