"""The reference's recorded conversations, held again between two of ours: the same results and the same division.

How versions and hints run differs, since ours are written down once a turn. The script is what clients did; messages
are delivered in the order sent. Every message of the reference is heard by ours too. Source: IPAM spec §22.
"""

from random import Random
from typing import Any

import pytest

from ipam import wire
from ipam.operations import Allocate, Claim, Order
from ipam.ranges import Subnet
from ipam.ring import Copy
from ipam.seams import Cidr
from mesh.names import format_peer_name
from tests.ipam import world as worlds
from tests.ipam.values import copy, document
from tests.ipam.world import Peer, World

SCENARIOS = {name: events for name, events in document("scenarios.json").items() if name != "description"}


class Conversation:
    """A world with the names, the universe and the quorum of a scenario, and what its clients were answered."""

    def __init__(self, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worlds, "UNIVERSE", self.universe(events))
        self.events = events
        names = sorted({event["node"] for event in events if "node" in event} | self.everybody())
        paxos = [e["decoded"]["paxos"] for e in events if e.get("decoded") and e["decoded"].get("paxos")]
        alone = any(each["accepted"]["round"] and len(known) == 1 for known in paxos for each in known)
        mode = "consensus=1" if alone else "consensus=2"
        self.world = World(Random(1), [mode, "observer" if names[-1].startswith("5a") else mode])
        self.peers: dict[str, Peer] = dict(zip(names, self.world.peers.values(), strict=False))
        self.waiting: dict[str, Allocate | Claim] = {}

    def everybody(self) -> set[str]:
        return {event[key] for event in self.events for key in ("from", "to") if key in event}

    @staticmethod
    def universe(events: list[dict[str, Any]]) -> Subnet:
        ring = next(e["decoded"]["ring"] for e in events if e.get("decoded") and e["decoded"].get("ring"))
        return Subnet(*_bounds(ring))

    def replay(self) -> None:
        for event in self.events:
            match event["event"]:
                case "allocate":
                    self.allocate(event)
                case "claim":
                    self.claim(event)
                case "tick":
                    self.world.tick(self.peers[event["node"]])
                    self.world.commit(self.peers[event["node"]])
                case "unicast_failed":
                    self.cut(event)
                case "note" if "hands over" in event["text"]:
                    self.world.core(self.peers["01:00:00:00:02:00"]).shut_down(Order())
                    self.world.pump(self.peers["01:00:00:00:02:00"], commit=True)
                case "note" if "rmpeer" in event["text"]:
                    self.remove()
                case "result" if "pending" not in event["value"] and event["what"].split()[0] in self.waiting:
                    self.result(event)

    def allocate(self, event: dict[str, Any]) -> None:
        peer, operation = self.peers[event["node"]], Allocate(event["ident"], Subnet.parse(event["subnet"]))
        self.waiting[event["ident"]] = operation
        self.world.core(peer).allocate(operation)
        self.world.pump(peer, commit=True)
        self.world.flush()

    def claim(self, event: dict[str, Any]) -> None:
        peer, operation = self.peers[event["node"]], Claim(event["ident"], Cidr.parse(event["cidr"]))
        self.waiting[event["ident"]] = operation
        if event["ident"] == "e3":
            self.world.groups = {peer.number: 1}
        self.world.core(peer).claim(operation)
        self.world.pump(peer, commit=True)
        self.world.flush()

    def cut(self, event: dict[str, Any]) -> None:
        self.world.groups = {self.peers[event["from"]].number: 1}

    def remove(self) -> None:
        self.world.groups = {1: 1}
        heir, dead = self.world.core(self.peers["02:00:00:00:02:00"]), self.world.peers[1].name
        gained = heir.take_over(Order(), format_peer_name(dead))
        assert gained == 128

    def result(self, event: dict[str, Any]) -> None:
        operation = self.waiting[event["what"].split()[0]]
        held = [
            str(cidr.addr)
            for peer in self.world.living()
            for cidr in self.world.core(peer).ledger.holders.of(operation.ident)
        ]
        address = event["value"].split(" ")[0]
        if "owned by other peer" in event["value"]:
            assert held == []
        elif address.startswith("err"):
            assert isinstance(operation, Claim)
            assert held == [str(operation.cidr.addr)]
        else:
            assert held == [address]


def _bounds(ring: dict[str, Any]) -> tuple[Any, int]:
    made: Copy = copy(ring)
    return worlds.UNIVERSE.address(made.bounds.start), 33 - made.bounds.size.bit_length()


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "donation_until_exhausted"])
def test_the_same_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(SCENARIOS[name], monkeypatch)
    conversation.replay()
    conversation.world.groups = {}
    for peer in conversation.world.living():
        conversation.world.commit(peer)
    conversation.world.shares = name == "rmpeer_then_return_with_allocations"
    if not conversation.world.shares:
        conversation.world.flush()
        conversation.world.check_all()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_references_messages_are_understood(name: str) -> None:
    for event in SCENARIOS[name]:
        if event["event"] not in ("broadcast", "unicast"):
            continue
        payload = bytes.fromhex(event["payload_hex"])
        if event["event"] == "broadcast" or event.get("kind") == wire.Kind.RING_UPDATE:
            state = wire.decode_state(payload if event["event"] == "broadcast" else payload[1:])
            assert (state.ring is None) == (event["decoded"]["ring"] is None)
            assert state.ring is None or state.ring == copy(event["decoded"]["ring"])
        else:
            bounds = wire.decode_request(payload[1:])
            assert [str(worlds.UNIVERSE.address(each)) for each in bounds] == event["range"]


def test_a_small_universe_is_shared_to_the_last_address() -> None:
    """The scenario `donation_until_exhausted`: ours gives its last hosts too, and keeps what is none."""
    events = SCENARIOS["donation_until_exhausted"]
    got = [e["value"].split(" ")[0] for e in events if e["event"] == "result" and "pending" not in e["value"]]
    asked = [e["ident"] for e in events if e["event"] == "allocate"]
    with pytest.MonkeyPatch.context() as patch:
        conversation = Conversation(events, patch)
        for ident in asked:
            node = next(e["node"] for e in events if e["event"] == "allocate" and e["ident"] == ident)
            conversation.allocate({"node": node, "ident": ident, "subnet": "10.0.0.0/29"})
        held = {
            str(cidr.addr)
            for peer in conversation.world.living()
            for each in conversation.world.core(peer).ledger.holders.owned.values()
            for cidr in each.cidrs
        }
    assert held == set(got) == {f"10.0.0.{number}" for number in range(1, 7)}
