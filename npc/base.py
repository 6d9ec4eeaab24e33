"""The part of the table that no policy changes: base chains, their exemptions, the maps of isolated addresses.

Source: NPC spec §3, §4.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from npc.plan import (
    Accept,
    Base,
    Chain,
    Direction,
    Drop,
    ElementSet,
    Established,
    Field,
    FromOwnNode,
    Hook,
    Icmp6Types,
    InInterface,
    InSet,
    Key,
    Rule,
    ToNetwork,
    VerdictMap,
    Vmap,
)
from npc.verdict import ICMP6_EXEMPT, MULTICAST

# Map of a direction's isolated addresses, by the length of an address.
ISOLATED = {
    Direction.INGRESS: {4: "in4", 16: "in6"},
    Direction.EGRESS: {4: "eg4", 16: "eg6"},
}
SELF = {4: "self4", 16: "self6"}
_OWN_ADDRESS = {
    Direction.INGRESS: {4: Field.DESTINATION4, 16: Field.DESTINATION6},
    Direction.EGRESS: {4: Field.SOURCE4, 16: Field.SOURCE6},
}
_BOTH_ADDRESSES = {4: (Field.SOURCE4, Field.DESTINATION4), 16: (Field.SOURCE6, Field.DESTINATION6)}
_PRIORITIES = {
    Hook.FORWARD: {Direction.EGRESS: -5, Direction.INGRESS: -4},
    Hook.POSTROUTING: {Direction.EGRESS: 94, Direction.INGRESS: 95},
}
_CHAINS = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}
# Before connection tracking: a forged packet should not even be a connection.
_BEFORE_TRACKING = -300


@dataclass(frozen=True, slots=True)
class Options:
    """How a node attaches its table. `hook` is FORWARD, or POSTROUTING where kube-proxy runs in IPVS mode."""

    hook: Hook = Hook.FORWARD
    bridge: str = "weave"
    multicast: bool = True


def maps() -> Iterator[VerdictMap]:
    """The maps of isolated addresses, empty."""
    for names in ISOLATED.values():
        yield VerdictMap(names[4], Key.ADDRESS4)
        yield VerdictMap(names[16], Key.ADDRESS6)


def sets() -> Iterator[ElementSet]:
    """The sets of pods that reach themselves, empty."""
    yield ElementSet(SELF[4], Key.ADDRESS4_ADDRESS4)
    yield ElementSet(SELF[16], Key.ADDRESS6_ADDRESS6)


def chains(options: Options) -> Iterator[Chain]:
    """The base chains. Egress comes first; what it accepts, ingress judges all the same."""
    for direction, name in _CHAINS.items():
        base = Base(options.hook, _PRIORITIES[options.hook][direction])
        yield Chain(name, tuple(_rules(direction, options)), base)
    if options.hook is Hook.POSTROUTING:
        # There our own node's packets pass too, known by their source, which a pod could forge.
        forged = Rule((InInterface(options.bridge), FromOwnNode()), (Drop(),), "forged source")
        yield Chain("forged", (forged,), Base(Hook.PREROUTING, _BEFORE_TRACKING))


def _rules(direction: Direction, options: Options) -> Iterator[Rule]:
    accept = (Accept(),)
    yield Rule((Established(),), accept)
    if options.hook is Hook.POSTROUTING:
        yield Rule((FromOwnNode(),), accept, "own node")
    yield Rule((Icmp6Types(ICMP6_EXEMPT),), accept, "neighbour discovery")
    if options.multicast:
        for network in MULTICAST:
            yield Rule((ToNetwork(network),), accept, "multicast")
    for size, name in SELF.items():
        yield Rule((InSet(_BOTH_ADDRESSES[size], name),), accept, "pods reach themselves")
    for size, name in ISOLATED[direction].items():
        yield Rule((), (Vmap(_OWN_ADDRESS[direction][size], name),))
