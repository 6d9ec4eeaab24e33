"""Routes: the reference's tables, and the same tables by a search as plain as the specification."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.names import UNKNOWN, PeerName, format_peer_name, parse_peer_name
from mesh.routes import Routes
from mesh.topology import Entry, Topology
from mesh.topology_wire import Described, Link, encode_messages, encode_pair, encode_stream
from tests.mesh.peers import topology
from tests.vectors import vectors


def table(routes: Any) -> dict[str, str]:
    return {format_peer_name(name): format_peer_name(hop) for name, hop in routes.items()}


@vectors("mesh", "routes.json")
def test_tables(vector: dict[str, Any]) -> None:
    for expected in vector["routes"]:
        routes = Routes(topology(expected["self"], vector["peers"]))
        routes.recalculate()
        assert table(routes.unicast) == expected["unicast"]
        assert table(routes.unicast_all) == expected["unicast_all"]
        for source, hops in expected["broadcast"].items():
            assert sorted(map(format_peer_name, routes.broadcast(parse_peer_name(source)))) == sorted(hops)
        for source, hops in expected["broadcast_all"].items():
            assert sorted(map(format_peer_name, routes.broadcast_all(parse_peer_name(source)))) == sorted(hops)
        weights = {format_peer_name(name): weight for name, weight in routes.weights.items()}
        assert weights == expected["gossip_weights"]
        assert min(routes.fanout(), len(weights)) == expected["gossip_fanout"]
        chosen = routes.random_neighbours(Random(1), None)
        assert len(set(chosen)) == expected["gossip_fanout"]


def plain_search(
    links: dict[int, dict[int, bool]], start: int, stop: int | None, symmetric: bool
) -> tuple[bool, dict[int, int]]:
    """§10, word by word."""
    reached = {start: 0}
    level = [start]
    while level:
        following = []
        for peer in sorted(level):
            if peer == stop:
                return True, reached
            for remote in usable(links, peer, symmetric):
                if remote not in reached:
                    following.append(remote)
                    reached[remote] = remote if peer == start else reached[peer]
        level = following
    return False, reached


def usable(links: dict[int, dict[int, bool]], peer: int, symmetric: bool) -> list[int]:
    listed = links.get(peer, {})
    if not symmetric:
        return list(listed)
    return [remote for remote, established in listed.items() if established and links.get(remote, {}).get(peer)]


LISTS = st.dictionaries(st.integers(1, 12), st.booleans(), max_size=5)
GRAPHS = st.dictionaries(st.integers(1, 12), LISTS, max_size=12)


@settings(max_examples=60)
@given(st.lists(GRAPHS, min_size=1, max_size=5))
def test_tables_follow_changes(graphs: list[dict[int, dict[int, bool]]]) -> None:
    made = Topology(PeerName(1), "us", 9, rng=Random(1))
    routes = Routes(made)
    current: dict[int, dict[int, bool]] = {1: {}}
    for version, graph in enumerate(graphs, 1):
        for peer, listed in graph.items():
            current[peer] = {remote: up for remote, up in listed.items() if remote != peer}
            links = {PeerName(r): Link(PeerName(r), "", True, up) for r, up in current[peer].items()}
            made._put(Entry(PeerName(peer), "", 7, version, links=links))
            for remote in current[peer]:
                if not made.knows(PeerName(remote)):
                    made._put(Entry(PeerName(remote)))
        routes.recalculate()
        for symmetric, unicast, broadcast in (
            (True, routes.unicast, routes.broadcast),
            (False, routes.unicast_all, routes.broadcast_all),
        ):
            _, hops = plain_search(current, 1, None, symmetric)
            assert unicast == {**hops, 1: UNKNOWN}
            for source in made.names():
                arrived, reached = plain_search(current, source, 1, symmetric)
                expected = [r for r in usable(current, 1, symmetric) if r not in reached] if arrived else []
                assert sorted(broadcast(source)) == sorted(expected)


def said(rng: Random, name: int, version: int, everybody: int) -> Described:
    remotes = [remote for remote in rng.sample(range(1, everybody + 1), rng.randrange(5)) if remote != name]
    links = {PeerName(r): Link(PeerName(r), f"10.0.0.{r}:6783", True, rng.random() < 0.8) for r in remotes}
    return Described(PeerName(name), f"n{name}", 7, version, name, True, links)


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_tables_follow_gossip_and_collection(seed: int) -> None:
    """Peers come, go and come back with other numbers; a search that starts from nothing agrees at every step."""
    rng = Random(seed)
    made = Topology(PeerName(8), "us", 9, rng=rng)
    routes = Routes(made)
    for version in range(1, 12):
        peers = [said(rng, name, version, 14) for name in rng.sample(range(1, 15), rng.randrange(1, 6)) if name != 8]
        made.merge(encode_stream(encode_messages(encode_pair(peer)) for peer in peers))
        ends = set(made.ourself.links)
        for remote in rng.sample(sorted(made.names()), min(2, len(made))):
            if remote in ends:
                made.delete_link(remote)
            elif remote != 8:
                made.add_link(remote, "10.0.0.1:6783", True)
                if rng.random() < 0.8:
                    made.establish_link(remote)
        if rng.random() < 0.7:
            made.collect()
        if rng.random() < 0.7:
            routes.recalculate()
            assert_plain_tables(made, routes)


def assert_plain_tables(made: Topology, routes: Routes) -> None:
    entries = [entry for name in made.names() if (entry := made.get(name)) is not None]
    links: dict[int, dict[int, bool]] = {
        entry.name: {remote: link.established for remote, link in entry.links.items()} for entry in entries
    }
    ourself = made.ourself.name
    for symmetric, unicast, broadcast in (
        (True, routes.unicast, routes.broadcast),
        (False, routes.unicast_all, routes.broadcast_all),
    ):
        _, hops = plain_search(links, ourself, None, symmetric)
        assert unicast == {**hops, ourself: UNKNOWN}
        for source in made.names():
            arrived, reached = plain_search(links, source, ourself, symmetric)
            expected = [r for r in usable(links, ourself, symmetric) if r not in reached] if arrived else []
            assert list(broadcast(source)) == sorted(expected)
        for gone in set(range(1, 15)) - made.names():
            assert broadcast(PeerName(gone)) == ()


@settings(max_examples=25)
@given(st.integers(0, 1 << 32))
def test_a_broadcast_reaches_everybody_once(seed: int) -> None:
    """All nodes calculate for themselves; together they are one tree for each source."""
    rng = Random(seed)
    names = [PeerName(name) for name in rng.sample(range(1, 1000), 12)]
    ends: dict[PeerName, set[PeerName]] = {name: set() for name in names}
    for place, name in enumerate(names[1:], 1):
        for other in {rng.choice(names[:place]), rng.choice(names)} - {name}:
            ends[name].add(other)
            ends[other].add(name)
    nodes = {}
    for ourself in names:
        made = Topology(ourself, "us", 9, rng=rng)
        for name in names:
            links = {remote: Link(remote, "", True, True) for remote in ends[name]}
            made._put(Entry(name, "", 7, 1, links=links))
        nodes[ourself] = Routes(made)
        nodes[ourself].recalculate()
    for source in names:
        received = [source]
        for node in received:
            received += nodes[node].broadcast(source)
            assert len(received) <= len(names)
        assert sorted(received) == sorted(names)


def test_unknown_sources_have_no_hops() -> None:
    routes = Routes(Topology(PeerName(1), "us", 9, rng=Random(1)))
    routes.recalculate()
    assert routes.broadcast(PeerName(77)) == routes.broadcast_all(PeerName(77)) == ()
    assert routes.unicast == routes.unicast_all == {PeerName(1): UNKNOWN}
    assert routes.random_neighbours(Random(1), None) == []


def star(spokes: list[int]) -> Routes:
    """Neighbours 1, 2, ... of node 100; behind neighbour i hang `spokes[i - 1]` more peers."""
    made = Topology(PeerName(100), "us", 9, rng=Random(1))
    for number, behind in enumerate(spokes, 1):
        made.introduce(PeerName(number), "", 7, None)
        made.add_link(PeerName(number), "", True)
        links = {PeerName(r): Link(PeerName(r), "", True, True) for r in range(1000 * number, 1000 * number + behind)}
        update = Described(PeerName(number), "", 7, 1, 0, False, links)
        made.merge(encode_stream([encode_messages(encode_pair(update))]))
    routes = Routes(made)
    routes.recalculate()
    return routes


@pytest.mark.parametrize(
    ("spokes", "fanout"), [([], 0), ([0], 2), ([0, 0], 3), ([0, 0, 0], 4), ([5, 1], 6), ([999, 1, 1, 0], 19)]
)
def test_fanout_grows_with_the_logarithm(spokes: list[int], fanout: int) -> None:
    routes = star(spokes)
    assert routes.fanout() == fanout
    assert routes.random_neighbours(Random(1), None) == [PeerName(n) for n in range(1, len(spokes) + 1)][:fanout]


def test_the_excluded_neighbour_is_never_drawn() -> None:
    routes = star([0] * 20)
    for seed in range(50):
        chosen = routes.random_neighbours(Random(seed), PeerName(3))
        assert len(chosen) == len(set(chosen)) == routes.fanout()
        assert PeerName(3) not in chosen


def test_neighbours_are_drawn_by_how_many_they_lead_to() -> None:
    """Fan-out 9 of 12: how often each is left out, against drawing one by one with the remaining weights."""
    routes = star([7, 3, 1] + [0] * 9)
    weights = dict(routes.weights)
    assert weights[PeerName(1)] == 8 and weights[PeerName(2)] == 4 and weights[PeerName(12)] == 1
    rounds, rng = 4000, Random(7)
    drawn = Counter(name for _ in range(rounds) for name in routes.random_neighbours(rng, None))
    expected: Counter[PeerName] = Counter()
    for _ in range(rounds):
        rest = dict(weights)
        for _ in range(routes.fanout()):
            name = rng.choices(list(rest), list(rest.values()))[0]
            expected[name] += 1
            del rest[name]
    assert sum(drawn.values()) == sum(expected.values()) == rounds * routes.fanout()
    for name in weights:
        assert abs(drawn[name] - expected[name]) < 0.05 * rounds
    assert drawn[PeerName(1)] > drawn[PeerName(2)] > drawn[PeerName(12)]
