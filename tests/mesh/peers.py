"""Peers of the vectors as topologies of ours, and back."""

from random import Random
from typing import Any

from mesh.names import PeerName, format_peer_name, parse_peer_name
from mesh.topology import Entry, Topology
from mesh.topology_wire import Described, Link


def described(peer: dict[str, Any]) -> Described:
    links = {}
    for connection in peer["connections"]:
        remote = parse_peer_name(connection["name"])
        links[remote] = Link(remote, connection["addr"], connection["outbound"], connection["established"])
    return Described(
        parse_peer_name(peer["name"]),
        peer["nickname"],
        int(peer["uid"]),
        int(peer["version"]),
        peer["shortid"],
        peer["hasshortid"],
        links,
    )


def entry(peer: dict[str, Any]) -> Entry:
    known = described(peer)
    return Entry(
        known.name, known.nickname, known.uid, known.version, known.short_id, known.has_short_id, known.links
    )


def shown(peer: Entry) -> dict[str, Any]:
    """An entry in the notation of the vectors, links by name."""
    return {
        "name": format_peer_name(peer.name),
        "nickname": peer.nickname,
        "uid": str(peer.uid),
        "version": peer.version,
        "shortid": peer.short_id,
        "hasshortid": peer.has_short_id,
        "connections": [
            {
                "name": format_peer_name(link.remote),
                "addr": link.address,
                "outbound": link.outbound,
                "established": link.established,
            }
            for link in sorted(peer.links.values())
        ],
    }


def sorted_links(peer: dict[str, Any]) -> dict[str, Any]:
    return {**peer, "connections": sorted(peer["connections"], key=lambda connection: connection["name"])}


def topology(ourself: str, peers: list[dict[str, Any]]) -> Topology:
    """A topology that knows exactly these peers, `ourself` among them."""
    made = Topology(parse_peer_name(ourself), "", 1, rng=Random(1))
    for peer in peers:
        made._put(entry(peer))
    return made


def snapshot(made: Topology) -> list[dict[str, Any]]:
    entries = [made.get(name) for name in sorted(made.names())]
    return [shown(peer) for peer in entries if peer is not None]


def named(names: Any) -> list[str]:
    return sorted(format_peer_name(PeerName(name)) for name in names)
