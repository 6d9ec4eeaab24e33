"""Who holds the same as we do: records, comparison, what is shown; and the channel in a simulated mesh."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ipam.ranges import Subnet
from ipam.ring import Entry, Ring
from ipam.wire import State, encode_state
from mesh.names import PeerName
from tests.weave_py import captures
from weave_py import metrics
from weave_py.agreement import (
    SUBJECTS,
    Agreement,
    Digest,
    Record,
    decode,
    digest,
    encode,
    neighbour_ring,
    ring_digest,
    text,
)
from weave_py.agreement_gossip import AgreementGossip

U64 = st.integers(0, 2**64 - 1)
DIGESTS = st.builds(Digest, U64, st.integers(0, 2**32 - 1))
RECORDS = st.builds(Record, U64, U64, st.dictionaries(st.sampled_from(SUBJECTS), DIGESTS))
TWO, THREE = PeerName(2), PeerName(3)
OTHERS = [(TWO, "host2"), (THREE, "host3")]


@given(RECORDS, st.binary(max_size=20))
def test_records_travel(record: Record, later: bytes) -> None:
    assert decode(encode(record)) == record
    assert decode(encode(record) + later) == record


@given(st.binary(max_size=80))
def test_other_bytes_are_ignored(message: bytes) -> None:
    record = decode(message)
    assert record is None or encode(record)[:17] == message[:17]


def test_cut_short() -> None:
    message = encode(Record(1, 2, {"ring": Digest(3, 4)}))
    assert all(decode(message[:length]) is None for length in range(len(message)))
    assert decode(b"\2" + message[1:]) is None


@given(st.lists(st.text(max_size=9), max_size=9), st.randoms())
def test_a_digest_knows_no_order(parts: list[str], rng: Any) -> None:
    shuffled = rng.sample(parts, len(parts))
    assert digest(parts) == digest(shuffled)
    assert digest([*parts, "one more"]) != digest(parts)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "Token": "10.32.0.0",
        "Size": 4,
        "Peer": "02",
        "Nickname": "a",
        "IsKnownPeer": True,
        "Version": 1,
        **changes,
    }


def test_what_counts_of_a_ring() -> None:
    ring = {"Range": "10.32.0.0/12", "Entries": [entry(), entry(Token="10.32.0.4")]}
    assert ring_digest(ring).count == 2
    assert ring_digest({**ring, "Entries": ring["Entries"][::-1]}) == ring_digest(ring)
    elsewhere = [entry(Nickname="b", IsKnownPeer=False, Version=7), entry(Token="10.32.0.4")]
    assert ring_digest({**ring, "Entries": elsewhere}) == ring_digest(ring)
    for other in (
        {**ring, "Range": "10.32.0.0/13"},
        {**ring, "Entries": None},
        {**ring, "Entries": [entry(Peer="03"), entry(Token="10.32.0.4")]},
        {**ring, "Entries": [entry(Size=3), entry(Token="10.32.0.4")]},
    ):
        assert ring_digest(other) != ring_digest(ring)


def test_the_ring_that_a_neighbour_gossips() -> None:
    """As its report has it, also where an entry goes around the end of the universe."""
    universe = Subnet.parse("10.0.0.0/24")
    ring = Ring(universe, (Entry(universe.start + 64, TWO, 3, 9), Entry(universe.start + 128, THREE, 1, 0)), (TWO,))
    said = neighbour_ring(encode_state(State(now=1), ring, TWO), universe)
    rows = [("10.0.0.64", 64, "02"), ("10.0.0.0", 64, "03"), ("10.0.0.128", 128, "03")]
    entries = [{"Token": token, "Size": size, "Peer": f"00:00:00:00:00:{peer}"} for token, size, peer in rows]
    assert said == ring_digest({"Range": "10.0.0.0/24", "Entries": entries})
    assert neighbour_ring(encode_state(State(now=1)), universe) is None
    assert neighbour_ring(encode_state(State(now=1), ring, TWO), Subnet.parse("10.0.0.0/23")) is None


def test_who_differs_since_when() -> None:
    agreement = Agreement()
    same, other = {"topology": Digest(1, 3), "ring": Digest(2, 5)}, {"topology": Digest(1, 3), "ring": Digest(9, 4)}
    agreement.hold({**same, "names": Digest(0, 0)}, 1000.0)
    agreement.heard(TWO, Record(1, 1_001_500, same), 1001.0)
    agreement.heard(THREE, Record(1, 941_000, other), 1001.0)
    document = agreement.document([*OTHERS, (PeerName(4), "old")], 1002.0)
    assert document["Agreed"], "a change on its way is no disagreement"
    assert text(document) == (
        "topology 2 agree with us, 1 do not say (3 entries)\n"
        "ring     1 agree with us, 1 differ, 1 do not say (5 entries)\n"
        "names    0 agree with us, 3 do not say (0 entries)\n"
        "00:00:00:00:00:03(host3) ring is changing since 1970-01-01T00:16:41Z: 4 entries, ours 5\n"
        "00:00:00:00:00:04(old) does not say: it runs Weave Net 2.8, or is new\n"
    )
    assert [row["ClockSkew"] for row in document["Peers"]] == [0.5, -60.0, None]

    agreement.heard(THREE, Record(1, 941_000, other), 1100.0)
    document = agreement.document(OTHERS, 1101.0)
    assert not document["Agreed"]
    assert document["Peers"][1]["Differs"][0]["Since"] == "1970-01-01T00:16:41Z"
    assert "ring differs since 1970-01-01T00:16:41Z" in text(document)

    report = {**captures.report("uniform-3"), "Agreement": document, "State": {"Lost": None}}
    lines = metrics.text(lambda: report, None, None).decode().splitlines()
    assert 'weave_differing_peers{subject="ring"} 1.0' in lines
    assert 'weave_differing_peers{subject="topology"} 0.0' in lines
    assert "weave_state_lost 0.0" in lines

    # Either side may be the one that comes round.
    agreement.hold(other, 1102.0)
    document = agreement.document(OTHERS, 1103.0)
    assert [row["Differ"] for row in document["Subjects"]] == [0, 1, 0]
    assert document["Peers"][0]["Differs"][0]["Since"] == "1970-01-01T00:18:22Z"
    assert text(document).splitlines()[2] == "names    not used here"
    agreement.keep([THREE])
    assert [row["Says"] for row in agreement.document(OTHERS, 1104.0)["Peers"]] == [[], ["topology", "ring"]]


def test_what_a_neighbour_gossips() -> None:
    """A 2.8 router says nothing; its gossip is compared with what we held when it came, and has to differ twice."""
    agreement = Agreement()
    agreement.hold({"topology": Digest(1, 2), "ring": Digest(2, 5)}, 1000.0)
    assert agreement.glance_due(TWO, "topology", 1000.0)
    agreement.glanced(TWO, "topology", Digest(1, 2), 1000.0)
    assert not agreement.glance_due(TWO, "topology", 1010.0)
    assert agreement.glance_due(TWO, "ring", 1010.0)
    agreement.hold({"topology": Digest(3, 3), "ring": Digest(2, 5)}, 1011.0)
    document = agreement.document([(TWO, "old")], 1100.0)
    assert [row["Differ"] for row in document["Subjects"]] == [0, 0, 0], "it may have our change by now"
    assert (
        text(document).splitlines()[-1]
        == "00:00:00:00:00:02(old) runs Weave Net 2.8: what is known of it is what it gossips (topology)"
    )
    agreement.glanced(TWO, "topology", Digest(1, 2), 1030.0)
    assert agreement.document([(TWO, "old")], 1059.0)["Agreed"]
    agreement.glanced(TWO, "topology", Digest(1, 2), 1060.0)
    document = agreement.document([(TWO, "old")], 1060.0)
    assert not document["Agreed"]
    assert document["Peers"][0]["ClockSkew"] is None
    agreement.glanced(TWO, "topology", Digest(3, 3), 1090.0)
    assert agreement.document([(TWO, "old")], 1090.0)["Agreed"]
    # One of our own kind speaks for itself.
    agreement.glanced(THREE, "topology", Digest(1, 2), 1090.0)
    agreement.heard(THREE, Record(1, 1, {"ring": Digest(2, 5)}), 1091.0)
    assert not agreement.glance_due(THREE, "topology", 2000.0)
    assert agreement.document([(THREE, "new")], 1091.0)["Peers"][0]["Says"] == ["ring"]


def test_when_to_tell() -> None:
    agreement = Agreement()
    agreement.hold({"ring": Digest(1, 1)}, 1000.0)
    assert agreement.due(1000.0)
    assert not agreement.due(1059.0)
    agreement.hold({"ring": Digest(2, 1)}, 1059.0)
    assert agreement.due(1059.0)
    agreement.hold({"ring": Digest(3, 1)}, 1060.0)
    assert not agreement.due(1060.0), "a node that is busy does not speak all the time"
    assert agreement.due(1064.0)
    assert not agreement.due(1123.9)
    assert agreement.due(1124.0)
    # A large mesh hears as much as a middling one.
    for number in range(1000):
        agreement.heard(PeerName(number), Record(1, 1, {}), 1124.0)
    agreement.hold({"ring": Digest(4, 1)}, 1125.0)
    assert not agreement.due(1173.0)
    assert agreement.due(1174.0)


class Wire:
    """A channel of two users."""

    def __init__(self, ourself: PeerName, others: list[tuple[PeerName, AgreementGossip]]) -> None:
        self.ourself = ourself
        self.others = others

    def broadcast(self, message: bytes) -> None:
        for name, other in self.others:
            if name != self.ourself:
                assert other.on_broadcast(self.ourself, message) == message

    def unicast(self, destination: PeerName, message: bytes) -> None:
        raise AssertionError

    def neighbours(self, message: bytes) -> None:
        raise AssertionError


async def test_the_channel() -> None:
    holdings: dict[PeerName, dict[str, Digest]] = {name: {"ring": Digest(1, 1)} for name, _ in OTHERS}
    users = [
        (
            name,
            AgreementGossip(
                hold=lambda name=name: holdings[name],  # type: ignore[misc]
                peers=lambda name=name: [other for other in OTHERS if other[0] != name],  # type: ignore[misc]
                uid=int(name),
                tick=0.01,
            ),
        )
        for name, _ in OTHERS
    ]
    for name, user in users:
        user.start(Wire(name, users))
    first = users[0][1]
    await asyncio.sleep(0.05)
    (row,) = first.document()["Peers"]
    assert (row["Name"], row["NickName"], row["Differs"]) == ("00:00:00:00:00:03", "host3", [])
    assert abs(row["ClockSkew"]) < 5
    holdings[TWO] = {"ring": Digest(7, 7)}
    (row,) = first.document()["Peers"]
    assert [difference["Subject"] for difference in row["Differs"]] == ["ring"]
    assert first.on_broadcast(THREE, b"of a later format") == b"of a later format"
    assert first.unknown_records == 1
    assert (first.gossip(), first.on_gossip(b"x")) == (None, None)  # type: ignore[func-returns-value]
    for _, user in users:
        user.stop()
