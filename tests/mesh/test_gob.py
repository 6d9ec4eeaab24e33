"""The gob codec against samples of real encoders, hand-made streams and garbage."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import gob
from tests.vectors import ROOT, load, vectors


def shown(value: Any) -> Any:
    """A decoded value in the notation of the vectors: numbers as text, bytes as hex, zero fields left out."""
    match value:
        case bool() | float():
            return value
        case int():
            return str(value)
        case complex():
            return [value.real, value.imag]
        case bytes():
            return {"bytes": value.hex()}
        case list():
            return [shown(item) for item in value]
        case dict():
            if any(not isinstance(key, str) for key in value):
                return sorted(([shown(k), shown(v)] for k, v in value.items()), key=json.dumps)
            return {key: shown(item) for key, item in value.items()}
        case tuple():
            return [shown(item) for item in value]
    return value


def decode_all(data: bytes) -> list[tuple[gob.Kind, Any]]:
    decoder = gob.Decoder(data)
    values = []
    while not decoder.at_end():
        values.append(decoder.next_any())
    return values


def same(ours: Any, theirs: Any) -> bool:
    """Equal, where their notation leaves the order of a map and the tag of an opaque value open."""
    if isinstance(theirs, dict) and set(theirs) == {"opaque"}:
        return bool(ours == {"bytes": theirs["opaque"]})
    if isinstance(theirs, dict) and set(theirs) == {"interface", "value"}:
        return same(ours, theirs["value"])
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list) and isinstance(ours, dict) and not theirs:
        return not ours
    if isinstance(theirs, list) and isinstance(ours, list):
        theirs = sorted(theirs, key=json.dumps) if ours != theirs else theirs
        ours = sorted(ours, key=json.dumps) if ours != theirs else ours
        return len(ours) == len(theirs) and all(same(o, t) for o, t in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


GENERIC = [
    pytest.param(vector, id=f"{file[:-5]}-{vector['name']}")
    for file in ("gob-generic.json", "gob-generic-newer.json")
    for vector in load("mesh", file)
]


@pytest.mark.parametrize("vector", GENERIC)
def test_generic_samples_decode_to_their_values(vector: dict[str, Any]) -> None:
    values = [shown(value) for _, value in decode_all(bytes.fromhex(vector["hex"]))]
    if vector["values"] is not None:
        assert same(values, vector["values"]), values


@pytest.mark.parametrize("vector", GENERIC)
def test_generic_samples_survive_re_encoding(vector: dict[str, Any]) -> None:
    if "interface" in vector["description"]:
        ((kind, value),) = decode_all(bytes.fromhex(vector["hex"]))
        with pytest.raises(NotImplementedError):
            gob.encode(kind, value)
        return
    values = decode_all(bytes.fromhex(vector["hex"]))
    encoder = gob.Encoder()
    for kind, value in values:
        encoder.add(kind, value)
    assert [shown(value) for _, value in decode_all(encoder.done())] == [shown(value) for _, value in values]


def hexes(document: Any) -> list[str]:
    """Every gob stream in a vector file: the values of keys that are hex."""
    if isinstance(document, dict):
        found = [document[key] for key in ("hex",) if isinstance(document.get(key), str)]
        return found + [item for value in document.values() for item in hexes(value)]
    if isinstance(document, list):
        return [item for value in document for item in hexes(value)]
    return []


@pytest.mark.parametrize("file", ["gob-ipam.json", "gob-nameserver.json", "topology.json"])
def test_weave_values_decode_and_re_encode(file: str) -> None:
    streams = hexes(json.loads((ROOT / "mesh" / file).read_text()))
    assert streams
    for stream in streams:
        raw = bytes.fromhex(stream)
        if not raw:
            continue
        values = decode_all(raw if raw[:1] not in (b"\0", b"\1", b"\2") else raw[1:])
        assert values
        encoder = gob.Encoder()
        for kind, value in values:
            encoder.add(kind, value)
        assert [shown(v) for _, v in decode_all(encoder.done())] == [shown(v) for _, v in values]


@dataclass(frozen=True, slots=True)
class Summary:
    name: bytes = gob.of("NameByte", gob.BYTES)
    nickname: str = gob.of("NickName", gob.STRING)
    uid: int = gob.of("UID", gob.UINT)
    version: int = gob.of("Version", gob.UINT)
    short_id: int = gob.of("ShortID", gob.UINT16)
    has_short_id: bool = gob.of("HasShortID", gob.BOOL)


@dataclass(frozen=True, slots=True)
class LinkSummary:
    name: bytes = gob.of("NameByte", gob.BYTES)
    address: str = gob.of("RemoteTCPAddr", gob.STRING)
    outbound: bool = gob.of("Outbound", gob.BOOL)
    established: bool = gob.of("Established", gob.BOOL)


SUMMARY = gob.struct_of("peerSummary", Summary)
LINKS = gob.ListOf(gob.struct_of("connectionSummary", LinkSummary))


def topology(data: bytes) -> list[tuple[Summary, list[LinkSummary]]]:
    decoder = gob.Decoder(data)
    peers = []
    while not decoder.at_end():
        summary = decoder.next(SUMMARY)
        if decoder.at_end():
            break
        peers.append((summary, decoder.next(LINKS)))
    return peers


@vectors("mesh", "gob-tolerance.json")
def test_hand_made_streams_are_accepted_as_by_the_reference(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if vector["accepted"]:
        assert len(topology(data)) == len(vector["peers_decoded"] or [])
    else:
        with pytest.raises(gob.GobError):
            topology(data)


VALUE = st.recursive(
    st.one_of(st.binary(max_size=8), st.integers(0, 300).map(lambda n: bytes((n % 256,)))),
    lambda inner: st.lists(inner, max_size=6).map(b"".join),
    max_leaves=20,
)


@given(st.one_of(st.binary(max_size=200), VALUE))
def test_garbage_raises_only_gob_errors(data: bytes) -> None:
    for read in (decode_all, topology):
        try:
            read(data)
        except gob.GobError:
            continue


@given(st.data())
def test_mutated_streams_raise_only_gob_errors(data: st.DataObject) -> None:
    samples = [bytes.fromhex(vector["hex"]) for vector in load("mesh", "gob-generic.json")]
    sample = bytearray(data.draw(st.sampled_from(samples)))
    for _ in range(data.draw(st.integers(1, 3))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    for read in (decode_all, topology):
        try:
            read(bytes(sample))
        except gob.GobError:
            continue


def test_nesting_is_bounded() -> None:
    recursive = next(v for v in load("mesh", "gob-generic.json") if v["name"] == "recursive")
    kind, _ = gob.Decoder(bytes.fromhex(recursive["hex"])).next_any()
    deep: dict[str, Any] = {}
    for _ in range(gob.MAX_DEPTH + 5):
        deep = {"Next": deep, "V": 1}
    with pytest.raises(gob.GobError, match="nested"):
        decode_all(gob.encode(kind, deep))
