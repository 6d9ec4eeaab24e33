"""Entries and their merging: the reference's scenarios, and properties over any of them."""

import contextlib
import json
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dns.entries import MAX_SKEW, Entry, merged
from dns.gossip_wire import Family, Message, decode, encode
from dns.names_channel import NameChannel
from dns.table import NameTable
from mesh.gob import GobError
from mesh.names import PeerName, parse_peer_name
from mesh.seams import GossipError
from tests.dns.names import LOG, NOW, Air, cases, entries
from tests.vectors import ROOT

OTHER = parse_peer_name("02:00:00:00:02:00")

# Where the cures of DNS spec §14 make the outcome another one.
_CASE_BLIND_DELETE = ("delete_selectors", "B.weave.local.")


class Scenario:
    """One scenario's table and channel, driven as its steps say."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.known = {parse_peer_name(name) for name in case["known_peers"]}
        self.now = NOW
        self.due: list[Any] = []
        self.changed: set[str] = set()
        self.table = NameTable(
            parse_peer_name(case["known_peers"][0]),
            "weave.local.",
            self.known.__contains__,
            lambda name, _: self.changed.add(name),
        )
        self.channel = NameChannel(Family.V4, self.table, lambda: self.now, self.due.append, LOG)
        self.air = Air()
        self.channel.speak(self.air)

    def said(self) -> list[Message]:
        """What was broadcast by this step."""
        for call in self.due:
            call()
        self.due.clear()
        said, self.air.broadcasts = self.air.broadcasts, []
        return [decode(Family.V4, message) for message in said]

    def do(self, step: dict[str, Any]) -> Any:
        """One step; what it returns."""
        op, args = step["op"], step["args"]
        if op == "add_fqdn":
            self.channel.say(self.table.add(args[0], args[1], address(args[2])))
        elif op in ("delete", "container_died"):
            chosen = ["*", args[0], "*"] if op == "container_died" else args
            hostname, container, at = (None if arg == "*" else arg for arg in chosen)
            value = None if at is None else address(at)
            self.channel.say(self.table.delete(self.now, hostname=hostname, container=container, address=value))
        elif op == "receive":
            return self.channel.on_gossip(bytes.fromhex(step["payload_hex"]))
        elif op == "receive_broadcast":
            return self.channel.on_broadcast(PeerName(2), bytes.fromhex(step["payload_hex"]))
        elif op == "advance":
            self.now += args[0]
        elif op == "gc_tombstones":
            self.table.purge(self.now)
        elif op == "peer_gone":
            self.channel.peer_gone(parse_peer_name(args[0]))
        elif op == "lookup":
            return self.table.addresses(args[0].lower())
        elif op == "reverse":
            return self.table.hostname(address(args[0]))
        else:
            raise AssertionError(f"unknown step {op}")
        return None


def address(text: str) -> int:
    return int(IPv4Address(text))


def scenarios() -> list[Any]:
    """All but the reference's flaws, whose cures have tests of their own."""
    flaws = ("case_variants", "duplicate")
    listed = [case for case in cases("entry_operations.json") if not case["name"].startswith(flaws)]
    return [pytest.param(case, id=case["name"]) for case in listed]


@pytest.mark.parametrize("case", scenarios())
def test_the_reference_s_scenarios(case: dict[str, Any]) -> None:
    scenario = Scenario(case)
    for step in case["steps"]:
        if (case["name"], step["args"][:1]) == (_CASE_BLIND_DELETE[0], [_CASE_BLIND_DELETE[1]]):
            continue
        result = scenario.do(step)
        said = [(message.timestamp, message.entries) for message in scenario.said()]
        assert said == [(b["decoded"]["timestamp"], entries(b["decoded"]["entries"])) for b in step["broadcasts"]]
        assert scenario.table.entries() == entries(step["entries_after"])
        if step["op"] == "receive":
            assert shown(result) == expected(step.get("delta"))
        elif step["op"] == "receive_broadcast":
            assert shown(result) == expected(step.get("relayed_decoded"))
        elif step["op"] == "lookup":
            assert result == [address(text) for text in step["result"]]
        elif step["op"] == "reverse":
            assert (result or "error: Not found") == step["result"]


def shown(message: bytes | None) -> tuple[int, list[Entry]] | None:
    """A message that we made: its time and its entries, the order of which means nothing."""
    if message is None:
        return None
    decoded = decode(Family.V4, message)
    assert decoded.entries == merged(decoded.entries)
    return decoded.timestamp, decoded.entries


def expected(message: dict[str, Any] | None) -> tuple[int, list[Entry]] | None:
    """The same of a message in a vector."""
    return None if message is None else (message["timestamp"], sorted(entries(message["entries"])))


def test_spellings_of_a_name_are_entries_of_their_own_and_never_twice_there() -> None:
    scenario = Scenario(next(case for case in cases("entry_operations.json") if case["name"].startswith("case_v")))
    for _ in range(3):
        for spelling in ("WEB.weave.local", "web.weave.local"):
            scenario.channel.say(scenario.table.add(spelling, "c1", 1))
    assert [e.hostname for e in scenario.table.entries()] == ["WEB.weave.local.", "web.weave.local."]
    (said,) = scenario.said()
    assert said.entries == scenario.table.entries()
    # One command removes the name, however it was registered.
    assert len(scenario.table.delete(NOW, hostname="Web.Weave.Local")) == 2
    assert scenario.table.addresses("web.weave.local.") == []


def test_an_entry_that_comes_twice_in_a_message_counts_once() -> None:
    case = next(case for case in cases("entry_operations.json") if case["name"] == "duplicate_entry_received")
    scenario = Scenario(case)
    message = shown(scenario.do(case["steps"][0]))
    assert message is not None
    assert [(e.version, e.tombstone) for e in message[1]] == [(1, NOW)]


def test_what_is_known_is_no_news_however_often_it_is_said() -> None:
    scenario = Scenario(cases("entry_operations.json")[0])
    entry = Entry("a.weave.local.", OTHER, "c", 1)

    def hear(seconds: int, *said: Entry) -> tuple[int, list[Entry]] | None:
        return shown(scenario.channel.on_gossip(encode(Family.V4, Message(NOW + seconds, list(said)))))

    assert hear(0, entry) == (NOW, [entry])
    for seconds in range(5):
        assert hear(seconds, entry) is None
    scenario.channel.peer_gone(OTHER)
    assert hear(6, entry) == (NOW, [entry])
    stranger = entry._replace(origin=PeerName(77))
    for _ in range(3):
        assert hear(7, stranger) is None
    scenario.known.add(PeerName(77))
    assert hear(8, stranger) == (NOW, [stranger]), "it was a stranger's before"


def test_a_tombstone_that_was_forgotten_stays_so() -> None:
    scenario = Scenario(cases("entry_operations.json")[0])
    old = Entry("a.weave.local.", OTHER, "c", 1, 1, NOW - 1801)
    assert scenario.table.receive([old], NOW).news == []
    assert scenario.table.receive([old._replace(tombstone=NOW - 1800)], NOW).news != []


@pytest.mark.parametrize("skew", [MAX_SKEW + 1, -MAX_SKEW - 1, -(10**9)])
def test_a_wrong_clock_costs_the_message_and_nothing_else(skew: int) -> None:
    scenario = Scenario(cases("entry_operations.json")[0])
    message = encode(Family.V4, Message(NOW + skew, [Entry("a.weave.local.", OTHER, "c", 1)]))
    assert scenario.channel.on_gossip(message) is None
    # Weave Net peers would close their connection to us over it.
    assert scenario.channel.on_broadcast(OTHER, message) is None
    assert len(scenario.table) == 0
    assert scenario.channel.skews == {OTHER: skew}
    scenario.channel.on_broadcast(OTHER, encode(Family.V4, Message(NOW, [])))
    assert scenario.channel.skews == {}


@pytest.mark.parametrize("case", cases("coalesce.json"))
def test_messages_that_wait_become_one(case: dict[str, Any]) -> None:
    scenario = Scenario(cases("entry_operations.json")[0])
    for message in sorted((case["a"], case["b"]), key=lambda message: int(message["timestamp"])):
        scenario.now = message["timestamp"]
        scenario.channel.say(entries(message["entries"]))
    assert scenario.said() == [(case["merged"]["timestamp"], entries(case["merged"]["entries"]))]


@pytest.mark.parametrize("vector", json.loads((ROOT / "dns" / "gossip_messages.json").read_text())["gossip"])
def test_messages_are_the_reference_s_bytes(vector: dict[str, Any]) -> None:
    message: Message = decode(Family.V4, bytes.fromhex(vector["payload_hex"]))
    assert tuple(message) == (vector["decoded"]["timestamp"], entries(vector["decoded"]["entries"]))
    assert encode(Family.V4, Message(message.timestamp, merged(message.entries))).hex() == vector["payload_hex"]


@given(st.binary(max_size=300))
def test_any_bytes_cost_at_most_the_connection(data: bytes) -> None:
    channel = Scenario(cases("entry_operations.json")[0]).channel
    for message in (data, encode(Family.V4, Message(NOW, [])) + data, encode(Family.V4, Message(NOW, []))[:-1] + data):
        with contextlib.suppress(GossipError):
            channel.on_gossip(message)


views = st.builds(
    Entry,
    st.sampled_from(["a.weave.local.", "A.weave.local.", "b.weave.local."]),
    st.just(OTHER),
    st.sampled_from(["c1", "c2"]),
    st.integers(1, 2),
    st.integers(0, 3),
    st.sampled_from([0, NOW - 5, NOW]),
)


@given(st.lists(st.lists(views, max_size=4), max_size=6), st.randoms(use_true_random=False))
def test_views_meet_in_any_order_to_the_same_end(messages: list[list[Entry]], rng: Random) -> None:
    """DNS spec §13.1: merging is commutative, associative and idempotent."""
    orders = [messages, [*messages, *messages], rng.sample(messages, len(messages))]
    tables = []
    for order in orders:
        table = Scenario(cases("entry_operations.json")[0]).table
        for message in order:
            assert len({e.identity for e in table.receive(message, NOW).news}) <= len(message)
        tables.append((table.entries(), table.live, table.digest))
    assert tables[0] == tables[1] == tables[2]
    live = [entry for entry in tables[0][0] if entry.live]
    assert tables[0][1:] == (len(live), sum(entry.fingerprint for entry in live) % 2**64)


def test_the_digest_is_of_the_names_that_answer() -> None:
    scenario = Scenario(cases("entry_operations.json")[0])
    table = scenario.table
    table.add("a.weave.local", "c1", 1)
    one = table.digest
    assert one != 0
    table.add("b.weave.local", "c1", 1)
    assert (table.live, table.digest != one) == (2, True)
    table.delete(NOW, hostname="b.weave.local")
    assert (table.live, table.digest) == (1, one)
    table.purge(NOW + 10_000)
    assert (len(table), table.live, table.digest) == (1, 1, one)
    table.peer_gone(table.entries()[0].origin)
    assert (table.live, table.digest) == (0, 0)


@given(views)
def test_both_families_come_back_from_the_wire(view: Entry) -> None:
    six = view._replace(address=int(IPv6Address("fd00::1")) + view.address)
    assert decode(Family.V6, encode(Family.V6, Message(NOW, [six]))) == (NOW, [six])
    with pytest.raises(GobError):
        decode(Family.V4, b"\x05hello")
