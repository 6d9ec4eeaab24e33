"""Topology: merging, collection and passing on, against the reference's results and against plain rules."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.gob import GobError
from mesh.names import PeerName, peer_name_to_bytes
from mesh.topology import Entry, Topology
from mesh.topology_wire import DESCRIPTORS, Described, Link, encode_messages, encode_pair, encode_stream
from tests.mesh.peers import named, shown, snapshot, sorted_links, topology
from tests.vectors import load, vectors


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


def content(name: int, uid: int, version: int) -> Described:
    """What a well-behaved peer says at a version: always the same."""
    rng = Random(f"{name} {uid} {version}")
    links = {PeerName(n): Link(PeerName(n), f"10.0.0.{n}:6783", True, rng.random() < 0.7) for n in range(1, 9)}
    chosen = {remote: links[remote] for remote in rng.sample(sorted(links), rng.randrange(4)) if remote != name}
    return Described(PeerName(name), f"n{name}", uid, version, (uid * 7 + version // 2) % 4096, True, chosen)


def whole(made: Topology) -> bytes:
    """Everything, as a neighbour that knows it gossips it."""
    return b"".join(made.encode_full(1 << 20))


def test_whether_a_neighbour_holds_the_same() -> None:
    ours, theirs = fresh(), Topology(PeerName(5), "", 1, rng=Random(1))
    ours.merge(stream([content(2, 1, 1)]))
    theirs.merge(whole(ours))
    ours.merge(whole(theirs))
    assert ours.matches(whole(theirs)) is True
    assert ours.matches(ours.encode([PeerName(2)])) is None, "it says nothing of the others"
    assert ours.matches(b"") is None
    behind = whole(theirs)
    ours.merge(stream([content(2, 1, 2)]))
    theirs.merge(stream([content(2, 1, 2)]))
    assert ours.matches(behind) is False
    assert ours.matches(whole(theirs)) is True
    # Somebody of whom they know and we do not is a difference too.
    theirs.merge(stream([content(7, 1, 1)]))
    assert ours.matches(whole(theirs)) is False
    with pytest.raises(GobError):
        ours.matches(whole(theirs)[:-1])


SAID = st.lists(
    st.builds(content, st.integers(1, 8), st.integers(1, 3), st.integers(0, 4)), max_size=14, unique_by=repr
)


@given(SAID, st.data())
def test_the_order_and_grouping_of_updates_do_not_matter(said: list[Described], data: st.DataObject) -> None:
    outcomes = []
    for order in (said, data.draw(st.permutations(said))):
        made = fresh()
        rest = list(order)
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            made.merge(stream(rest[:size]))
            rest = rest[size:]
        outcomes.append((snapshot(made), made.digest))
    assert outcomes[0] == outcomes[1]


@given(st.lists(SAID, max_size=4))
def test_collection_is_what_links_reach(updates: list[list[Described]]) -> None:
    made = fresh()
    made.introduce(PeerName(2), "two", 1, 5)
    made.hold(PeerName(2))
    made.add_link(PeerName(2), "10.0.0.2:6783", True)
    made.introduce(PeerName(7), "held only", 1, 6)
    made.hold(PeerName(7))
    for update in updates:
        made.merge(stream(update))
        reached, frontier = {made.ourself.name, PeerName(2), PeerName(7)}, [made.ourself.name, PeerName(2), PeerName(7)]
        while frontier:
            entry = made.get(frontier.pop())
            assert entry is not None
            new = [remote for remote in entry.links if remote not in reached]
            reached.update(new)
            frontier.extend(new)
        unreachable = set(made.names()) - reached
        assert {entry.name for entry in made.collect()} == unreachable
        assert set(made.names()) == reached
        assert made.collect() == []
        for short_id in range(4096):
            owner = made.short_ids.owner(short_id)
            assert owner is None or made.short_id(owner) == short_id


@given(st.lists(SAID, min_size=1, max_size=3), st.integers(1, 400))
def test_chunks_survive_collection_between_them(updates: list[list[Described]], limit: int) -> None:
    """§18: a receiver that collects after every chunk still ends with everybody that the sender reaches."""
    sender = fresh()
    sender.introduce(PeerName(2), "two", 1, 5)
    sender.add_link(PeerName(2), "10.0.0.2:6783", True)
    for update in updates:
        sender.merge(stream(update))
    sender.collect()
    receiver = Topology(PeerName(100), "them", 98, rng=Random(6))
    receiver.introduce(sender.ourself.name, "us", 99, None)
    receiver.hold(sender.ourself.name)
    for chunk in sender.encode_full(limit):
        receiver.merge(chunk)
        receiver.collect()
    assert set(receiver.names()) == {*sender.names(), PeerName(100)}
    for name in sender.names():
        ours, theirs = sender.get(name), receiver.get(name)
        assert ours is not None and theirs is not None
        assert sorted_links(shown(ours)) == sorted_links(shown(theirs))


def test_chunks_keep_to_their_limit() -> None:
    made = fresh()
    made.merge(stream([content(name, 1, 4) for name in range(2, 9)]))
    chunks = list(made.encode_full(150))
    assert len(chunks) > 2
    largest = max(len(entry.messages) for name in made.names() if (entry := made.get(name)) is not None)
    assert all(len(chunk) <= len(DESCRIPTORS) + max(150, largest) for chunk in chunks)


def test_a_former_self_is_outrun_again_and_again() -> None:
    made = fresh()
    for version, expected, bumped in ((3, 4, True), (3, 4, False), (4, 5, True), (1 << 62, (1 << 62) + 1, True)):
        former = Described(made.ourself.name, "former", 98, version, 1, True)
        assert made.merge(stream([former])).our_version_bumped == bumped
        assert made.ourself.version == expected
        assert made.ourself.uid == 99
        assert made.ourself.nickname == "us"


@pytest.mark.parametrize("version", [(1 << 63) + 1, (1 << 64) - 1])
def test_a_former_self_that_cannot_be_outrun_is_a_lie(version: int) -> None:
    made = fresh()
    merge = made.merge(stream([Described(made.ourself.name, "former", 98, version, 1, True)]))
    assert not merge.our_version_bumped
    assert made.ourself.version == 0
    made.introduce(PeerName(2), "two", 1, 5)
    made.add_link(PeerName(2), "10.0.0.2:6783", True)
    assert made.encode(made.names())


def test_entries_of_any_size_are_entries() -> None:
    made = fresh()
    huge = (1 << 64) - 1
    made.merge(stream([Described(PeerName((1 << 48) - 1), "x" * 1000, huge, huge, 65535, True)]))
    entry = made.get(PeerName((1 << 48) - 1))
    assert entry is not None and (entry.uid, entry.version, entry.short_id) == (huge, huge, 65535)
    assert all(len(peer_name_to_bytes(name)) == 6 for name in made.names())
    assert 0 <= made.digest <= huge


def test_a_placeholder_that_is_described_as_one_is_no_news() -> None:
    made = fresh()
    made.merge(stream([Described(PeerName(2), "two", 1, 1, 0, True, {PeerName(3): Link(PeerName(3), "", True, True)})]))
    merge = made.merge(stream([Described(PeerName(3), "odd", 0, 0, 0, False)]))
    assert merge.described == {3}
    assert not merge.new


def test_our_links_change_our_version_and_nobodys_short_id() -> None:
    made = fresh()
    made.introduce(PeerName(2), "two", 1, 5)
    versions, changed, digests = [made.ourself.version], made.short_ids.changed, {made.digest}
    made.add_link(PeerName(2), "10.0.0.2:6783", True)
    assert made.ourself.links[PeerName(2)] == Link(PeerName(2), "10.0.0.2:6783", True, False)
    versions.append(made.ourself.version)
    digests.add(made.digest)
    made.establish_link(PeerName(2))
    assert made.ourself.links[PeerName(2)].established
    versions.append(made.ourself.version)
    digests.add(made.digest)
    made.delete_link(PeerName(2))
    assert not made.ourself.links
    versions.append(made.ourself.version)
    digests.add(made.digest)
    assert versions == [0, 1, 2, 3]
    assert made.short_ids.changed == changed
    assert len(digests) == 4


def test_what_is_known_of_a_peer_is_not_changed_by_its_introduction() -> None:
    made = fresh()
    made.merge(stream([Described(PeerName(2), "gossiped", 1, 3, 5, True)]))
    before = made.get(PeerName(2))
    made.introduce(PeerName(2), "restarted", 2, 6)
    assert made.get(PeerName(2)) is before


def test_a_lost_short_id_is_replaced_when_one_is_free() -> None:
    made = Topology(PeerName(500), "us", 99, rng=Random(5))
    ours = made.ourself.short_id
    merge = made.merge(stream([Described(PeerName(9), "lower", 1, 1, ours, True)]))
    assert merge.short_id_lost and made.lacks_short_id
    assert made.choose_short_id(Random(1))
    assert not made.lacks_short_id
    assert made.ourself.version == 1
    assert made.ourself.short_id != ours


def test_decoded_entries_are_shared_through_the_cache() -> None:
    cache: dict[Any, Entry] = {}
    first, second = (Topology(PeerName(n), "us", n, rng=Random(n), cache=cache) for n in (50, 60))
    update = stream([content(name, 1, 4) for name in range(2, 9)])
    first.merge(update)
    second.merge(update)
    for name in range(2, 9):
        assert first.get(PeerName(name)) is second.get(PeerName(name))


def test_collection_keeps_whom_a_connection_refers_to() -> None:
    made = fresh()
    made.introduce(PeerName(5), "five", 55, 3)
    made.hold(PeerName(5))
    assert made.collect() == []
    made.release(PeerName(5))
    assert [entry.name for entry in made.collect()] == [5]
    assert made.get(PeerName(5)) is None
    assert isinstance(made.ourself, Entry)
