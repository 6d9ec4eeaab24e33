"""The rules of one policy in one direction, for its chain: one for each way in which a connection can match.

Ingress compares the source with peers, egress the destination; ports are the destination's either way. A rule without
peers and ports accepts both families and all protocols.
Source: NPC spec §2, §4.3.
"""

from collections.abc import Callable, Iterator

from npc.plan import Accept, Direction, Field, InSet, Match, PortsIn, Rule
from npc.podsets import Blocks, Identity, PortNames
from npc.policy import BlockPeer, PodPeer, Policy, PolicyRule
from npc.ranges import spans

_PEER = {
    Direction.INGRESS: {4: Field.SOURCE4, 16: Field.SOURCE6},
    Direction.EGRESS: {4: Field.DESTINATION4, 16: Field.DESTINATION6},
}
_DESTINATION = {4: Field.DESTINATION4, 16: Field.DESTINATION6}
_VERSIONS = {4: 4, 16: 6}

# The name of a set for addresses of a length.
SetName = Callable[[Identity, int], str]
# What to compare, and the length of addresses for which it can match; None for any.
_Condition = tuple[tuple[Match, ...], int | None]


def compile_rules(policy: Policy, direction: Direction, name: SetName) -> tuple[Rule, ...]:
    """What the policy's chain accepts; whatever sets it wants are asked for by `name`."""
    return tuple(
        Rule(matches, (Accept(),), f"{policy}#{number}")
        for number, rule in enumerate(policy.rules.get(direction, ()))
        for matches in _ways(rule, direction, name)
    )


def _ways(rule: PolicyRule, direction: Direction, name: SetName) -> Iterator[tuple[Match, ...]]:
    ports = list(_ports(rule, direction, name))
    for peer, peer_size in _peers(rule, direction, name):
        for port, port_size in ports:
            if peer_size is None or port_size is None or peer_size == port_size:
                yield (*peer, *port)


def _peers(rule: PolicyRule, direction: Direction, name: SetName) -> Iterator[_Condition]:
    if not rule.peers:
        yield (), None
        return
    pods = dict.fromkeys(each for each in rule.peers if isinstance(each, PodPeer))
    for size, peer_field in _PEER[direction].items():
        identities: list[Identity] = [*pods, *_blocks(rule, size)]
        for identity in identities:
            yield (InSet((peer_field,), name(identity, size)),), size


def _blocks(rule: PolicyRule, size: int) -> Iterator[Blocks]:
    """All address blocks of a family as one."""
    listed = [each for each in rule.peers if isinstance(each, BlockPeer) and each.network.version == _VERSIONS[size]]
    if ranges := spans((each.network, each.exceptions) for each in listed):
        yield Blocks(size, ranges)


def _ports(rule: PolicyRule, direction: Direction, name: SetName) -> Iterator[_Condition]:
    if rule.portless:
        yield (), None
    if rule.ports:
        yield (PortsIn(rule.ports),), None
    if rule.named:
        identity = PortNames(direction is Direction.INGRESS, rule.named)
        for size, address in _DESTINATION.items():
            yield (InSet((address, Field.PROTOCOL, Field.PORT), name(identity, size)),), size
