"""How the vectors write peers, addresses, rings and proposals, read into ours."""

import json
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from ipam.paxos import Claims, Node, Proposal, Value
from ipam.ranges import Range, Subnet
from ipam.ring import Copy, Entry, Ring
from mesh.names import parse_peer_name
from tests.vectors import ROOT


def document(file: str) -> dict[str, Any]:
    """One file of the room's vectors."""
    made: dict[str, Any] = json.loads((ROOT / "ipam" / file).read_text())
    return made


def number(text: str) -> int:
    return int(IPv4Address(text))


def span(text: str) -> Range:
    """`[10.0.0.0,10.0.1.0)`."""
    start, end = text[1:-1].split(",")
    return Range(number(start), number(end))


def universe(shown: Mapping[str, Any]) -> Subnet:
    start, end = number(shown["start"]), number(shown.get("end_exclusive") or shown["end"])
    return Subnet(IPv4Address(start), 33 - (end - start).bit_length())


def copy(shown: Mapping[str, Any]) -> Copy:
    """A ring as some peer holds it."""
    entries = tuple(
        Entry(number(e["token"]), parse_peer_name(e["peer"]), e["version"], e["free"]) for e in shown["entries"]
    )
    holder = parse_peer_name(shown.get("self") or shown["peer"])
    return Copy(universe(shown).range, holder, entries, tuple(map(parse_peer_name, shown["seeds"])))


def ring(shown: Mapping[str, Any]) -> Ring:
    return copy(shown).over(universe(shown))


def _proposal(shown: Mapping[str, Any]) -> Proposal:
    return Proposal(shown["round"], Node(parse_peer_name(shown["proposer_name"]), shown["proposer_uid"]))


def knowledge(shown: list[Mapping[str, Any]]) -> dict[Node, Claims]:
    """What one node knows of all; values with their names in order."""
    return {
        Node(parse_peer_name(each["name"]), each["uid"]): Claims(
            _proposal(each["promise"]),
            _proposal(each["accepted"]),
            Value(
                tuple(sorted(map(parse_peer_name, each["accepted_value"]))), _proposal(each["accepted_value_origin"])
            ),
        )
        for each in shown
    }
