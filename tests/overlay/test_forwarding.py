"""Where frames go: every decision as a row of a table, and whole meshes of frame routers in memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mesh.names import PeerName
from overlay.forwarding import FrameRouter
from tests.overlay.fakes import BROADCAST, LOG, View, World, arp, ip, mac

US, NEAR, FAR, AWAY, STRANGER = (PeerName(number) for number in (1, 2, 3, 4, 9))
# Ourself - near - far, and a peer that nobody reaches.
CHAIN = {1: {2}, 2: {1, 3}, 3: {2}, 4: set[int]()}
OUR_MAC, NEAR_MAC, FAR_MAC, AWAY_MAC, NEW_MAC, OTHER_MAC = (mac(number) for number in (1, 2, 3, 4, 5, 6))
STP = bytes.fromhex("0180c2000000")
MULTICAST = bytes.fromhex("01005e000001")
IPV6_MULTICAST = bytes.fromhex("333300000001")

Sent = tuple[str, int, int, int, bool]


class Bench:
    """One frame router with its neighbours and bridge as lists of what reached them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.out: list[Sent | str] = []
        self.links = {NEAR: self}
        self.router = FrameRouter(View(World(CHAIN), US), self, self.links.get, clock=lambda: self.now, log=LOG)
        macs = self.router.macs
        macs.learn_local(OUR_MAC, self.now)
        for address, peer in ((NEAR_MAC, NEAR), (FAR_MAC, FAR), (AWAY_MAC, AWAY)):
            macs.learn_remote(address, peer, self.now)
        self.now += 10.0

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        self.out.append(("link", NEAR, source, destination, broadcast))

    def inject(self, frame: bytes) -> None:
        self.out.append("bridge")


FLOOD: list[Sent | str] = [("link", NEAR, US, NEAR, True)]


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        pytest.param(OUR_MAC, [], id="known here: the bridge delivers"),
        pytest.param(NEAR_MAC, [("link", NEAR, US, NEAR, False)], id="known at a neighbour"),
        pytest.param(FAR_MAC, [("link", NEAR, US, FAR, False)], id="known two hops away"),
        pytest.param(AWAY_MAC, [], id="known at a peer without a route"),
        pytest.param(OTHER_MAC, FLOOD, id="unknown"),
        pytest.param(BROADCAST, FLOOD, id="broadcast"),
        pytest.param(MULTICAST, FLOOD, id="multicast"),
        pytest.param(IPV6_MULTICAST, FLOOD, id="IPv6 multicast"),
        pytest.param(STP, [], id="spanning tree"),
    ],
)
def test_captured_frames(destination: bytes, expected: list[Sent | str]) -> None:
    bench = Bench()
    bench.router.captured(ip(destination, NEW_MAC))
    assert bench.out == expected
    assert bench.router.macs.owner(NEW_MAC) == US, "learned whatever becomes of the frame"


@pytest.mark.parametrize(
    ("source", "destination", "target", "expected", "learned"),
    [
        pytest.param(NEAR, US, OUR_MAC, ["bridge"], NEAR, id="for an address here"),
        pytest.param(FAR, US, OUR_MAC, ["bridge"], FAR, id="from two hops away"),
        pytest.param(NEAR, US, BROADCAST, ["bridge"], NEAR, id="flood of a neighbour: a leaf passes nothing on"),
        pytest.param(NEAR, US, OTHER_MAC, ["bridge"], NEAR, id="address unknown here: also flooded on, to nobody"),
        pytest.param(NEAR, FAR, FAR_MAC, [("link", NEAR, NEAR, FAR, False)], None, id="relayed, names unchanged"),
        pytest.param(NEAR, FAR, BROADCAST, [("link", NEAR, NEAR, FAR, False)], None, id="relay asks no address"),
        pytest.param(NEAR, AWAY, AWAY_MAC, [], None, id="relay without a route"),
        pytest.param(STRANGER, US, OUR_MAC, [], None, id="from an unknown peer"),
        pytest.param(NEAR, STRANGER, OUR_MAC, [], None, id="to an unknown peer"),
        pytest.param(US, FAR, FAR_MAC, [("link", NEAR, US, FAR, False)], None, id="our own, on its way elsewhere"),
        pytest.param(US, US, BROADCAST, ["bridge", *FLOOD], None, id="our own, back here: nothing is learned"),
    ],
)
def test_received_frames(
    source: PeerName, destination: PeerName, target: bytes, expected: list[Sent | str], learned: PeerName | None
) -> None:
    bench = Bench()
    bench.router.received(source, destination, ip(target, NEW_MAC))
    assert bench.out == expected
    assert bench.router.macs.owner(NEW_MAC) == learned


def test_a_relay_floods_on_what_it_does_not_know_as_its_own() -> None:
    world = World(CHAIN)
    world.routers[3].captured(arp(FAR_MAC))
    world.routers[1].captured(arp(OUR_MAC))
    world.delivered.clear()
    frame = ip(OTHER_MAC, OUR_MAC)
    world.routers[2].received(US, NEAR, frame)
    assert sorted(world.delivered) == [(2, frame), (3, frame)]


def test_without_a_link_frames_are_dropped_and_counted() -> None:
    bench = Bench()
    bench.links.clear()
    bench.router.captured(ip(FAR_MAC, OUR_MAC))
    bench.router.captured(arp(OUR_MAC))
    assert bench.out == []
    assert bench.router.counts["no-route"] == 2


def test_a_reflection_is_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.router.received(NEAR, US, arp(NEAR_MAC))
    bench.out.clear()
    for _ in range(1000):
        bench.router.captured(arp(NEAR_MAC))
    assert bench.out == []
    assert bench.router.counts["reflected"] == 1000
    text = "Captured frame from MAC (02:00:00:00:00:02) to (ff:ff:ff:ff:ff:ff) associated with another peer"
    assert caplog.messages == [f"{text} 00:00:00:00:00:02"] * 10


def test_forged_addresses_fill_neither_log_nor_table(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench()
    for number in range(20000):
        bench.router.received(NEAR, US, arp(b"\2\1" + number.to_bytes(4, "big")))
    assert caplog.messages[0] == "Discovered remote MAC 02:01:00:00:00:00 at 00:00:00:00:00:02()"
    assert len(caplog.messages) == 100
    assert bench.router.macs.owner(OUR_MAC) == US
    assert bench.router.macs.owner(FAR_MAC) == FAR
    assert bench.router.counts["mac-evicted"] > 0
    bench.now += 60
    bench.router.received(NEAR, US, arp(NEW_MAC))
    assert len(caplog.messages) == 101


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, set[int]]:
    count = draw(st.integers(2, 8))
    links: dict[int, set[int]] = {name: set() for name in range(1, count + 1)}
    pairs = [(one, draw(st.integers(1, one - 1))) for one in range(2, count + 1)]
    pairs += draw(st.lists(st.tuples(st.integers(1, count), st.integers(1, count)), max_size=8))
    for one, other in pairs:
        if one != other:
            links[one].add(other)
            links[other].add(one)
    return links


@settings(max_examples=60)
@given(graphs())
def test_floods_reach_everybody_once_and_unicasts_one(links: dict[int, set[int]]) -> None:
    world = World(links)
    for name in links:
        assert world.captured(name, arp(mac(name))) == sorted(links.keys() - {name})
    for name in links:
        for other in links.keys() - {name}:
            assert world.captured(name, ip(mac(other), mac(name))) == [other]


def test_an_address_that_moves_is_found_with_its_first_frame() -> None:
    world = World({1: {2, 3}, 2: {1, 3}, 3: {1, 2}})
    for step, home in enumerate((1, 2, 3, 1, 2)):
        world.now = step * 10.0
        world.captured(home, arp(mac(77)))
        assert world.captured(1 if home != 1 else 2, ip(mac(77), mac(50 + home))) == [home]


def test_frames_that_are_nobodys() -> None:
    world = World({1: {2}, 2: {1}})
    router = world.routers[1]
    for frame in (b"", bytes(13), bytes(14), bytes(60)):
        router.captured(frame)
        router.received(PeerName(2), PeerName(1), frame)
    router.captured(bytes.fromhex("0180c2000000") + mac(1) + b"\0\x26" + bytes(40))
    router.received(PeerName(8), PeerName(1), ip(mac(1), mac(2)))
    assert not world.delivered
    assert router.counts["malformed"] == 8
    assert router.counts["stp"] == 1
    assert router.counts["unknown-peer"] == 1


PEERS = st.sampled_from([0, 1, 2, 3, 9, 2**48 - 1]).map(PeerName)
FRAMES = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda to, by, body: to + by + body,
        *[st.sampled_from([mac(1), mac(2), BROADCAST, STP, bytes(6)])] * 2,
        st.binary(min_size=2, max_size=80),
    ),
)


@given(st.lists(st.tuples(st.booleans(), PEERS, PEERS, FRAMES), max_size=30))
def test_garbage_goes_nowhere_twice(frames: list[tuple[bool, PeerName, PeerName, bytes]]) -> None:
    world = World({1: {2, 3}, 2: {1, 3}, 3: {1, 2}})
    for captured, source, destination, frame in frames:
        world.delivered.clear()
        world.carried = 0
        if captured:
            world.routers[2].captured(frame)
        else:
            world.routers[2].received(source, destination, frame)
        arrived = [name for name, _ in world.delivered]
        assert len(arrived) == len(set(arrived))


class Meshes(RuleBasedStateMachine):
    """Containers speak and move while links come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World({1: set()})
        self.homes: dict[int, int] = {}
        # Who heard of an address since it came to its home.
        self.heard: dict[int, set[int]] = {}

    @initialize(links=graphs())
    def build(self, links: dict[int, set[int]]) -> None:
        self.world = World(links)

    def peer(self, number: int) -> int:
        return 1 + number % len(self.world.links)

    @rule(one=st.integers(0, 7), other=st.integers(0, 7))
    def link_comes_or_goes(self, one: int, other: int) -> None:
        one, other = self.peer(one), self.peer(other)
        if one != other:
            self.world.links[one] ^= {other}
            self.world.links[other] ^= {one}

    @rule(container=st.integers(0, 3), home=st.integers(0, 7))
    def container_appears_or_moves(self, container: int, home: int) -> None:
        """It says so with a gratuitous ARP, as attach makes it do."""
        self.world.now += 1.0
        if self.homes.get(container) != self.peer(home):
            self.heard[container] = set()
        self.homes[container] = self.peer(home)
        self.container_broadcasts(container)

    @rule(container=st.integers(0, 3))
    def container_broadcasts(self, container: int) -> None:
        if container in self.homes:
            home = self.homes[container]
            reached = self.world.captured(home, arp(mac(container)))
            others = set(self.world.tree(home)[0]) - {home}
            assert reached == sorted(others), "everybody in reach, once"
            self.heard[container] |= others | {home}

    @rule(one=st.integers(0, 3), other=st.integers(0, 3))
    def one_speaks_to_another(self, one: int, other: int) -> None:
        if one == other or one not in self.homes or other not in self.homes:
            return
        self.world.now += 1.0
        start, home = self.homes[one], self.homes[other]
        reached = self.world.captured(start, ip(mac(other), mac(one)))
        assert len(reached) == len(set(reached)), "nobody gets a frame twice"
        if start in self.heard[other]:
            in_reach = home in self.world.tree(start)[0]
            assert reached == ([home] if in_reach and home != start else [])
        if home in reached:
            self.heard[one].add(home)


TestMeshes = Meshes.TestCase
TestMeshes.settings = settings(max_examples=60, stateful_step_count=30)
