"""Topology on the wire: the reference's bytes, and the fast decoder held against the general one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import gob, gob_decoder, topology_wire
from mesh.gob import GobError
from mesh.names import PeerName
from mesh.topology_wire import (
    DESCRIPTORS,
    Described,
    Link,
    decode_pair,
    decode_stream,
    encode_messages,
    encode_pair,
    encode_stream,
    split_pairs,
)
from tests.mesh.peers import described
from tests.vectors import load, vectors

SAMPLES = [
    bytes.fromhex(vector["hex"])
    for file in ("topology.json", "topology-merge.json", "gob-tolerance.json")
    for vector in load("mesh", file)
    if 0 < len(vector["hex"]) < 8000
]


def fast(data: bytes) -> list[Described]:
    """What a merge reads that knows nobody yet."""
    cut = split_pairs(data)
    return decode_stream(data) if cut is None else [decode_pair(pair) for pair in cut.unknown]


def encode(peers: list[Described]) -> bytes:
    return encode_stream(encode_messages(encode_pair(peer)) for peer in peers)


def bare(size: int, first: bytes = b"") -> bytes:
    """A gob message: its length, and a body of `size` bytes."""
    return gob.encode_bytes(first + b"\0" * (size - len(first)))


@vectors("mesh", "topology.json")
def test_the_references_bytes(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    expected = [described(peer) for peer in vector["peers"]]
    cut = split_pairs(data)
    assert (cut is not None) == bool(expected), "the usual descriptors take the fast path"
    assert fast(data) == expected
    assert decode_stream(data) == expected
    again = encode(expected)
    assert decode_stream(again) == expected
    assert fast(again) == expected


@vectors("mesh", "topology.json")
def test_the_references_entries_are_passed_on_as_they_came(vector: dict[str, Any]) -> None:
    cut = split_pairs(bytes.fromhex(vector["hex"]))
    for pair in cut.unknown if cut is not None else ():
        peer = decode_pair(pair)
        assert peer.pair == pair == encode_pair(peer)


@vectors("mesh", "gob-tolerance.json")
def test_tolerance_is_the_references(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if not vector["accepted"]:
        with pytest.raises(GobError):
            fast(data)
        return
    assert fast(data) == decode_stream(data)


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "append"]), st.integers(0, 1 << 16), st.integers(0, 255)
    ),
    min_size=1,
    max_size=4,
)


def mutate(sample: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(sample)
    for what, where, value in mutations:
        at = where % len(data) if data else 0
        if what == "insert" or not data:
            data.insert(at, value)
        elif what == "set":
            data[at] = value
        elif what == "delete":
            del data[at]
        elif what == "cut":
            del data[at:]
        else:
            data.append(value)
    return bytes(data)


def outcome(decode: Any, data: bytes) -> list[Described] | str:
    try:
        return list(decode(data))
    except GobError:
        return "refused"


@settings(max_examples=400)
@given(st.sampled_from(SAMPLES), MUTATIONS)
def test_both_decoders_agree_on_mutated_bytes(sample: bytes, mutations: list[tuple[str, int, int]]) -> None:
    data = mutate(sample, mutations)
    assert outcome(fast, data) == outcome(decode_stream, data)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_both_decoders_agree_on_anything_behind_our_descriptors(garbage: bytes) -> None:
    for data in (garbage, DESCRIPTORS + garbage):
        assert outcome(fast, data) == outcome(decode_stream, data)


LINK = st.builds(
    Link,
    st.integers(0, (1 << 48) - 1).map(PeerName),
    st.text(max_size=6) | st.just("10.0.0.1:6783") | st.just("[fe80::1%eth0]:6783") | st.just("x" * 200),
    st.booleans(),
    st.booleans(),
)
PEER = st.builds(
    Described,
    st.integers(0, (1 << 48) - 1).map(PeerName),
    st.text(max_size=8) | st.just("n" * 300),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 65535),
    st.booleans(),
    st.lists(LINK, max_size=5).map(lambda links: {link.remote: link for link in links}),
)


@given(st.lists(PEER, max_size=5))
def test_what_is_encoded_is_decoded(peers: list[Described]) -> None:
    data = encode(peers)
    assert decode_stream(data) == peers
    assert fast(data) == peers


@given(PEER)
def test_the_bytes_of_an_entry_are_kept_only_where_we_would_write_them(peer: Described) -> None:
    again = decode_pair(encode_pair(peer))
    assert again.pair is None or again.pair == encode_pair(again)


def test_bytes_that_we_would_write_differently_are_not_passed_on() -> None:
    peer = Described(PeerName(2), "two", 7, 1, 0, True, {PeerName(3): Link(PeerName(3), "a:1", True, True)})
    pair = encode_pair(peer)
    explicit_zero = pair.summary.replace(b"\2\1\0", b"\1\0\1\1\0")
    assert explicit_zero != pair.summary
    twice = b"\2" + pair.links[1:] * 2
    for odd in (pair._replace(summary=explicit_zero), pair._replace(links=twice)):
        assert decode_pair(odd) == peer
        assert decode_pair(odd).pair is None


def test_known_summaries_are_not_read_again() -> None:
    peers = [described(peer) for peer in load("mesh", "topology.json")[6]["peers"]]
    known = {encode_pair(peer).summary: peer.name for peer in peers[1:]}
    cut = split_pairs(encode(peers), known)
    assert cut is not None
    assert cut.known == [peer.name for peer in peers[1:]]
    assert [decode_pair(pair) for pair in cut.unknown] == peers[:1]


def test_names_are_48_bits_however_long_they_come() -> None:
    summary = topology_wire._Summary(b"\x01\x02" + b"\0" * 5 + b"\x09", "long", 1, 1)
    links = [topology_wire._LinkSummary(b"\xff" * 9, "a:1")]
    data = gob.Encoder().add(topology_wire._SUMMARY, summary).add(topology_wire._LINKS, links).done()
    for decoded in (fast(data), decode_stream(data)):
        assert [peer.name for peer in decoded] == [9]
        assert list(decoded[0].links) == [(1 << 48) - 1]


def test_an_odd_stream_does_not_slow_down_the_next() -> None:
    """The same descriptors with other values before them must not be remembered as unusual."""
    topology_wire._shapes.clear()
    usual = encode([Described(PeerName(2), "two", 5, 1, 0, True)])
    cut = topology_wire._cut(usual)
    only_summary = cut.definitions + gob.encode_bytes(usual[slice(*cut.values[0])])
    swapped = cut.definitions + b"".join(gob.encode_bytes(usual[slice(*span)]) for span in reversed(cut.values))
    assert fast(only_summary) == []
    with pytest.raises(GobError):
        fast(swapped)
    assert split_pairs(usual) is not None


def messages(peer: Described) -> tuple[list[bytes], bytes, bytes]:
    """One described peer as the definitions, the summary and the links of its stream."""
    usual = encode([peer])
    cut = topology_wire._cut(usual)
    definitions = []
    cursor = gob.Cursor(cut.definitions)
    while cursor.position < cursor.end:
        definitions.append(gob.encode_bytes(cursor.octets()))
    summary, links = (gob.encode_bytes(usual[slice(*span)]) for span in cut.values)
    return definitions, summary, links


def test_descriptors_come_before_what_they_describe() -> None:
    (of_summary, *of_links), summary, links = messages(Described(PeerName(2), "two", 5, 1, 0, True))
    as_released = [of_summary, summary, *of_links, links]
    assert [peer.name for peer in fast(b"".join(as_released))] == [2]
    for late in ([summary, of_summary, *of_links, links], [of_summary, summary, links, *of_links]):
        data = b"".join(late)
        with pytest.raises(GobError):
            fast(data)
        with pytest.raises(GobError):
            decode_stream(data)


def test_a_summary_without_links_says_nothing_but_has_to_be_one() -> None:
    definitions, summary, links = messages(Described(PeerName(2), "two", 5, 1, 0, True))
    whole = b"".join([*definitions, summary, links])
    assert [peer.name for peer in fast(whole + summary)] == [2]
    malformed = summary[:3] + b"\x70" + summary[4:]
    with pytest.raises(GobError):
        fast(whole + malformed)
    with pytest.raises(GobError):
        decode_stream(whole + malformed)


def test_lengths_that_add_up_must_also_be_right() -> None:
    links = {PeerName(n): Link(PeerName(n), address, True, True) for n, address in ((3, "a"), (4, "bcd"))}
    definitions, summary, right = messages(Described(PeerName(2), "two", 5, 1, 0, True, links))
    wrong = right.replace(b"\1\1a", b"\1\2a").replace(b"\1\3bcd", b"\1\2bcd")
    assert len(wrong) == len(right) and wrong != right
    data = b"".join([*definitions, summary, wrong])
    assert outcome(fast, data) == outcome(decode_stream, data) == "refused"


def test_descriptors_of_any_size_are_not_remembered() -> None:
    topology_wire._shapes.clear()
    gob_decoder._plans.clear()
    fields = [gob.StructField(f"F{number}", f"F{number}", gob.UINT) for number in range(2000)]
    bulky = gob.Struct("peerSummary")
    bulky.fields = [gob.StructField("NameByte", "name", gob.BYTES), *fields]
    data = gob.Encoder().add(bulky, {"name": b"\0" * 6}).add(topology_wire._LINKS, []).done()
    assert [peer.name for peer in fast(data)] == [0]
    assert not topology_wire._shapes
    assert not [key for key in gob_decoder._plans if len(key[2]) > 4096]


@pytest.mark.parametrize(
    "data",
    [b"\xff", b"\xf8" + b"\xff" * 8, bare(1), bare(3, b"\x04\x00"), b"\x7f", DESCRIPTORS[:-1], DESCRIPTORS + b"\x05"],
    ids=["no length", "huge length", "no type", "a string", "cut short", "cut descriptors", "cut value"],
)
def test_what_is_no_stream_is_refused(data: bytes) -> None:
    with pytest.raises(GobError):
        fast(data)
    with pytest.raises(GobError):
        decode_stream(data)
