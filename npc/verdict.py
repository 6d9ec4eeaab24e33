"""Whether a connection is allowed, said from the model alone: the oracle of the plan, and what `explain` explains.

A connection is allowed if the source, where a policy isolates it in egress, has an egress rule that matches, and the
destination, where one isolates it in ingress, an ingress rule. The answer is the cluster's: both sides together.
Source: NPC spec §2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address

from npc.model import Model
from npc.objects import Pod
from npc.plan import Direction, PortRange
from npc.policy import BlockPeer, NamedPort, Peer, Policy, PolicyRule
from npc.ranges import Network

ICMP, ICMP6 = 1, 58
# Multicast listeners, router and neighbour discovery: without them a pod finds no neighbour.
ICMP6_EXEMPT = ((130, 137), (143, 143))
MULTICAST = ("224.0.0.0/4", "ff00::/8")


@dataclass(frozen=True, slots=True)
class Connection:
    """The first packet of a connection: addresses in network order, after translation of services.

    `port` is the destination's; 0 for protocols without. `icmp_type` is that of ICMPv6.
    """

    source: bytes
    destination: bytes
    protocol: int
    port: int = 0
    icmp_type: int = 128


class Exemption(Enum):
    """Why no policy is asked."""

    SELF = "a pod reaches itself"
    OWN_NODE = "a pod and its own node reach each other"
    MULTICAST = "multicast is allowed"
    DISCOVERY = "neighbour discovery and multicast listening are never filtered"


@dataclass(frozen=True, slots=True)
class Match:
    """The rule that allows, by its number in its section, and the entries of it that matched; None is any."""

    policy: Policy
    rule: int
    peer: Peer | None
    port: PortRange | NamedPort | None


@dataclass(frozen=True, slots=True)
class Side:
    """One end's judgement: the pod there, the policies that isolate it in this direction, and what allows."""

    direction: Direction
    pod: Pod | None
    policies: tuple[Policy, ...]
    match: Match | None

    @property
    def allowed(self) -> bool:
        """Whether this side lets the connection pass."""
        return not self.policies or self.match is not None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, both sides even where the first one denies; exempt connections have sides all the same.

    `closed` is that the destination is nobody's, and such are not reached.
    """

    exemption: Exemption | None
    egress: Side
    ingress: Side
    closed: bool = False

    @property
    def allowed(self) -> bool:
        """Whether the connection is allowed."""
        return self.exemption is not None or (self.egress.allowed and self.ingress.allowed and not self.closed)


def judge(model: Model, connection: Connection, *, multicast: bool = True, closed: tuple[Network, ...] = ()) -> Verdict:
    """The verdict on a connection.

    `multicast` is whether it passes unasked; what goes to an address of the networks `closed` that is nobody's is
    denied (NPC spec §4.5), unless a node sends it: who is not known may well be on it.
    """
    source, destination = model.owner(connection.source), model.owner(connection.destination)
    return Verdict(
        _exemption(model, connection, source, destination, multicast),
        _side(model, Direction.EGRESS, connection, source, destination),
        _side(model, Direction.INGRESS, connection, destination, source),
        destination is None and _to_nobody(model, connection, closed),
    )


def _to_nobody(model: Model, connection: Connection, closed: tuple[Network, ...]) -> bool:
    ip = ip_address(connection.destination)
    if not any(ip in each for each in closed):
        return False
    return not model.node_of(connection.destination) and not model.node_of(connection.source)


def _exemption(
    model: Model, connection: Connection, source: Pod | None, destination: Pod | None, multicast: bool
) -> Exemption | None:
    if connection.protocol == ICMP6 and any(first <= connection.icmp_type <= last for first, last in ICMP6_EXEMPT):
        return Exemption.DISCOVERY
    if multicast and ip_address(connection.destination).is_multicast:
        return Exemption.MULTICAST
    if source is not None and connection.source == connection.destination:
        return Exemption.SELF
    for pod, other in ((source, connection.destination), (destination, connection.source)):
        if pod is not None and pod.node and model.node_of(other) == pod.node:
            return Exemption.OWN_NODE
    return None


def _side(model: Model, direction: Direction, connection: Connection, own: Pod | None, other: Pod | None) -> Side:
    selecting = () if own is None else model.selecting(own)
    policies = tuple(each for each in selecting if direction in each.rules)
    match = next(_matches(model, direction, policies, connection, other), None)
    return Side(direction, own, policies, match)


def _matches(
    model: Model, direction: Direction, policies: tuple[Policy, ...], connection: Connection, other: Pod | None
) -> Iterator[Match]:
    address = connection.source if direction is Direction.INGRESS else connection.destination
    destination = model.owner(connection.destination)
    for policy in policies:
        for number, rule in enumerate(policy.rules[direction]):
            peer = next((each for each in rule.peers if peer_matches(model, each, address, other)), None)
            port = next((each for each in _entries(rule) if port_matches(each, connection, destination)), None)
            if (peer is not None or not rule.peers) and (port is not None or rule.portless):
                yield Match(policy, number, peer, port)


def _entries(rule: PolicyRule) -> tuple[PortRange | NamedPort, ...]:
    return *rule.ports, *rule.named


def peer_matches(model: Model, peer: Peer, address: bytes, pod: Pod | None) -> bool:
    """Whether an address, and the pod that has it, is one of the peers."""
    if isinstance(peer, BlockPeer):
        ip = ip_address(address)
        return ip in peer.network and not any(ip in each for each in peer.exceptions)
    return pod is not None and model.is_peer(peer, pod)


def port_matches(entry: PortRange | NamedPort, connection: Connection, destination: Pod | None) -> bool:
    """Whether the destination port is the entry's; a name is the destination pod's."""
    if connection.protocol != entry.protocol:
        return False
    if isinstance(entry, PortRange):
        return entry.first <= connection.port <= entry.last
    return destination is not None and destination.port(entry) == connection.port
