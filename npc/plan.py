"""What the kernel is to hold for network policy, as values: chains, sets, maps, counters; and a change of them.

A plan is the whole of table `inet weave_npc`. Sets and maps hold their keys as the kernel compares them: addresses in
network order, the parts of a concatenation one after the other, each padded to four bytes (`element`). So a plan can be
compared with what was read back, byte for byte. Names carry a hash of what the object stands for, comments carry it in
words. Nothing here knows Kubernetes or netlink.

Precedence, in the order in which a packet meets it: the base chain's exemptions, the verdict map of the direction, the
class chain: administrators' policies (reserved), each policy's chain, then the drop, or the defaults (reserved).
Source: NPC spec §4.3, §4.4, §6.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum

TABLE = "weave_npc"

# Chains that base chains lead to begin with these letters, followed by the letter of the direction and a dash.
CLASS, POLICY = "c", "p"
# For ClusterNetworkPolicy: ordered rules before the policies, and defaults in place of the drop. Not used yet.
RESERVED_ADMIN, RESERVED_BASELINE = "a", "b"


class Direction(Enum):
    """Which side of a connection a chain judges; the value is the letter in names of chains."""

    INGRESS = "i"
    EGRESS = "e"


class Protocol(IntEnum):
    """Transport protocols that policies name."""

    TCP = 6
    UDP = 17
    SCTP = 132


# --- what a rule looks at ---


class Field(Enum):
    """A part of a packet: a name and its size in bytes."""

    SOURCE4 = ("saddr", 4)
    DESTINATION4 = ("daddr", 4)
    SOURCE6 = ("saddr", 16)
    DESTINATION6 = ("daddr", 16)
    PROTOCOL = ("l4proto", 1)
    PORT = ("dport", 2)

    @property
    def size(self) -> int:
        """Bytes, without padding."""
        return self.value[1]


class Key(Enum):
    """What the elements of a set or map are: the types of the parts, leftmost first."""

    ADDRESS4 = ("ipv4_addr",)
    ADDRESS6 = ("ipv6_addr",)
    ADDRESS4_PROTOCOL_PORT = ("ipv4_addr", "inet_proto", "inet_service")
    ADDRESS6_PROTOCOL_PORT = ("ipv6_addr", "inet_proto", "inet_service")
    ADDRESS4_ADDRESS4 = ("ipv4_addr", "ipv4_addr")
    ADDRESS6_ADDRESS6 = ("ipv6_addr", "ipv6_addr")


def element(*parts: bytes) -> bytes:
    """The key of several parts, as a set holds it: each padded to four bytes. One part alone is not padded."""
    if len(parts) == 1:
        return parts[0]
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last` of a protocol, both included; 0 to 65535 is every port of it."""

    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Established:
    """`ct state established,related`."""


@dataclass(frozen=True, slots=True)
class FromOwnNode:
    """`fib saddr type local`: the source is an address of this node."""


@dataclass(frozen=True, slots=True)
class InInterface:
    """`iifname NAME`."""

    name: str


@dataclass(frozen=True, slots=True)
class Icmp6Types:
    """ICMPv6 of one of these ranges of types (first, last), each included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ToNetwork:
    """The destination is in a network, as text, of IPv4 or IPv6."""

    network: str


@dataclass(frozen=True, slots=True)
class InSet:
    """The fields, one after the other, are an element of a set or, with `negate`, are none.

    The fields name the family; a packet of the other one matches neither way.
    """

    fields: tuple[Field, ...]
    name: str
    negate: bool = False


@dataclass(frozen=True, slots=True)
class PortsIn:
    """Protocol and destination port are in one of these ranges, which are sorted and do not touch: an anonymous set."""

    ranges: tuple[PortRange, ...]


Match = Established | FromOwnNode | InInterface | Icmp6Types | ToNetwork | InSet | PortsIn


# --- what a rule does ---


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet passes this base chain."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet is dropped."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Through another chain, then on here."""

    chain: str


@dataclass(frozen=True, slots=True)
class Vmap:
    """What the map says of the field (`goto` a chain); on here where it has no such key."""

    field: Field
    name: str


@dataclass(frozen=True, slots=True)
class Count:
    """Count in a named counter."""

    counter: str


@dataclass(frozen=True, slots=True)
class Log:
    """At most `rate` packets a second, `burst` at once, go to an NFLOG group, cut to `snaplen` bytes.

    What is over the rate ends the rule, so a verdict stands in a rule of its own behind it.
    """

    prefix: str
    group: int = 86
    snaplen: int = 96
    rate: int = 50
    burst: int = 100


Action = Accept | Drop | Jump | Vmap | Count | Log


@dataclass(frozen=True, slots=True)
class Rule:
    """Actions, in order, on what matches everything."""

    matches: tuple[Match, ...]
    actions: tuple[Action, ...]
    comment: str = ""


# --- objects of the table ---


class Hook(Enum):
    """Where a base chain is: the names of nft."""

    PREROUTING = "prerouting"
    FORWARD = "forward"
    POSTROUTING = "postrouting"


@dataclass(frozen=True, slots=True)
class Base:
    """A place at a hook; what no rule decides is accepted."""

    hook: Hook
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with all its rules; without `base` it is only jumped to."""

    name: str
    rules: tuple[Rule, ...]
    base: Base | None = None


@dataclass(slots=True)
class ElementSet:
    """A hash set, edited in place."""

    name: str
    key: Key
    elements: set[bytes] = field(default_factory=set)
    comment: str = ""


@dataclass(frozen=True, slots=True)
class RangeSet:
    """An interval set of addresses: sorted, disjoint (first, last), each included.

    It is never edited: another content has another name.
    """

    name: str
    key: Key
    ranges: tuple[tuple[bytes, bytes], ...]
    comment: str = ""


Set = ElementSet | RangeSet


@dataclass(slots=True)
class VerdictMap:
    """Address to the chain where the packet goes."""

    name: str
    key: Key
    chains: dict[bytes, str] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """All of the table, each object by its name."""

    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Set] = field(default_factory=dict)
    maps: dict[str, VerdictMap] = field(default_factory=dict)
    counters: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Change:
    """The way from one plan to another, as one transaction in the order of the fields.

    What is new stands before what refers to it, what is gone behind what referred to it. `added` and `mapped` hold also
    the elements of new sets and maps, `rules` also the rules of new chains; a chain in `rules` that is not new loses
    those it had. A key of `mapped` that led elsewhere is in `unmapped` too, which comes before it.
    `review` does not concern the table: local isolated addresses that may have lost an allowance, whose established
    flows are to be judged again (NPC spec §4.6).
    """

    new_counters: set[str] = field(default_factory=set)
    new_sets: dict[str, Set] = field(default_factory=dict)
    new_maps: dict[str, VerdictMap] = field(default_factory=dict)
    new_chains: dict[str, Base | None] = field(default_factory=dict)
    added: dict[str, set[bytes]] = field(default_factory=dict)
    rules: dict[str, tuple[Rule, ...]] = field(default_factory=dict)
    unmapped: dict[str, set[bytes]] = field(default_factory=dict)
    mapped: dict[str, dict[bytes, str]] = field(default_factory=dict)
    removed: dict[str, set[bytes]] = field(default_factory=dict)
    gone_chains: set[str] = field(default_factory=set)
    gone_maps: set[str] = field(default_factory=set)
    gone_sets: set[str] = field(default_factory=set)
    gone_counters: set[str] = field(default_factory=set)
    review: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether the table changes."""
        return any(getattr(self, name) for name in self.__slots__ if name != "review")

    def size(self) -> int:
        """How many elements and rules change: what a transaction's cost goes with."""
        lists: Iterable[dict[str, set[bytes]] | dict[str, dict[bytes, str]] | dict[str, tuple[Rule, ...]]]
        lists = (self.added, self.removed, self.unmapped, self.mapped, self.rules)
        return sum(len(entry) for each in lists for entry in each.values())
