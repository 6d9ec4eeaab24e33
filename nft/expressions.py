"""What a rule asks of a packet and does with it, as nf_tables expressions.

Each function gives the bytes of one or a few expressions; a rule is a row of them, and the first that does not match
ends it. Register 1 carries every loaded value; where several are looked up as one, they lie behind each other from
there on. Source: linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from ipaddress import IPv4Network, IPv6Network, ip_network

from nft.wire import attribute, nested, string, u32

Expression = bytes

_IFNAMSIZ = 16
_REGISTER = 1
_META_MARK, _META_IIFNAME, _META_OIFNAME = 3, 6, 7
_META_NFPROTO, _META_L4PROTO, _META_SECPATH = 15, 16, 25
_RT_XFRM = 4
_NFPROTO = {4: 2, 6: 10}
_ICMPV6 = 58
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE = {4: (12, 4), 6: (8, 16)}
_DESTINATION = {4: (16, 4), 6: (24, 16)}
_EQUAL, _NOT_EQUAL = 0, 1
_ESTABLISHED_OR_RELATED = 0x2 | 0x4
_FIB_ADDRESS_TYPE, _FIB_OF_SOURCE = 3, 1
_LOCAL_ADDRESS = 2
# struct xt_conntrack_mtinfo3: what to look at, whether inverted, the states; all else is "any".
_XT_CONNTRACK = struct.Struct("=146xHHH16x")
_XT_CONNTRACK_REVISION, _XT_CONNTRACK_STATE = 3, 1
_LOOKUP_INVERTED = 1
_VERDICT_REGISTER = 0
# A register is 16 bytes, and each quarter has a number of its own, too.
_REGISTER_SIZE, _FIRST_QUARTER = 16, 8
_COUNTER_OBJECT = 1
_CT_STATE = 0


class Protocol(IntEnum):
    """Transport protocols with ports."""

    TCP = 6
    UDP = 17


class State(IntFlag):
    """What connection tracking knows of a packet."""

    INVALID = 0x1
    ESTABLISHED = 0x2
    RELATED = 0x4
    NEW = 0x8


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a packet goes: nft's number, and the chain where there is one."""

    code: int
    chain: str = ""


ACCEPT, DROP, RETURN = Verdict(1), Verdict(0), Verdict(-5)


def to(chain: str) -> Verdict:
    """Go through a chain, and then on where the rule's own chain would end (`goto`)."""
    return Verdict(-4, chain)


@dataclass(frozen=True, slots=True)
class _Field:
    """Base and offset in the packet, or a key of meta data; bytes; the IP version that has it, 0 for both."""

    base: int
    offset: int
    size: int
    version: int = 0


class Field(Enum):
    """What can be looked up of a packet, alone or in a row."""

    SOURCE4 = _Field(_NETWORK_HEADER, 12, 4, 4)
    SOURCE6 = _Field(_NETWORK_HEADER, 8, 16, 6)
    DESTINATION4 = _Field(_NETWORK_HEADER, 16, 4, 4)
    DESTINATION6 = _Field(_NETWORK_HEADER, 24, 16, 6)
    PROTOCOL = _Field(0, _META_L4PROTO, 1)
    SOURCE_PORT = _Field(_TRANSPORT_HEADER, 0, 2)
    DESTINATION_PORT = _Field(_TRANSPORT_HEADER, 2, 2)
    ICMPV6_TYPE = _Field(_TRANSPORT_HEADER, 0, 1)


@dataclass(frozen=True, slots=True)
class Anonymous:
    """A set that belongs to one rule; its number is good within its transaction."""

    number: int


ANONYMOUS_NAME = "__set%d"


def interface_key(name: str) -> bytes:
    """An interface's name as the kernel compares it."""
    return name.encode().ljust(_IFNAMSIZ, b"\0")


# --- what a packet is ---


def in_interface(name: str, *, negate: bool = False) -> Expression:
    """Packets that came in through this interface."""
    return _load_meta(_META_IIFNAME) + _compare(interface_key(name), negate)


def out_interface(name: str, *, negate: bool = False) -> Expression:
    """Packets that leave through this interface."""
    return _load_meta(_META_OIFNAME) + _compare(interface_key(name), negate)


def mark(value: int, mask: int = 0xFFFFFFFF, *, negate: bool = False) -> Expression:
    """Packets whose mark, under the mask, is this."""
    masked = b"" if mask == 0xFFFFFFFF else _bitwise(_native(mask))
    return _load_meta(_META_MARK) + masked + _compare(_native(value), negate)


def ip_source(network: str, *, negate: bool = False) -> Expression:
    """Packets from an address or network, IPv4 or IPv6; negated: of that family, from elsewhere."""
    return _address(network, _SOURCE, negate)


def ip_destination(network: str, *, negate: bool = False, bare: bool = False) -> Expression:
    """Packets to an address or network; `bare` in a table of that family, which sees no other packets."""
    return _address(network, _DESTINATION, negate, bare)


def from_this_host(*, negate: bool = False) -> Expression:
    """Packets whose source is an address of this host."""
    looked_up = _expression("fib", u32(1, _REGISTER), u32(2, _FIB_ADDRESS_TYPE), u32(3, _FIB_OF_SOURCE))
    return looked_up + _compare(_native(_LOCAL_ADDRESS), negate)


def iptables_known_connection() -> Expression:
    """Packets of a connection that was seen both ways, or related to one, as iptables writes it.

    A native `ct` in a chain of iptables would make it refuse to show or change the whole table.
    """
    wanted = _XT_CONNTRACK.pack(_XT_CONNTRACK_STATE, 0, _ESTABLISHED_OR_RELATED)
    return _expression("match", string(1, "conntrack"), u32(2, _XT_CONNTRACK_REVISION), attribute(3, wanted))


def source_port(protocol: Protocol, port: int) -> Expression:
    """Packets of TCP or UDP from this port."""
    return _port(protocol, 0, port)


def destination_port(protocol: Protocol, port: int) -> Expression:
    """Packets of TCP or UDP to this port."""
    return _port(protocol, 2, port)


def destination_in(name: str, version: int, *, negate: bool = False) -> Expression:
    """Packets of IP `version` whose destination is in the table's set `name`."""
    return _family(version) + _payload(_NETWORK_HEADER, *_DESTINATION[version]) + _lookup(name, negate)


def state(wanted: State) -> Expression:
    """Packets in one of these states."""
    loaded = _expression("ct", u32(1, _REGISTER), u32(2, _CT_STATE))
    return loaded + _bitwise(_native(wanted)) + _compare(bytes(4), negate=True)


def protocol(number: int) -> Expression:
    """Packets of this IP protocol, behind extension headers."""
    return _load_meta(_META_L4PROTO) + _compare(bytes((number,)))


def port(number: int) -> Expression:
    """Packets to this port, of a protocol that has ports and was asked for before."""
    return _payload(_TRANSPORT_HEADER, 2, 2) + _compare(number.to_bytes(2, "big"))


def icmpv6(kind: int) -> Expression:
    """Messages of ICMPv6 of this type."""
    return protocol(_ICMPV6) + _payload(_TRANSPORT_HEADER, 0, 1) + _compare(bytes((kind,)))


def came_in_clear() -> Expression:
    """Packets that IPsec did not decrypt on their way in."""
    return _load_meta(_META_SECPATH) + _compare(bytes(1))


def goes_in_clear() -> Expression:
    """Packets that IPsec will not encrypt on their way out."""
    return _expression("rt", u32(1, _REGISTER), u32(2, _RT_XFRM)) + _compare(bytes(1))


def within(fields: Sequence[Field], members: str | Anonymous, *, negate: bool = False) -> Expression:
    """Packets whose fields, as one key, are in a set; all others of another IP version do not match."""
    return _row(fields) + _lookup(members, negate)


def verdict_by(fields: Sequence[Field], name: str) -> Expression:
    """What a verdict map says of these fields; packets that are not in it go on."""
    where = (string(1, name), u32(2, _REGISTER), u32(3, _VERDICT_REGISTER))
    return _row(fields) + _expression("lookup", *where)


# --- what happens to it ---


def accept() -> Expression:
    """Let the packet pass this base chain."""
    return _verdict(ACCEPT)


def drop() -> Expression:
    """Drop the packet."""
    return _verdict(DROP)


def jump(chain: str) -> Expression:
    """Go through another chain of the table, then on here."""
    return _verdict(Verdict(-3, chain))


def leave() -> Expression:
    """Back to the chain that jumped here, or to a base chain's policy (`return`)."""
    return _verdict(RETURN)


def counter() -> Expression:
    """Count packets and bytes that got this far in the rule."""
    return _expression("counter")


def count(name: str) -> Expression:
    """Count packets and bytes in a counter of the table."""
    return _expression("objref", u32(1, _COUNTER_OBJECT), string(2, name))


def limit(per_second: int, burst: int) -> Expression:
    """Packets up to this rate; others do not match."""
    rate = (attribute(1, per_second.to_bytes(8, "big")), attribute(2, (1).to_bytes(8, "big")))
    return _expression("limit", *rate, u32(3, burst))


def log(prefix: str, group: int, snaplen: int) -> Expression:
    """Give the packet's first bytes to whoever listens to this group of nfnetlink_log."""
    return _expression("log", attribute(1, group.to_bytes(2, "big")), string(2, prefix), u32(3, snaplen))


def masquerade() -> Expression:
    """Send under the address of the outgoing interface; in chains of type nat only."""
    return _expression("masq")


# --- pieces ---


def _expression(name: str, *attributes: bytes) -> Expression:
    return nested(1, string(1, name), nested(2, *attributes))


def _native(value: int) -> bytes:
    """Numbers of the kernel's own, such as marks and interfaces, are in host order."""
    return value.to_bytes(4, sys.byteorder)


def _load_meta(key: int, register: int = _REGISTER) -> Expression:
    return _expression("meta", u32(1, register), u32(2, key))


def _compare(value: bytes, negate: bool = False) -> Expression:
    operation = _NOT_EQUAL if negate else _EQUAL
    return _expression("cmp", u32(1, _REGISTER), u32(2, operation), nested(3, attribute(1, value)))


def _payload(base: int, offset: int, size: int, register: int = _REGISTER) -> Expression:
    return _expression("payload", u32(1, register), u32(2, base), u32(3, offset), u32(4, size))


def _row(fields: Sequence[Field]) -> Expression:
    """Fields behind each other; first of all the IP version that they belong to."""
    version = next((field.value.version for field in fields if field.value.version), 0)
    row, position = [_family(version)] if version else [], 0
    for field in fields:
        what = field.value
        register = _FIRST_QUARTER + position // 4 if position % _REGISTER_SIZE else 1 + position // _REGISTER_SIZE
        if what.base:
            row.append(_payload(what.base, what.offset, what.size, register))
        else:
            row.append(_load_meta(what.offset, register))
        position += what.size + -what.size % 4
    return b"".join(row)


def _bitwise(mask: bytes) -> Expression:
    zero = nested(5, attribute(1, bytes(len(mask))))
    masked = nested(4, attribute(1, mask))
    return _expression("bitwise", u32(1, _REGISTER), u32(2, _REGISTER), u32(3, len(mask)), masked, zero)


def _lookup(members: str | Anonymous, negate: bool) -> Expression:
    inverted = (u32(5, _LOOKUP_INVERTED),) if negate else ()
    if isinstance(members, Anonymous):
        return _expression("lookup", string(1, ANONYMOUS_NAME), u32(2, _REGISTER), u32(4, members.number), *inverted)
    return _expression("lookup", string(1, members), u32(2, _REGISTER), *inverted)


def _family(version: int) -> Expression:
    return _load_meta(_META_NFPROTO) + _compare(bytes((_NFPROTO[version],)))


def _address(network: str, field: dict[int, tuple[int, int]], negate: bool, bare: bool = False) -> Expression:
    net: IPv4Network | IPv6Network = ip_network(network, strict=False)
    offset, size = field[net.version]
    loaded = (b"" if bare else _family(net.version)) + _payload(_NETWORK_HEADER, offset, size)
    masked = b"" if net.prefixlen == net.max_prefixlen else _bitwise(net.netmask.packed)
    return loaded + masked + _compare(net.network_address.packed, negate)


def _port(protocol: Protocol, offset: int, number: int) -> Expression:
    transport = _load_meta(_META_L4PROTO) + _compare(bytes((protocol,)))
    return transport + _payload(_TRANSPORT_HEADER, offset, 2) + _compare(number.to_bytes(2, "big"))


def verdict_data(verdict: Verdict) -> bytes:
    """A verdict as data, of a rule or of an element."""
    chain = (string(2, verdict.chain),) if verdict.chain else ()
    return nested(2, u32(1, verdict.code), *chain)


def _verdict(verdict: Verdict) -> Expression:
    return _expression("immediate", u32(1, _VERDICT_REGISTER), nested(2, verdict_data(verdict)))
