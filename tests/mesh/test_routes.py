"""Routes: the reference's tables, and the same tables by a search as plain as the specification."""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.names import UNKNOWN, PeerName, format_peer_name, parse_peer_name
from mesh.routes import Routes
from mesh.topology import Entry, Topology
from mesh.topology_wire import Link
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
