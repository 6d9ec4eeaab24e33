"""What a table does with a packet, read from the plan: the kernel's evaluation in plain Python.

It judges established flows after a change (NPC spec §4.6) and answers for what is loaded, if it is given a plan that
was read back. What it says of a plan must be what `npc.verdict` says of the model.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from npc.plan import (
    Accept,
    Chain,
    Drop,
    Established,
    Field,
    FromOwnNode,
    Hook,
    Icmp6Types,
    InInterface,
    InSet,
    Jump,
    Match,
    Plan,
    PortsIn,
    RangeSet,
    Rule,
    Vmap,
    element,
)
from npc.verdict import ICMP6, Connection

_ORDER = {Hook.PREROUTING: 0, Hook.FORWARD: 1, Hook.POSTROUTING: 2}
_SOURCES = {Field.SOURCE4: 4, Field.SOURCE6: 16}
_DESTINATIONS = {Field.DESTINATION4: 4, Field.DESTINATION6: 16}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that passes the hooks of a node."""

    connection: Connection
    established: bool = False
    from_own_node: bool = False
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matched: the chain and the rule's number in it."""

    chain: str
    rule: int


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of a packet, and every rule that matched, in order."""

    accepted: bool
    steps: tuple[Step, ...]


def run(plan: Plan, packet: Packet) -> Passage:
    """Send a packet through all base chains, in the order in which it meets them."""
    bases = sorted(
        (_ORDER[chain.base.hook], chain.base.priority, chain.name) for chain in plan.chains.values() if chain.base
    )
    steps: list[Step] = []
    for _, _, name in bases:
        if _walk(plan, plan.chains[name], packet, steps) is False:
            return Passage(False, tuple(steps))
    return Passage(True, tuple(steps))


def _walk(plan: Plan, chain: Chain, packet: Packet, steps: list[Step]) -> bool | None:
    """Whether a chain accepts; None if the packet comes out at its end."""
    for number, rule in enumerate(chain.rules):
        if not all(_matches(plan, each, packet) for each in rule.matches):
            continue
        steps.append(Step(chain.name, number))
        for decided, goes_on in _act(plan, rule, packet, steps):
            if decided is not None or not goes_on:
                return decided
    return None


def _act(plan: Plan, rule: Rule, packet: Packet, steps: list[Step]) -> Iterator[tuple[bool | None, bool]]:
    """Each action's decision, and whether the chain goes on behind it."""
    for action in rule.actions:
        if isinstance(action, Accept | Drop):
            yield isinstance(action, Accept), False
        elif isinstance(action, Jump):
            yield _walk(plan, plan.chains[action.chain], packet, steps), True
        elif isinstance(action, Vmap):
            chain = plan.maps[action.name].chains.get(_part(action.field, packet.connection) or b"")
            if chain is not None:
                yield _walk(plan, plan.chains[chain], packet, steps), False


def _part(field: Field, connection: Connection) -> bytes | None:
    """A field's bytes; None where the packet has no such field."""
    if field in _SOURCES:
        return connection.source if len(connection.source) == _SOURCES[field] else None
    if field in _DESTINATIONS:
        return connection.destination if len(connection.destination) == _DESTINATIONS[field] else None
    if field is Field.PROTOCOL:
        return bytes((connection.protocol,))
    return connection.port.to_bytes(2, "big")


def _matches(plan: Plan, match: Match, packet: Packet) -> bool:
    connection = packet.connection
    if isinstance(match, InSet):
        parts = [_part(each, connection) for each in match.fields]
        known = [each for each in parts if each is not None]
        return len(known) == len(parts) and _in_set(plan, match.name, element(*known)) != match.negate
    if isinstance(match, PortsIn):
        return any(
            each.protocol == connection.protocol and each.first <= connection.port <= each.last for each in match.ranges
        )
    if isinstance(match, Icmp6Types):
        kind = connection.icmp_type
        return connection.protocol == ICMP6 and any(first <= kind <= last for first, last in match.ranges)
    if isinstance(match, InInterface):
        return packet.interface == match.name
    if isinstance(match, Established):
        return packet.established
    if isinstance(match, FromOwnNode):
        return packet.from_own_node
    return ip_address(connection.destination) in ip_network(match.network)


def _in_set(plan: Plan, name: str, key: bytes) -> bool:
    found = plan.sets[name]
    if isinstance(found, RangeSet):
        position = bisect_right(found.ranges, key, key=lambda span: span[0]) - 1
        return position >= 0 and key <= found.ranges[position][1]
    return key in found.elements
