"""Names on the gossip channels: one gob struct a message.

IPv4 names travel as Weave Net's do (`nameserver`). IPv6 names have a channel of their own, of the same form but for
the address, which Weave Net relays without reading; in its own channel they would become names of 0.0.0.0.
Source: DNS spec §3; §14 (F5, F8).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from dns.entries import Entry
from mesh import gob
from mesh.names import PeerName

CHANNEL_V4, CHANNEL_V6 = "nameserver", "nameserver6"


class Family(Enum):
    """An address family, and its channel."""

    V4 = CHANNEL_V4
    V6 = CHANNEL_V6


class Message(NamedTuple):
    """Entries, and the Unix second at which they were first said."""

    timestamp: int
    entries: list[Entry]


@dataclass(slots=True)
class _Entry:
    container: str = gob.of("ContainerID", gob.STRING)
    origin: int = gob.of("Origin", gob.UINT)
    address: int = gob.of("Addr", gob.UINT32)
    hostname: str = gob.of("Hostname", gob.STRING)
    version: int = gob.of("Version", gob.INT)
    tombstone: int = gob.of("Tombstone", gob.INT)


@dataclass(slots=True)
class _Entry6(_Entry):
    address: bytes = gob.of("Addr6", gob.BYTES)  # type: ignore[assignment]


_ENTRIES, _ENTRIES6 = gob.ListOf(gob.struct_of("Entry", _Entry)), gob.ListOf(gob.struct_of("Entry6", _Entry6))


@dataclass(slots=True)
class _Message:
    timestamp: int = gob.of("Timestamp", gob.INT)
    entries: Sequence[Any] = gob.of("Entries", _ENTRIES)


@dataclass(slots=True)
class _Message6(_Message):
    entries: Sequence[Any] = gob.of("Entries", _ENTRIES6)


_V4 = gob.struct_of("GossipData", _Message)
_V6 = gob.struct_of("GossipData6", _Message6)

# The descriptors of `_V4` with the ids and in the order in which Weave Net writes them: it reads any order, but what
# is the same bytes everywhere is merged by those who relay it.
_DESCRIPTORS = bytes.fromhex(
    "33ff810301010a476f737369704461746101ff82000102010954696d657374616d700104000107456e747269657301ff86000000"
    "16ff8502010107456e747269657301ff860001ff840000"
    "5eff8303010105456e74727901ff84000106010b436f6e7461696e65724944010c0001064f726967696e0106000104416464720106000108"
    "486f73746e616d65010c00010756657273696f6e0104000109546f6d6273746f6e650104000000"
)
# The message's type, and the distance to its first field.
_MESSAGE_ID = b"\xff\x82\1"


def encode(family: Family, message: Message) -> bytes:
    """The message's bytes. Its entries must differ in identity (`dns.entries.merged`)."""
    if family is Family.V4:
        return seal(message.timestamp, encode_entries(message.entries))
    entries = [
        _Entry6(e.container, e.origin, e.address.to_bytes(16, "big"), e.hostname, e.version, e.tombstone)
        for e in message.entries
    ]
    return gob.encode(_V6, _Message6(message.timestamp, entries))


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """What entries of `nameserver` add to a message, for `seal`."""
    if not entries:
        return b"\0"
    return b"\1" + gob.encode_uint(len(entries)) + b"".join(map(_fields, entries)) + b"\0"


def seal(timestamp: int, entries: bytes) -> bytes:
    """A message of `nameserver`, of encoded entries; no message is of 1970."""
    return _DESCRIPTORS + gob.encode_bytes(_MESSAGE_ID + gob.encode_int(timestamp) + entries)


def unseal(data: bytes) -> tuple[int, bytes] | None:
    """A message's time and its encoded entries, uninterpreted; None where it is not of the usual form."""
    if not data.startswith(_DESCRIPTORS):
        return None
    cursor = gob.Cursor(data)
    cursor.position = len(_DESCRIPTORS)
    try:
        if cursor.uint() != cursor.end - cursor.position or not data.startswith(_MESSAGE_ID, cursor.position):
            return None
        cursor.position += len(_MESSAGE_ID)
        return cursor.signed(), data[cursor.position :]
    except gob.GobError:
        return None


def _fields(entry: Entry) -> bytes:
    """A struct's fields: each the distance from the last one that was not zero, and its value."""
    values = (
        gob.encode_string(entry.container) if entry.container else b"",
        gob.encode_uint(entry.origin) if entry.origin else b"",
        gob.encode_uint(entry.address) if entry.address else b"",
        gob.encode_string(entry.hostname) if entry.hostname else b"",
        gob.encode_int(entry.version) if entry.version else b"",
        gob.encode_int(entry.tombstone) if entry.tombstone else b"",
    )
    parts: list[bytes] = []
    distance = 1
    for value in values:
        if value:
            parts += (_DISTANCE[distance], value)
            distance = 1
        else:
            distance += 1
    parts.append(b"\0")
    return b"".join(parts)


_DISTANCE = [bytes((number,)) for number in range(8)]


def decode(family: Family, data: bytes) -> Message:
    """A message, entries as they came. Raises GobError."""
    raw = gob.decode(data, _V4 if family is Family.V4 else _V6)
    entries = []
    for e in raw.entries:
        address = e.address
        if family is Family.V6:
            if len(address) != 16:
                raise gob.GobError(f"IPv6 address of {len(address)} bytes")
            address = int.from_bytes(address, "big")
        entries.append(Entry(e.hostname, PeerName(e.origin), e.container, address, e.version, e.tombstone))
    return Message(raw.timestamp, entries)
