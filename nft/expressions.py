"""What a rule asks of a packet and does with it, as nf_tables expressions.

Each function gives the bytes of one or a few expressions; a rule is a row of them, and the first that does not match
ends it. Register 1 carries every loaded value. Source: linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Sequence
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_network

from nft.wire import attribute, nested, string, u32

Expression = bytes

_IFNAMSIZ = 16
_REGISTER = 1
_META_MARK, _META_IIF, _META_OIF, _META_IIFNAME, _META_OIFNAME = 3, 4, 5, 6, 7
_META_NFPROTO, _META_L4PROTO = 15, 16
_NFPROTO = {4: 2, 6: 10}
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


class Protocol(IntEnum):
    """Transport protocols with ports."""

    TCP = 6
    UDP = 17


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


def in_index(index: int, *, negate: bool = False) -> Expression:
    """Packets that came in through the interface of this number: cheaper than its name, gone with it."""
    return _load_meta(_META_IIF) + _compare(_native(index), negate)


def out_index(index: int, *, negate: bool = False) -> Expression:
    """Packets that leave through the interface of this number."""
    return _load_meta(_META_OIF) + _compare(_native(index), negate)


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


def source_in(name: str, version: int, *, negate: bool = False) -> Expression:
    """Packets of IP `version` whose source is in the table's set `name`."""
    return _family(version) + _payload(_NETWORK_HEADER, *_SOURCE[version]) + _lookup(name, negate)


def destination_in(name: str, version: int, *, negate: bool = False) -> Expression:
    """Packets of IP `version` whose destination is in the table's set `name`."""
    return _family(version) + _payload(_NETWORK_HEADER, *_DESTINATION[version]) + _lookup(name, negate)


def in_interface_of(name: str, *, negate: bool = False) -> Expression:
    """Packets that came in through an interface whose name is in the table's set `name`."""
    return _load_meta(_META_IIFNAME) + _lookup(name, negate)


# --- what happens to it ---


def accept() -> Expression:
    """Let the packet pass this base chain."""
    return _verdict(1)


def drop() -> Expression:
    """Drop the packet."""
    return _verdict(0)


def jump(chain: str) -> Expression:
    """Go through another chain of the table, then on here."""
    return _verdict(-3, chain)


def leave() -> Expression:
    """Back to the chain that jumped here, or to a base chain's policy (`return`)."""
    return _verdict(-5)


def counter() -> Expression:
    """Count packets and bytes that got this far in the rule."""
    return _expression("counter")


def masquerade() -> Expression:
    """Send under the address of the outgoing interface; in chains of type nat only."""
    return _expression("masq")


# --- pieces ---


def _expression(name: str, *attributes: bytes) -> Expression:
    return nested(1, string(1, name), nested(2, *attributes))


def _native(value: int) -> bytes:
    """Numbers of the kernel's own, such as marks and interfaces, are in host order."""
    return value.to_bytes(4, sys.byteorder)


def _load_meta(key: int) -> Expression:
    return _expression("meta", u32(1, _REGISTER), u32(2, key))


def _compare(value: bytes, negate: bool = False) -> Expression:
    operation = _NOT_EQUAL if negate else _EQUAL
    return _expression("cmp", u32(1, _REGISTER), u32(2, operation), nested(3, attribute(1, value)))


def _payload(base: int, offset: int, size: int) -> Expression:
    return _expression("payload", u32(1, _REGISTER), u32(2, base), u32(3, offset), u32(4, size))


def _bitwise(mask: bytes) -> Expression:
    zero = nested(5, attribute(1, bytes(len(mask))))
    masked = nested(4, attribute(1, mask))
    return _expression("bitwise", u32(1, _REGISTER), u32(2, _REGISTER), u32(3, len(mask)), masked, zero)


def _lookup(name: str, negate: bool) -> Expression:
    inverted = (u32(5, _LOOKUP_INVERTED),) if negate else ()
    return _expression("lookup", string(1, name), u32(2, _REGISTER), *inverted)


def _family(version: int) -> Expression:
    return _load_meta(_META_NFPROTO) + _compare(bytes((_NFPROTO[version],)))


def _address(network: str, field: dict[int, tuple[int, int]], negate: bool, bare: bool = False) -> Expression:
    net: IPv4Network | IPv6Network = ip_network(network, strict=False)
    offset, size = field[net.version]
    loaded = (b"" if bare else _family(net.version)) + _payload(_NETWORK_HEADER, offset, size)
    masked = b"" if net.prefixlen == net.max_prefixlen else _bitwise(net.netmask.packed)
    return loaded + masked + _compare(net.network_address.packed, negate)


def _port(protocol: Protocol, offset: int, port: int) -> Expression:
    transport = _load_meta(_META_L4PROTO) + _compare(bytes((protocol,)))
    return transport + _payload(_TRANSPORT_HEADER, offset, 2) + _compare(port.to_bytes(2, "big"))


def _verdict(code: int, chain: str | None = None) -> Expression:
    to: Sequence[bytes] = () if chain is None else (string(2, chain),)
    return _expression("immediate", u32(1, _VERDICT_REGISTER), nested(2, nested(2, u32(1, code), *to)))
