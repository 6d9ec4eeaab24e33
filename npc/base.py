"""The part of the table that no policy changes: base chains, their exemptions, the maps of isolated addresses.

Source: NPC spec §3, §4.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from npc.plan import (
    Accept,
    Base,
    Chain,
    Count,
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
    Log,
    Rule,
    ToNetwork,
    VerdictMap,
    Vmap,
)
from npc.ranges import Network
from npc.verdict import ICMP6_EXEMPT, MULTICAST

# Map of a direction's isolated addresses, by the length of an address.
ISOLATED = {
    Direction.INGRESS: {4: "in4", 16: "in6"},
    Direction.EGRESS: {4: "eg4", 16: "eg6"},
}
SELF = {4: "self4", 16: "self6"}
# Addresses that are somebody's, and the counter of drops of what goes to others.
KNOWN = {4: "known4", 16: "known6"}
UNKNOWN = "unknown"
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
    """How a node attaches its table. `hook` is FORWARD, or POSTROUTING where kube-proxy runs in IPVS mode.

    What goes to an address of the networks `closed` that is no pod's and no node's is dropped.
    """

    hook: Hook = Hook.FORWARD
    bridge: str = "weave"
    multicast: bool = True
    closed: tuple[Network, ...] = ()


def maps() -> Iterator[VerdictMap]:
    """The maps of isolated addresses, empty."""
    for names in ISOLATED.values():
        yield VerdictMap(names[4], Key.ADDRESS4)
        yield VerdictMap(names[16], Key.ADDRESS6)


def sets(options: Options) -> Iterator[ElementSet]:
    """The sets of pods that reach themselves, and of known addresses where they matter; empty."""
    yield ElementSet(SELF[4], Key.ADDRESS4_ADDRESS4)
    yield ElementSet(SELF[16], Key.ADDRESS6_ADDRESS6)
    if options.closed:
        yield ElementSet(KNOWN[4], Key.ADDRESS4)
        yield ElementSet(KNOWN[16], Key.ADDRESS6)


def counters(options: Options) -> Iterator[str]:
    """The counters that belong to no class."""
    if options.closed:
        yield UNKNOWN


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
        for group in MULTICAST:
            yield Rule((ToNetwork(group),), accept, "multicast")
    for size, name in SELF.items():
        yield Rule((InSet(_BOTH_ADDRESSES[size], name),), accept, "pods reach themselves")
    for size, name in ISOLATED[direction].items():
        yield Rule((), (Vmap(_OWN_ADDRESS[direction][size], name),))
    if direction is Direction.INGRESS:
        for network in options.closed:
            yield from _closed(network)


def _closed(network: Network) -> Iterator[Rule]:
    size = network.max_prefixlen // 8
    nobody = InSet((_OWN_ADDRESS[Direction.INGRESS][size],), KNOWN[size], negate=True)
    matches = (ToNetwork(str(network)), nobody)
    noted = (Count(UNKNOWN), Log(f"wnpc:{Direction.INGRESS.value}:{UNKNOWN}"))
    yield Rule(matches, noted, "nobody's address")
    yield Rule(matches, (Drop(),))
