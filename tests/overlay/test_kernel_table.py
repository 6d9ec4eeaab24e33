"""Frames beside a data path in the kernel: nobody gets two copies, and nobody none."""

from collections.abc import Sequence
from typing import cast

import pytest

from mesh.names import PeerName
from overlay.forwarding import FrameRouter
from overlay.seams import Forwarder
from overlay.table import TwoTables
from tests.overlay.fakes import BROADCAST, LOG, FakePath, View, World, arp, ip, mac

US, FAST, SLOW = (PeerName(number) for number in (1, 2, 3))
STAR = {1: {2, 3}, 2: {1}, 3: {1}}
HERE, THERE, NEW = mac(1), mac(2), mac(3)


class Bench:
    """A frame router with one neighbour in the kernel and one that is not."""

    def __init__(self) -> None:
        self.out: list[PeerName | str] = []
        self.now = 10.0
        links = {peer: _Link(self, peer) for peer in (FAST, SLOW)}
        self.router = FrameRouter(
            View(World(STAR), US),
            self,
            links.get,
            clock=lambda: self.now,
            log=LOG,
            in_kernel=lambda source, hop: hop == FAST,
        )

    def inject(self, frame: bytes) -> None:
        self.out.append("bridge")


class _Link:
    def __init__(self, bench: Bench, peer: PeerName) -> None:
        self._bench = bench
        self._peer = peer

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        self._bench.out.append(self._peer)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_the_bridge_floods_goes_to_the_others(bench: Bench) -> None:
    bench.router.captured(arp(HERE))
    bench.router.captured(ip(NEW, HERE))
    assert bench.out == [SLOW, SLOW]


def test_what_the_bridge_sends_here_alone_is_carried(bench: Bench) -> None:
    """The bridge took the peer for one of sleeve's; the kernel has no copy."""
    bench.router.learned(THERE, FAST)
    bench.router.captured(ip(THERE, HERE))
    assert bench.out == [FAST]


def test_what_sleeve_brings_goes_to_the_kernel_as_well(bench: Bench) -> None:
    bench.router.received(SLOW, US, arp(THERE))
    assert bench.out == ["bridge", FAST]


def test_what_the_kernel_hands_on(bench: Bench) -> None:
    bench.router.flooded(FAST, arp(THERE), served=True)
    assert bench.out == [SLOW]
    bench.router.flooded(FAST, arp(THERE), served=False)
    assert bench.out == [SLOW, SLOW], "we are a leaf of this tree but for one"
    bench.router.flooded(PeerName(99), arp(THERE), served=False)
    assert bench.router.counts["unknown-peer"] == 1


def test_addresses_that_the_kernel_met(bench: Bench) -> None:
    bench.router.learned(THERE, FAST)
    bench.router.learned(HERE, US)
    assert bench.router.macs.owner(THERE) == FAST and bench.router.macs.owner(HERE) == US
    bench.router.learned(BROADCAST, FAST)
    assert bench.router.macs.owner(BROADCAST) is None


class Table:
    """A table that remembers floods."""

    def __init__(self, seen: float) -> None:
        self.floods: list[Sequence[Forwarder] | None] = []
        self.moment = seen
        self.owner: PeerName | None = None

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        self.owner = owner

    def seen(self, mac: bytes) -> float:
        return self.moment

    def routes(self, hops: Sequence[tuple[PeerName, Forwarder | None]]) -> None:
        pass

    def flood(self, source: PeerName, hops: Sequence[Forwarder] | None) -> None:
        self.floods.append(hops)


def test_two_tables() -> None:
    kernel, sleeve = Table(3.0), Table(5.0)
    both = TwoTables(kernel, sleeve, US)
    hops = [cast(Forwarder, FakePath(name)) for name in ("fastdp", "sleeve")]
    both.flood(US, hops)
    both.flood(FAST, hops)
    both.flood(SLOW, None)
    assert kernel.floods == [hops, hops, None]
    assert sleeve.floods == [[hops[1]], hops, None], "our own floods it shares with the kernel"
    both.address(HERE, US)
    assert (kernel.owner, sleeve.owner, both.seen(HERE)) == (US, US, 5.0)
