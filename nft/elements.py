"""Keys of sets and maps: what they are made of, and their bytes in a transaction.

A key is one value or several in a row (a concatenation), each part padded to four bytes. Where a set holds intervals,
one value's interval is two elements, its start and what comes after its end; a concatenation's is one element with
two keys. Source: linux/netfilter/nf_tables.h, libnftnl (user data).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network

from nft.expressions import Verdict, interface_key, verdict_data
from nft.wire import attribute, nested, u32

INTERVAL_END = 1
# Netlink's lengths are 16 bits; this leaves room for what is around the list.
_LIST_MAX = 60_000
_TYPE_BITS = 6
_COMMENT = 0
_COMMENT_MAX = 127


@dataclass(frozen=True, slots=True)
class _Key:
    """nft's number for a set's key type, and its size in bytes."""

    number: int
    size: int


class Key(Enum):
    """What a part of a key is. Networks and ranges only in sets made with `interval`."""

    IPV4 = _Key(7, 4)
    IPV6 = _Key(8, 16)
    ICMPV6_TYPE = _Key(29, 1)
    PROTOCOL = _Key(12, 1)
    PORT = _Key(13, 2)
    INTERFACE = _Key(41, 16)


KeyType = Key | tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """An element: its key, the last key where it is an interval, where it leads in a verdict map."""

    key: bytes
    last: bytes = b""
    verdict: Verdict | None = None
    comment: str = ""


def parts(kind: KeyType) -> tuple[Key, ...]:
    """The parts of a key, one or many."""
    return kind if isinstance(kind, tuple) else (kind,)


def sizes(kind: KeyType) -> tuple[int, ...]:
    """Bytes that each part takes; a single value is not padded."""
    row = parts(kind)
    return (row[0].value.size,) if len(row) == 1 else tuple((key.value.size + 3) & ~3 for key in row)


def type_number(kind: KeyType) -> int:
    """nft's number of a key type; the first part of a concatenation is the highest."""
    number = 0
    for key in parts(kind):
        number = number << _TYPE_BITS | key.value.number
    return number


def key_bytes(kind: KeyType, *values: str) -> bytes:
    """A key as the kernel compares it. Raises ValueError on text that is none of the key's."""
    row = parts(kind)
    if len(row) == 1:
        return _part(row[0], values[0])
    return b"".join(_pad(_part(key, value)) for key, value in zip(row, values, strict=True))


def network(kind: Key, value: str) -> Member:
    """A network, or an address, as an interval. Raises ValueError."""
    net = ip_network(value)
    if len(net.network_address.packed) != kind.value.size:
        raise ValueError(f"{value} is not of the family of the set")
    return Member(net.network_address.packed, net.broadcast_address.packed)


def encoded(members: Iterable[Member], kind: KeyType, *, interval: bool) -> Iterator[bytes]:
    """The elements of members in a set of this kind."""
    several = len(parts(kind)) > 1
    for member in members:
        if not interval:
            yield item(member)
        elif several:
            yield item(member, end=member.last or member.key)
        else:
            yield item(member)
            behind = int.from_bytes(member.last or member.key, "big") + 1
            # Nothing lies behind the last value, so the interval stays open.
            if not behind >> 8 * len(member.key):
                yield nested(1, nested(1, attribute(1, behind.to_bytes(len(member.key), "big"))), u32(3, INTERVAL_END))


def item(member: Member, end: bytes = b"") -> bytes:
    """One element."""
    row = [nested(1, attribute(1, member.key))]
    if member.verdict is not None:
        row.append(nested(2, verdict_data(member.verdict)))
    if member.comment:
        row.append(userdata(6, member.comment))
    if end:
        row.append(nested(10, attribute(1, end)))
    return nested(1, *row)


def lists(items: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    """Elements in lists that fit a message."""
    row: list[bytes] = []
    size = 0
    for one in items:
        if size + len(one) > _LIST_MAX:
            yield row
            row, size = [], 0
        row.append(one)
        size += len(one)
    if row:
        yield row


def userdata(kind: int, comment: str, tag: int = _COMMENT) -> bytes:
    """A comment as nft prints it; longer than nft allows is cut."""
    if not comment:
        return b""
    encoded_text = comment.encode()[:_COMMENT_MAX].decode(errors="ignore").encode() + b"\0"
    return attribute(kind, bytes((tag, len(encoded_text))) + encoded_text)


def _part(key: Key, value: str) -> bytes:
    if key is Key.INTERFACE:
        return interface_key(value)
    if key in (Key.IPV4, Key.IPV6):
        return ip_address(value).packed
    return int(value).to_bytes(key.value.size, "big")


def _pad(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
