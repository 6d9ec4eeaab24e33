"""Messages and stored values against the reference's bytes; and whatever arrives, it costs no more than its connection.

Source: IPAM spec §5, §6, §14, §20 (properties 14 and 15).
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam import wire
from ipam.allocator import Allocator
from ipam.founding import Init
from ipam.operations import Send
from ipam.paxos import Claims, Node, Proposal, Value
from ipam.ranges import Range, Subnet
from ipam.ring import Copy, Entry
from ipam.wire import Kind, State
from mesh.gob import GobError
from mesh.messages import decode_gossip, decode_gossip_unicast
from mesh.names import PeerName, parse_peer_name
from mesh.seams import GossipError
from tests.ipam.values import copy, document, knowledge, number
from tests.ipam.world import View, World

MESSAGES = document("gossip_messages.json")
UNIVERSE = Subnet.parse("10.32.0.0/12")


def expected(shown: dict[str, Any]) -> State:
    """A decoded message of the vectors."""
    return State(
        shown["now"],
        {parse_peer_name(name): nickname for name, nickname in shown["nicknames"].items()},
        None if shown["paxos"] is None else knowledge(shown["paxos"]),
        None if shown["ring"] is None else copy(shown["ring"]),
    )


def in_order(state: State) -> State:
    """Values' names have no order of their own."""
    if state.paxos is None:
        return state
    paxos = {
        node: Claims(c.promise, c.accepted, Value(tuple(sorted(c.value.names)), c.value.origin))
        for node, c in state.paxos.items()
    }
    return State(state.now, state.nicknames, paxos, state.ring)


def check(payload: bytes, shown: dict[str, Any]) -> None:
    state = wire.decode_state(payload)
    assert in_order(state) == expected(shown)
    assert wire.decode_state(wire.encode_state(state)) == state


@pytest.mark.parametrize("message", [pytest.param(m, id=m["name"]) for m in MESSAGES["gossip"]])
def test_gossip(message: dict[str, Any]) -> None:
    check(bytes.fromhex(message["payload_hex"]), message["decoded"])


@pytest.mark.parametrize("message", [pytest.param(m, id=m["name"]) for m in MESSAGES["unicast"]])
def test_unicast(message: dict[str, Any]) -> None:
    payload = bytes.fromhex(message["payload_hex"])
    assert payload[0] == message["kind"]
    if message["kind"] == Kind.RING_UPDATE:
        check(payload[1:], message["state"])
        return
    wanted = Range(number(message["range_start"]), number(message["range_end_exclusive"]))
    assert wire.decode_request(payload[1:]) == wanted
    ours = wire.encode_request(Kind(message["kind"]), wanted)
    # Only the ids of types differ.
    assert len(ours) == len(payload)
    assert wire.decode_request(ours[1:]) == wanted


def recorded() -> Iterator[tuple[dict[str, Any], bytes]]:
    for frame in document("recorded_mesh.json")["frames"]:
        if frame["channel"] == "IPallocation":
            data = bytes.fromhex(frame["frame_hex"])
            read = decode_gossip_unicast if data[0] == 5 else decode_gossip
            yield frame, read(data[1:])[-1]


def test_what_real_routers_said() -> None:
    kinds = set()
    for frame, payload in recorded():
        kinds.add((frame["mesh_tag"], frame.get("kind")))
        if frame.get("range"):
            assert wire.decode_request(payload[1:]) == Range(*map(number, frame["range"]))
        else:
            check(payload[1:] if frame["mesh_tag"] == 5 else payload, frame["decoded"])
    assert len(kinds) >= 4


def test_a_real_conversation_is_followed() -> None:
    """All that three real routers said, heard by one of ours: no fault, and in the end their ring."""
    world = World(Random(1), ["observer"])
    universe = Subnet.parse("10.32.0.0/24")
    ours = Allocator(
        Node(PeerName(99), 1),
        "ours",
        universe,
        Init(elector=False),
        mesh=View(world, 99),
        rng=Random(1),
        log=logging.getLogger("test"),
    )
    rings = []
    for frame, payload in recorded():
        if frame["mesh_tag"] != 5:
            ours.received(parse_peer_name(frame["source_peer"]), payload)
            if frame["decoded"]["ring"]:
                rings.append(copy(frame["decoded"]["ring"]).over(universe))
    assert [entry[:2] for entry in ours.ledger.ring.entries] == [entry[:2] for entry in rings[-1].entries]
    assert not ours.ledger.disputes()


def test_stored_rings() -> None:
    stored = [value for value in document("persistence_values.json")["values"] if value["key"] == "ring"]
    for value in stored:
        read = wire.decode_ring(bytes.fromhex(value["hex"]))
        assert read == copy(value["value"])
        assert wire.decode_ring(wire.encode_ring(read.over(UNIVERSE), read.holder)) == read
    assert stored


NAMES = st.integers(0, (1 << 48) - 1).map(PeerName)
PROPOSALS = st.builds(Proposal, st.integers(0, 9), st.builds(Node, NAMES, st.integers(0, (1 << 64) - 1)))
VALUES = st.builds(Value, st.lists(NAMES, min_size=1, max_size=4).map(tuple), PROPOSALS)
KNOWLEDGE = st.dictionaries(
    st.builds(Node, NAMES, st.integers(0, (1 << 64) - 1)), st.builds(Claims, PROPOSALS, PROPOSALS, VALUES), max_size=3
)
WORDS = st.integers(0, (1 << 32) - 1)
COPIES = st.builds(
    Copy,
    st.builds(Range, WORDS, WORDS),
    NAMES,
    st.lists(st.builds(Entry, WORDS, NAMES, WORDS, WORDS), max_size=4).map(tuple),
    st.lists(NAMES, max_size=3).map(tuple),
)
STATES = st.builds(
    State,
    st.integers(-(1 << 62), 1 << 62),
    st.dictionaries(NAMES, st.text(max_size=5), max_size=3),
    st.none() | KNOWLEDGE,
    st.none() | COPIES,
)


@settings(max_examples=300, deadline=None)
@given(STATES)
def test_every_state_survives(state: State) -> None:
    assert wire.decode_state(wire.encode_state(state)) == state


# --- whatever arrives ---

SAMPLES = [bytes.fromhex(m["payload_hex"]) for m in [*MESSAGES["gossip"], *MESSAGES["unicast"]]]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message of somebody with some of its bytes wrong, missing or too many."""
    message = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(message) - 1)) if message else 0
        match draw(st.integers(0, 2)):
            case 0 if message:
                message[at] = draw(st.integers(0, 255))
            case 1:
                del message[at:]
            case _:
                message[at:at] = draw(st.binary(max_size=4))
    return bytes(message)


GARBAGE = st.binary(max_size=60) | damaged() | STATES.map(wire.encode_state)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.booleans(), GARBAGE), max_size=6))
def test_bad_bytes_cost_a_connection(messages: list[tuple[bool, bytes]]) -> None:
    world = World(Random(1), ["seed=::1"])
    peer = world.peers[1]
    allocator = world.core(peer)
    for unicast, data in messages:
        with suppress(GossipError):
            if unicast:
                allocator.received_unicast(PeerName(7), data)
            else:
                allocator.received(PeerName(7), data)
        world.pump(peer)
        world.check(peer)


@pytest.mark.parametrize("message", [b"", b"\x03", b"\xff" + SAMPLES[0]])
def test_kinds_that_do_not_exist(message: bytes) -> None:
    world = World(Random(1), ["seed=::1"])
    with pytest.raises(GossipError):
        world.core(world.peers[1]).received_unicast(PeerName(7), message)


def test_numbers_that_are_too_large_are_refused() -> None:
    with pytest.raises(GobError):
        wire.decode_state(wire.encode_state(State(nicknames={PeerName(1 << 48): "x"})))


def test_a_request_is_always_answered() -> None:
    world = World(Random(1), ["seed=::1"])
    allocator = world.core(world.peers[1])
    for bounds in (Range(0, 0), Range(5, 3), allocator.universe.range, Range(0, (1 << 32) - 1)):
        allocator.effects.clear()
        allocator.received_unicast(PeerName(7), wire.encode_request(Kind.SPACE_REQUEST, bounds))
        assert Send(PeerName(7), Kind.RING_UPDATE) in allocator.effects
