"""What is written into the kernel's maps, and what is left there for a while."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from fastdp.maps import KEY, NO_SHORT, Config, Kind, Route, Tree, host, mac_key, pack_address, unpack_address
from fastdp.table import GRACE, KernelTable
from fastdp.wire import vni
from mesh.names import PeerName
from overlay.seams import Forwarder, Topology

US, ONE, TWO, THREE = (PeerName(number) for number in (10, 1, 2, 3))
SHORTS = {US: 0x111, ONE: 0x222, TWO: 0x333, THREE: 0x444}
MAC = bytes.fromhex("02aa00000001")
NAMES = ("config", "peers", "trees", "sources", "remotes", "locals")


class Fake:
    """A map."""

    def __init__(self, *, array: int = 0) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.empty = bytes(array)
        self.writes = 0

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key, self.empty or None)

    def set(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        self.rows[key] = value

    def delete(self, key: bytes) -> None:
        self.rows.pop(key, None)

    def all_keys(self) -> list[bytes]:
        return list(self.rows)


class World:
    """A topology, a clock, maps that outlive a table."""

    ourself = US

    def __init__(self) -> None:
        self.shorts: dict[PeerName, int | None] = dict(SHORTS)
        self.maps = {name: Fake(array={"config": 32, "peers": 52}.get(name, 0)) for name in NAMES}
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.links = {peer: object() for peer in (ONE, TWO, THREE)}
        self.slow = object()
        self.direct: set[PeerName] = set()
        # Transmit devices by peer, for the identifiers they send under.
        self.wires: dict[PeerName, tuple[int, int]] = {}
        self.table = self.start()

    def start(self) -> KernelTable:
        table = KernelTable(
            self.maps, cast(Topology, self), self.fast, clock=lambda: self.now, later=self.call_later,
            wired=self.wired, wires=lambda: {index for index, _ in self.wires.values()},
        )  # fmt: skip
        table.start(5, 6, 7)
        return table

    def wired(self, forwarder: Forwarder, number: int) -> int:
        peer = next(peer for peer, link in self.links.items() if link is forwarder)
        index, under = self.wires.get(peer, (0, 0))
        return index if under == number else 0

    def short_id(self, name: PeerName) -> int | None:
        return self.shorts.get(name)

    def fast(self, forwarder: Forwarder) -> tuple[PeerName, Route] | None:
        peers = (peer for peer, link in self.links.items() if link is forwarder)
        return next(((peer, replace(route(peer), direct=peer in self.direct)) for peer in peers), None)

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay, call))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [(at, call) for at, call in self.timers if at > self.now]
        for call in due:
            call()

    def write(self, hops: dict[PeerName, object | None]) -> None:
        self.table.routes(cast(list[tuple[PeerName, Forwarder | None]], [(US, None), *hops.items()]))

    def flood(self, source: PeerName, *hops: object) -> None:
        self.table.flood(source, cast(list[Forwarder], list(hops)))

    def peer(self, name: PeerName) -> Route:
        return Route.unpack(self.maps["peers"].get(KEY.pack(SHORTS[name])) or b"")

    def tree(self, name: PeerName) -> Tree | None:
        value = self.maps["trees"].get(KEY.pack(SHORTS[name]))
        return None if value is None else Tree.unpack(value)


def route(peer: PeerName) -> Route:
    return Route(Kind.FAST, host(f"10.99.0.{peer}"), host("fd99::9"), 4)


@pytest.fixture
def world() -> World:
    return World()


def test_routes(world: World) -> None:
    world.write({ONE: world.links[ONE], TWO: world.links[ONE], THREE: world.slow})
    assert world.peer(ONE) == world.peer(TWO) == route(ONE)
    assert world.peer(THREE).kind is Kind.SLEEVE
    assert Config.unpack(world.maps["config"].get(KEY.pack(0)) or b"").ourself == SHORTS[US]
    before = world.maps["peers"].writes
    world.write({ONE: world.links[ONE], TWO: world.links[ONE], THREE: world.slow})
    assert world.maps["peers"].writes == before, "what is there is not written again"
    world.write({ONE: world.links[ONE]})
    assert world.peer(TWO).kind is Kind.NONE


def test_floods(world: World) -> None:
    world.write({ONE: world.links[ONE], TWO: world.slow, THREE: world.links[THREE]})
    world.flood(US, world.links[ONE], world.slow, world.links[THREE])
    assert world.tree(US) == Tree((SHORTS[ONE], SHORTS[THREE]), True)
    world.flood(ONE, world.links[THREE])
    assert world.tree(ONE) == Tree((SHORTS[THREE],), False)
    assert world.table.serves(US, ONE) and not world.table.serves(US, TWO) and not world.table.serves(ONE, ONE)
    world.table.flood(ONE, None)
    assert world.tree(ONE) is None


def test_floods_that_go_on_to_nobody(world: World) -> None:
    """Are told with the peer's route, whichever of the two is written last."""

    def leaf() -> bool:
        return world.maps["peers"].rows[KEY.pack(SHORTS[ONE])] == route(ONE).pack(leaf=True)

    world.write({ONE: world.links[ONE], TWO: world.links[TWO]})
    assert not leaf()
    world.flood(ONE)
    assert leaf()
    world.write({ONE: world.links[TWO], TWO: world.links[TWO]})
    world.write({ONE: world.links[ONE], TWO: world.links[TWO]})
    assert leaf()
    for hops in ([world.links[TWO]], [world.slow], None):
        world.table.flood(ONE, cast(list[Forwarder] | None, hops))
        assert not leaf()
        world.flood(ONE)
        assert leaf()


def test_the_lowest_name_owns_a_short_id(world: World) -> None:
    world.shorts[THREE] = SHORTS[ONE]
    world.write({ONE: world.links[ONE], THREE: world.links[THREE]})
    assert world.table.owners[SHORTS[ONE]] == ONE
    world.table.address(MAC, THREE)
    assert unpack_address(world.maps["remotes"].rows[mac_key(MAC)])[1] == NO_SHORT, "sleeve carries it"
    world.shorts[THREE] = SHORTS[THREE]
    world.write({ONE: world.links[ONE], THREE: world.links[THREE]})
    assert unpack_address(world.maps["remotes"].rows[mac_key(MAC)])[1] == SHORTS[THREE], "and now the kernel"


def test_addresses(world: World) -> None:
    world.write({ONE: world.links[ONE]})
    world.table.address(MAC, ONE)
    assert mac_key(MAC) in world.maps["remotes"].rows
    world.table.address(MAC, US)
    assert mac_key(MAC) not in world.maps["remotes"].rows and mac_key(MAC) in world.maps["locals"].rows
    assert world.table.seen(MAC) == pytest.approx(100.0)
    world.table.address(MAC, None)
    assert not world.maps["locals"].rows and world.table.seen(MAC) == 0


def test_a_link_that_ended_is_served_for_a_while(world: World) -> None:
    hop = route(ONE).hop
    world.table.admit(hop)
    world.write({ONE: world.links[ONE]})
    world.flood(US, world.links[ONE])
    world.table.address(MAC, ONE)
    # As it happens: the peer is forgotten first.
    world.table.address(MAC, None)
    world.table.leave(hop)
    world.write({})
    world.flood(US)
    world.wait(2)
    assert world.peer(ONE) == route(ONE) and hop in world.maps["sources"].rows
    assert unpack_address(world.maps["remotes"].rows[mac_key(MAC)])[1] == SHORTS[ONE]
    assert world.tree(US) == Tree((SHORTS[ONE],), False)
    world.wait(GRACE + 1)
    assert world.peer(ONE).kind is Kind.NONE and not world.maps["sources"].rows
    assert not world.maps["remotes"].rows and world.tree(US) == Tree((), False)


def test_our_floods_go_on_to_those_who_live_when_a_grace_time_ends(world: World) -> None:
    """Of two connections to a peer one ended; the other, and another peer, live on."""
    for peer in (ONE, ONE, THREE):
        world.table.admit(route(peer).hop)
    world.write({ONE: world.links[ONE], THREE: world.links[THREE]})
    world.flood(US, world.links[ONE], world.links[THREE])
    for _ in range(2):
        world.table.leave(route(ONE).hop)
    world.table.admit(route(ONE).hop)
    world.wait(GRACE + 1)
    assert world.tree(US) == Tree((SHORTS[ONE], SHORTS[THREE]), False)
    assert world.peer(ONE) == route(ONE)


def test_an_address_that_is_forgotten_alone(world: World) -> None:
    world.table.admit(route(ONE).hop)
    world.write({ONE: world.links[ONE]})
    world.table.address(MAC, ONE)
    world.table.address(MAC, None)
    world.wait(2)
    assert not world.maps["remotes"].rows


def test_a_link_that_comes_back_in_time(world: World) -> None:
    hop = route(ONE).hop
    world.table.admit(hop)
    world.write({ONE: world.links[ONE]})
    world.table.leave(hop)
    world.write({})
    world.wait(5)
    world.table.admit(hop)
    world.write({ONE: None})
    assert world.peer(ONE) == route(ONE), "while the new connection has no route yet"
    world.write({ONE: world.links[ONE]})
    world.wait(GRACE + 1)
    assert world.peer(ONE) == route(ONE) and hop in world.maps["sources"].rows


def test_a_new_daemon_takes_over(world: World) -> None:
    hop = route(ONE).hop
    world.table.admit(hop)
    world.write({ONE: world.links[ONE]})
    world.flood(ONE, world.links[TWO])
    world.maps["remotes"].set(mac_key(MAC), pack_address(1.0, SHORTS[ONE]))
    world.timers.clear()
    world.table = world.start()
    world.write({})
    assert world.peer(ONE) == route(ONE) and hop in world.maps["sources"].rows
    assert world.tree(ONE) is not None
    world.wait(GRACE + 1)
    assert world.peer(ONE).kind is Kind.NONE and not world.maps["sources"].rows


def test_trees_of_another_daemon_are_followed_or_forgotten(world: World) -> None:
    world.write({ONE: world.links[ONE], TWO: world.links[TWO]})
    world.flood(ONE, world.links[TWO])
    world.flood(TWO, world.links[ONE])
    world.timers.clear()
    world.table = world.start()
    world.write({ONE: world.links[ONE], TWO: world.links[TWO]})
    world.wait(1)
    assert world.tree(ONE) is not None and world.tree(TWO) is not None
    world.flood(ONE, world.links[THREE])
    world.wait(GRACE)
    # Nobody writes the other one: it would stay as it was, whatever becomes of the mesh.
    assert world.tree(TWO) is None
    assert world.tree(ONE) is not None


def test_another_short_id_of_ours(world: World) -> None:
    world.write({})
    world.shorts[US] = 0x999
    world.write({})
    config = Config.unpack(world.maps["config"].get(KEY.pack(0)) or b"")
    assert (config.ourself, config.former) == (0x999, SHORTS[US])


def test_every_address_has_counters_of_its_own(world: World) -> None:
    """Two links to one address share them, a link that comes back has the same; the next daemon goes on with them."""
    one, two = route(ONE).hop, route(TWO).hop
    first = world.table.admit(one)
    assert first and world.table.admit(two) not in (0, first) and world.table.admit(one) == first
    for _ in range(2):
        world.table.leave(one)
    assert world.table.admit(one) == first
    world.table = world.start()
    assert world.table.admit(two) != first == world.table.admit(one)


def test_a_next_hop_that_takes_nothing_of_others(world: World) -> None:
    """What is for itself it gets from the kernel; what it would relay, and others' floods, go over sleeve."""
    direct = replace(route(ONE), direct=True)
    world.direct = {ONE}
    world.write({ONE: world.links[ONE], TWO: world.links[ONE], THREE: world.links[THREE]})
    assert world.peer(ONE) == direct and world.peer(TWO).kind is Kind.SLEEVE and world.peer(THREE) == route(THREE)
    world.flood(US, world.links[ONE], world.links[THREE])
    world.flood(THREE, world.links[ONE])
    assert world.tree(US) == Tree((SHORTS[ONE], SHORTS[THREE]), False) and world.tree(THREE) == Tree((), True)
    assert world.table.serves(US, ONE) and not world.table.serves(THREE, ONE)


def test_a_device_in_place_of_another(world: World) -> None:
    world.write({ONE: world.links[ONE], TWO: world.slow})
    world.table.moved(4, 9)
    assert world.peer(ONE) == replace(route(ONE), device=9) and world.peer(TWO).kind is Kind.SLEEVE


def wire(world: World, peer: PeerName, index: int) -> Route:
    """Give a peer a transmit device; its route then."""
    world.wires[peer] = index, vni(cast(int, world.shorts[US]), cast(int, world.shorts[peer]))
    return replace(route(peer), wired=index)


def test_neighbours_are_reached_by_transmit_devices(world: World) -> None:
    """And none behind them: those frames go under other identifiers."""
    world.write({ONE: world.links[ONE], TWO: world.links[ONE], THREE: world.slow})
    wired = wire(world, ONE, 40)
    world.table.rewire()
    assert world.peer(ONE) == wired and world.peer(TWO) == route(ONE) and world.peer(THREE).kind is Kind.SLEEVE
    assert 40 in world.table.wires_used()
    world.wires.clear()
    world.table.rewire()
    assert world.peer(ONE) == route(ONE) and 40 not in world.table.wires_used()


def test_a_link_that_ended_keeps_its_transmit_device(world: World) -> None:
    hop = route(ONE).hop
    wired = wire(world, ONE, 40)
    world.table.admit(hop)
    world.write({ONE: world.links[ONE]})
    world.table.leave(hop)
    world.write({})
    assert world.peer(ONE) == wired and 40 in world.table.wires_used()
    world.wires.clear()
    world.table.rewire()
    assert world.peer(ONE) == route(ONE), "somebody removed the device"
    world.wait(GRACE + 1)
    assert world.peer(ONE).kind is Kind.NONE


def test_another_short_id_needs_other_devices(world: World) -> None:
    """Ours or the peer's; until they are there the program addresses the frames."""
    wire(world, ONE, 40)
    wire(world, TWO, 41)
    world.table.admit(route(TWO).hop)
    world.write({ONE: world.links[ONE], TWO: world.links[TWO]})
    world.table.leave(route(TWO).hop)
    world.write({ONE: world.links[ONE]})
    world.shorts[US] = 0x999
    world.write({ONE: world.links[ONE]})
    assert world.peer(ONE) == route(ONE) and world.peer(TWO) == route(TWO)
    wired = wire(world, ONE, 42)
    world.table.rewire()
    assert world.peer(ONE) == wired
    world.shorts[ONE] = SHORTS[ONE] = 0x555
    try:
        world.write({ONE: world.links[ONE]})
        assert world.peer(ONE) == route(ONE)
    finally:
        SHORTS[ONE] = 0x222


def test_a_new_daemon_takes_transmit_devices_over(world: World) -> None:
    for peer, index in ((ONE, 40), (TWO, 41)):
        world.table.admit(route(peer).hop)
        wire(world, peer, index)
    world.write({ONE: world.links[ONE], TWO: world.links[TWO]})
    del world.wires[TWO]
    world.table = world.start()
    world.write({})
    assert world.peer(ONE) == replace(route(ONE), wired=40) and world.peer(TWO) == route(TWO)
