"""Topology: the wire form, merging, collection and short ids, against the reference's results and against itself."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.gob import GobError
from mesh.names import PeerName, format_peer_name, parse_peer_name
from mesh.shortids import SHORT_IDS, ShortIds
from mesh.topology import Entry, Topology
from mesh.topology_wire import (
    Described,
    Link,
    decode_pair,
    decode_stream,
    encode_messages,
    encode_pair,
    encode_stream,
    split_pairs,
)
from tests.mesh.peers import described, named, shown, snapshot, sorted_links, topology
from tests.vectors import load, vectors


def fast(data: bytes) -> list[Described]:
    cut = split_pairs(data)
    return decode_stream(data) if cut is None else [decode_pair(pair) for pair in cut.unknown]


@vectors("mesh", "topology.json")
def test_wire_form(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    expected = [described(peer) for peer in vector["peers"]]
    cut = split_pairs(data)
    if cut is not None:
        assert [decode_pair(pair) for pair in cut.unknown] == expected
    assert (cut is not None) == bool(expected), "the usual descriptors take the fast path"
    assert decode_stream(data) == expected
    again = encode_stream(encode_messages(encode_pair(peer)) for peer in expected)
    assert decode_stream(again) == expected
    assert fast(again) == expected


@vectors("mesh", "gob-tolerance.json")
def test_fast_and_general_decoder_agree(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if not vector["accepted"]:
        with pytest.raises(GobError):
            fast(data)
        return
    assert fast(data) == decode_stream(data)


@vectors("mesh", "topology-merge.json")
def test_merge(vector: dict[str, Any]) -> None:
    ourself = vector.get("ourself", "::1")
    made = topology(ourself, vector.get("before", []))
    before = snapshot(made)
    data = bytes.fromhex(vector["hex"])
    if vector["error"]:
        with pytest.raises(GobError):
            made.merge(data)
        assert snapshot(made) == before
        return
    merge = made.merge(data)
    assert named(merge.new) == sorted(vector["new_names"] or [])
    assert named(merge.described) == sorted(vector["received_names"] or [])
    after = {peer["name"]: sorted_links(peer) for peer in vector["after"]}
    if merge.short_id_lost:
        made.choose_short_id(Random(3))
        ours = next(peer for peer in snapshot(made) if peer["name"] == ourself)
        assert ours["version"] == after[ourself]["version"]
        after[ourself]["shortid"] = ours["shortid"]
    assert {peer["name"]: peer for peer in snapshot(made)} == after
    assert (merge.our_version_bumped or merge.short_id_lost) == vector["self_broadcast_scheduled"]
    made.collect()
    assert named(made.names()) == sorted(peer["name"] for peer in vector["after_gc"])


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in load("mesh", "shortid.json")])
def test_short_ids(vector: dict[str, Any]) -> None:
    ids = ShortIds()
    ours = parse_peer_name(vector["ourself"])
    mine: int | None = None
    for step in vector["steps"]:
        name, before = parse_peer_name(step["name"]), ids.changed
        if step["op"] == "add":
            ids.add(step["shortid"], name)
            mine = step["shortid"] if name == ours else mine
        else:
            ids.remove(step["shortid"], name)
        owner = ids.owner(step["shortid"])
        assert ("" if owner is None else format_peer_name(owner)) == step["owner_after"]
        assert named(ids.others(step["shortid"])) == sorted(step["others_after"])
        assert (ids.changed > before) == step["invalidate"]
        assert (mine is not None and ids.owner(mine) != ours) == step["reassign_ours"]


def test_short_ids_run_out() -> None:
    ids = ShortIds()
    for short_id in range(SHORT_IDS):
        ids.add(short_id, PeerName(short_id + 1))
    assert ids.choose(Random(1)) is None
    ids.remove(77, PeerName(78))
    assert ids.choose(Random(1)) == 77


NAMES = st.integers(1, 8).map(PeerName)
LINK = st.builds(Link, NAMES, st.sampled_from(["10.0.0.1:6783", ""]), st.booleans(), st.booleans())
LINKS = st.lists(LINK, max_size=4)
PEERS = st.lists(
    st.builds(
        lambda name, uid, version, short, links: Described(
            name, f"n{name}", uid, version, short or 0, short is not None, {link.remote: link for link in links}
        ),
        NAMES,
        st.integers(1, 3),
        st.integers(0, 4),
        st.none() | st.integers(0, 3),
        LINKS,
    ),
    max_size=6,
)


def stream(peers: list[Described]) -> bytes:
    return encode_stream(encode_messages(encode_pair(peer)) for peer in peers)


def fresh() -> Topology:
    return Topology(PeerName(1), "us", 99, rng=Random(5))


@given(st.lists(PEERS, max_size=5))
def test_merging_keeps_the_rules(updates: list[list[Described]]) -> None:
    made = fresh()
    for update in updates:
        versions = {name: (entry.version, entry.uid) for name in made.names() if (entry := made.get(name))}
        first = made.merge(stream(update))
        for name, before in versions.items():
            entry = made.get(name)
            assert entry is not None
            assert (entry.version, entry.uid) >= before
        known = [entry for name in made.names() if (entry := made.get(name)) is not None]
        assert made.digest == sum(entry.fingerprint for entry in known) % (1 << 64)
        again = made.merge(stream(update))
        assert not again.new
        assert first.described == again.described
        for name in made.names():
            entry = made.get(name)
            assert entry is not None
            assert all(made.knows(remote) for remote in entry.links)


@given(PEERS)
def test_a_relayed_topology_is_the_same_topology(update: list[Described]) -> None:
    first, second = fresh(), fresh()
    first.merge(stream(update))
    for chunk in first.encode_full(200):
        second.merge(chunk)
    others = [name for name in first.names() if name != first.ourself.name]
    assert [shown(first.get(n)) for n in sorted(others)] == [shown(second.get(n)) for n in sorted(others)]  # type: ignore[arg-type]


@given(st.data())
def test_mutated_updates_cost_only_a_gob_error(data: st.DataObject) -> None:
    sample = bytearray(bytes.fromhex(data.draw(st.sampled_from(load("mesh", "topology.json")[:7]))["hex"]))
    for _ in range(data.draw(st.integers(1, 4)) if sample else 0):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    made = fresh()
    before = snapshot(made)
    try:
        made.merge(bytes(sample))
    except GobError:
        assert snapshot(made) == before


def test_collection_keeps_whom_a_connection_refers_to() -> None:
    made = fresh()
    made.introduce(PeerName(5), "five", 55, 3)
    made.hold(PeerName(5))
    assert made.collect() == []
    made.release(PeerName(5))
    assert [entry.name for entry in made.collect()] == [5]
    assert made.get(PeerName(5)) is None
    assert isinstance(made.ourself, Entry)
