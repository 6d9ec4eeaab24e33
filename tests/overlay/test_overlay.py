"""The overlay's decisions against the reference's results, and whole meshes of frame routers in memory."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.names import PeerName
from mesh.seams import AttrValue, ConnectionParams, OverlayError
from overlay.forwarding import FrameRouter
from overlay.frames import checksum, ipv4_header, is_special
from overlay.icmp import frag_needed, packet_too_big
from overlay.mac import MAX_AGE, REFLECTION_GUARD, Learned, MacTable
from overlay.seams import Forwarder, ForwarderEvents
from overlay.switch import OverlaySwitch, Slot, choose_best, common_overlays
from tests.vectors import ROOT

LOG = logging.getLogger("test")


def document(file: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "overlay" / file).read_text()))


@pytest.mark.parametrize("case", document("frame-classify.json")["cases"], ids=lambda case: case["description"])
def test_classification(case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["frame"])
    header = ipv4_header(frame)
    if case["decoded_layers"] == 0:
        assert len(frame) < 14
        return
    assert (header is not None) == (case["decoded_layers"] == 2)
    assert (header is not None and header.df) == case["df"]
    assert is_special(frame) == case["special"]


@pytest.mark.parametrize("case", document("icmp-frag-needed.json")["cases"], ids=lambda case: case["description"])
def test_frag_needed(case: dict[str, Any]) -> None:
    answer = frag_needed(bytes.fromhex(case["frame"]), case["mtu"])
    assert answer is not None
    assert answer.hex() == case["icmp_frame"]


def test_packet_too_big() -> None:
    source, destination = bytes(15) + b"\1", bytes(15) + b"\2"
    packet = (6 << 28).to_bytes(4, "big") + (1460).to_bytes(2, "big") + b"\x11\x40" + source + destination + bytes(1460)
    frame = bytes.fromhex("02bb00000002" + "02aa00000001" + "86dd") + packet
    answer = packet_too_big(frame, 1400)
    assert answer is not None
    assert answer[:14].hex() == "02aa00000001" + "02bb00000002" + "86dd"
    ip, icmp = answer[14:54], answer[54:]
    assert ip[8:24] == destination
    assert ip[24:40] == source
    assert icmp[:2] == b"\2\0"
    assert int.from_bytes(icmp[4:8], "big") == 1400
    assert len(answer) - 14 <= 1280
    assert checksum(ip[8:40] + len(icmp).to_bytes(4, "big") + b"\0\0\0\x3a" + icmp) == 0
    assert packet_too_big(answer, 1400) is None, "never an error about an error"
    assert packet_too_big(frame, 1200) is None


@pytest.mark.parametrize("case", document("overlay-switch.json")["common"])
def test_common_overlays(case: dict[str, Any]) -> None:
    if case.get("error"):
        with pytest.raises(OverlayError, match=case["error"]):
            common_overlays(case["ours"], case["peer_feature"])
    else:
        assert common_overlays(case["ours"], case["peer_feature"]) == case["forwarders_by_index"]


class FakePath:
    """A data path that does what the test says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: ForwarderEvents | None = None
        self.calls: list[tuple[Any, ...]] = []

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> Forwarder:
        self.events = events
        return self

    def confirm(self) -> None:
        self.calls.append(("confirm",))

    def control_message(self, tag: int, payload: bytes) -> None:
        self.calls.append(("control", tag, payload))

    def stop(self) -> None:
        self.calls.append(("stop",))

    def accepts(self, source: PeerName, destination: PeerName) -> bool:
        return not (self.name == "fastdp" and source == 99)

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        self.calls.append(("send", frame))

    def attrs(self) -> Mapping[str, AttrValue]:
        return {"name": self.name}

    def diagnostics(self) -> object:
        return None


class Recorder:
    """The mesh's ear."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def established(self) -> None:
        self.heard.append("established")

    def failed(self, error: Exception) -> None:
        self.heard.append(str(error))

    def send_control(self, tag: int, payload: bytes) -> None:
        self.heard.append((tag, payload))


def params(features: dict[str, str]) -> ConnectionParams:
    return ConnectionParams(PeerName(2), "two", 5, None, ("10.0.0.1", 1), ("10.0.0.2", 6783), True, features)


@pytest.mark.parametrize("case", document("overlay-switch.json")["choose_best"])
def test_choice(case: dict[str, Any]) -> None:
    slots = [
        Slot(name, None if case[name] == "dead" else FakePath(name), "established" in case[name], "hold" in case[name])
        for name in ("fastdp", "sleeve")
    ]
    best = choose_best(slots)
    assert (-1 if best is None else best) == case["best_index"]


def test_a_connection_through_its_life() -> None:
    fast, sleeve, ear = FakePath("fastdp"), FakePath("sleeve"), Recorder()
    switch = OverlaySwitch([fast, sleeve], log=LOG, peer_gone=lambda name: None)
    assert switch.features()["Overlays"] == "fastdp sleeve"
    connection = switch.prepare_connection(params({"Overlays": "fastdp sleeve"}), ear)
    assert connection.attrs()["name"] == "fastdp"
    connection.control_message(7, b"\1\1")
    assert not sleeve.calls, "nothing before confirm"
    connection.confirm()
    assert switch.link(PeerName(2)) is connection
    assert sleeve.events is not None
    assert fast.events is not None
    sleeve.events.established()
    sleeve.events.send_control(1, b"")
    assert ear.heard == ["established", (7, b"\1\1")]
    assert connection.attrs()["name"] == "sleeve"
    fast.events.established()
    connection.send(PeerName(1), PeerName(2), b"frame", False)
    assert fast.calls[-1] == ("send", b"frame")
    connection.send(PeerName(99), PeerName(2), b"other", False)
    assert sleeve.calls[-1] == ("send", b"other"), "what the best path declines goes to the next"
    fast.events.healthy(False)
    assert connection.attrs()["name"] == "sleeve"
    fast.events.healthy(True)
    assert connection.attrs()["name"] == "fastdp"
    for payload in (b"", b"\0", b"\2\1", b"\xff\1"):
        connection.control_message(7, payload)
    connection.control_message(1, b"\1\1")
    connection.control_message(7, b"\1\3\5\x9e")
    assert [call for call in sleeve.calls if call[0] == "control"] == [("control", 3, b"\5\x9e")]
    fast.events.failed(OSError("gone"))
    sleeve.events.failed(OSError("gone too"))
    assert ear.heard[-1] == "no working forwarders to 00:00:00:00:00:02(two)"
    connection.stop()
    assert switch.link(PeerName(2)) is None


def test_a_peer_without_the_feature_gets_bare_tags() -> None:
    sleeve, ear = FakePath("sleeve"), Recorder()
    connection = OverlaySwitch([sleeve], log=LOG, peer_gone=lambda name: None).prepare_connection(params({}), ear)
    connection.confirm()
    assert sleeve.events is not None
    sleeve.events.send_control(3, b"\5\x9e")
    connection.control_message(2, b"")
    connection.control_message(7, b"\0\1")
    assert ear.heard == [(3, b"\5\x9e")]
    assert sleeve.calls == [("confirm",), ("control", 2, b"")]


def test_mac_table_follows_the_reference_but_heals() -> None:
    """The reference's sequence (mac-cache.json); where it refuses for minutes, ours refuses for the guard."""
    us, a, b = PeerName(1), PeerName(10), PeerName(11)
    owners = {"A": a, "B": b, "ourself": us, "": None}
    table, mac, now = MacTable(us), b"\2\0\0\0\0\1", 0.0
    for step in document("mac-cache.json")["ops"]:
        operation = step["op"]
        if operation.startswith("remote learn from"):
            learned = table.learn_remote(mac, owners[operation.split()[3]], now)  # type: ignore[arg-type]
            assert (learned is Learned.NEW) == step["new"]
        elif operation.startswith("local capture"):
            learned = table.learn_local(mac, now)
            assert (learned is Learned.REFUSED) == bool(step["conflict"])
        else:
            table.forget_peer(b)
        assert table.owner(mac) == owners[step["owner_after"]]
    assert table.learn_local(mac, now + REFLECTION_GUARD) is Learned.MOVED
    table.expire(now + REFLECTION_GUARD + MAX_AGE + 1)
    assert len(table) == 0


def test_forged_sources_push_out_no_local_address() -> None:
    table = MacTable(PeerName(1), per_peer=100)
    table.learn_local(b"\2local", 0.0)
    for number in range(1000):
        table.learn_remote(b"\2\0" + number.to_bytes(4, "big"), PeerName(2), 0.0)
    assert table.owner(b"\2local") == 1
    assert len(table) == 101
    assert table.evicted == 900


class World:
    """Frame routers joined by links in memory; floods follow trees that the test computes."""

    def __init__(self, links: dict[int, set[int]]) -> None:
        self.links = links
        self.now = 0.0
        self.delivered: list[tuple[int, bytes]] = []
        self.routers = {
            name: FrameRouter(
                View(self, name),
                Tap(self, name),
                lambda hop, name=name: Wire(self, hop) if hop in self.links[name] else None,  # type: ignore[misc]
                clock=lambda: self.now,
                log=LOG,
            )
            for name in links
        }

    def tree(self, source: int) -> tuple[dict[int, int], dict[int, set[int]]]:
        """Next hops from the source, and the tree of its floods: parent to children."""
        children: dict[int, set[int]] = {name: set() for name in self.links}
        parent: dict[int, int] = {source: 0}
        level = [source]
        while level:
            following = []
            for peer in sorted(level):
                for remote in sorted(self.links[peer]):
                    if remote not in parent:
                        parent[remote] = peer
                        children[peer].add(remote)
                        following.append(remote)
            level = following
        return parent, children


class View:
    def __init__(self, world: World, name: int) -> None:
        self._world = world
        self.ourself = PeerName(name)

    def knows(self, name: PeerName) -> bool:
        return name in self._world.links

    def unicast(self, destination: PeerName) -> PeerName | None:
        parent, _ = self._world.tree(self.ourself)
        hop = destination
        while parent.get(hop, 0) not in (0, self.ourself):
            hop = PeerName(parent[hop])
        return hop if destination in parent else None

    def broadcast(self, source: PeerName) -> list[PeerName]:
        _, children = self._world.tree(source)
        return [PeerName(name) for name in sorted(children[self.ourself])]

    def nickname(self, name: PeerName) -> str:
        return ""

    def short_id(self, name: PeerName) -> int | None:
        return None


class Tap:
    def __init__(self, world: World, name: int) -> None:
        self._world = world
        self._name = name

    def inject(self, frame: bytes) -> None:
        self._world.delivered.append((self._name, frame))


class Wire:
    def __init__(self, world: World, to: int) -> None:
        self._world = world
        self._to = to

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        self._world.routers[self._to].received(source, destination, frame)


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


def mac(number: int) -> bytes:
    return b"\2\0\0\0\0" + bytes((number,))


@settings(max_examples=60)
@given(graphs())
def test_floods_reach_everybody_once_and_unicasts_one(links: dict[int, set[int]]) -> None:
    world = World(links)
    for name in links:
        world.delivered.clear()
        broadcast = b"\xff" * 6 + mac(name) + b"\x08\x06" + bytes(28)
        world.routers[name].captured(broadcast)
        assert sorted(world.delivered) == sorted((other, broadcast) for other in links if other != name)
    for name in links:
        for other in links:
            if name != other:
                world.delivered.clear()
                frame = mac(other) + mac(name) + b"\x08\x00" + bytes(40)
                world.routers[name].captured(frame)
                assert world.delivered == [(other, frame)]


def test_an_address_that_moves_is_found_with_its_first_frame() -> None:
    world = World({1: {2, 3}, 2: {1, 3}, 3: {1, 2}})
    moving = b"\xff" * 6 + mac(77) + b"\x08\x06" + bytes(28)
    for step, home in enumerate((1, 2, 3, 1, 2)):
        world.now = step * 10.0
        world.routers[home].captured(moving)
        world.delivered.clear()
        asker = world.routers[1 if home != 1 else 2]
        asker.captured(mac(77) + mac(50 + home) + b"\x08\x00" + bytes(40))
        assert [name for name, _ in world.delivered] == [home]


def test_frames_that_are_nobodys() -> None:
    world = World({1: {2}, 2: {1}})
    router = world.routers[1]
    for frame in (b"", bytes(13), bytes(14), bytes(60)):
        router.captured(frame)
        router.received(PeerName(2), PeerName(1), frame)
    router.captured(bytes.fromhex("0180c2000000") + mac(1) + b"\0\x26" + bytes(40))
    router.received(PeerName(8), PeerName(1), mac(1) + mac(2) + b"\x08\0" + bytes(40))
    assert not world.delivered
    assert router.counts["malformed"] == 8
    assert router.counts["stp"] == 1
    assert router.counts["unknown-peer"] == 1
