"""Topology gossip on the wire: one gob stream of (peer summary, connection list) pairs.

Merging a large topology is mostly finding out that nothing changed, so the bytes of a pair are cut out of the
stream without decoding them; the bytes of a summary identify an entry, and only unknown ones are read. A stream
whose type descriptors are not exactly the usual ones takes the general decoder. Ours always are, and are cached.
Source: mesh spec §8.1, §19.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh import gob
from mesh.gob import GobError
from mesh.names import NAME_SIZE, PeerName, peer_name_from_bytes, peer_name_to_bytes


class Link(NamedTuple):
    """One connection, as a peer lists it. `address` is `ip:port` of the remote end."""

    remote: PeerName
    address: str
    outbound: bool
    established: bool


@dataclass(frozen=True, slots=True)
class _Summary:
    name: bytes = gob.of("NameByte", gob.BYTES)
    nickname: str = gob.of("NickName", gob.STRING)
    uid: int = gob.of("UID", gob.UINT)
    version: int = gob.of("Version", gob.UINT)
    short_id: int = gob.of("ShortID", gob.UINT16)
    has_short_id: bool = gob.of("HasShortID", gob.BOOL)


@dataclass(frozen=True, slots=True)
class _LinkSummary:
    name: bytes = gob.of("NameByte", gob.BYTES)
    address: str = gob.of("RemoteTCPAddr", gob.STRING)
    outbound: bool = gob.of("Outbound", gob.BOOL)
    established: bool = gob.of("Established", gob.BOOL)


_SUMMARY = gob.struct_of("peerSummary", _Summary)
_LINKS = gob.ListOf(gob.struct_of("connectionSummary", _LinkSummary))


class Pair(NamedTuple):
    """The bytes of one described peer: summary struct, and list of links (count first)."""

    summary: bytes
    links: bytes


@dataclass(slots=True)
class Described:
    """A peer as gossip describes it. `pair`: the bytes it was read from, where we would write the same."""

    name: PeerName
    nickname: str
    uid: int
    version: int
    short_id: int
    has_short_id: bool
    links: dict[PeerName, Link] = field(default_factory=dict)
    pair: Pair | None = field(default=None, compare=False, repr=False)


class _Stream(NamedTuple):
    """A stream cut into messages. `first` is how many bytes of the definitions precede the first value."""

    definitions: bytes
    first: int
    values: list[tuple[int, int]]
    in_order: bool


def _prefixes() -> tuple[bytes, bytes, bytes]:
    """Our own descriptors, and what precedes a summary and a list of ours."""
    stream = gob.Encoder().add(_SUMMARY, _Summary(b"\0" * NAME_SIZE)).add(_LINKS, []).done()
    cut = _cut(stream)
    summary_id, links_id = (_id(stream, span) for span in cut.values)
    return cut.definitions, gob.encode_int(summary_id), gob.encode_int(links_id) + b"\0"


def _id(stream: bytes, span: tuple[int, int]) -> int:
    return gob.Cursor(stream[span[0] : span[1]]).signed()


def _cut(stream: bytes) -> _Stream:
    """Walk the messages by their lengths; values as positions in the stream. Raises GobError."""
    definitions: list[bytes] = []
    values: list[tuple[int, int]] = []
    first, in_order = 0, True
    position, end = 0, len(stream)
    while position < end:
        start = position
        size = stream[position]
        position += 1
        if size >= 128:
            width = 256 - size
            size = int.from_bytes(stream[position : position + width], "big")
            position += width
            if width > 8 or position > end:
                raise GobError("gob: invalid message length")
        if not size:
            break
        stop = position + size
        if stop > end:
            raise GobError("gob: length exceeds the data")
        # The type id is a signed integer: its last bit tells a definition from a value.
        lead = stream[position]
        last = lead if lead < 128 else stream[min(position + 256 - lead, stop - 1)]
        if last & 1:
            definitions.append(stream[start:stop])
            first += 0 if values else stop - start
            in_order = in_order and len(values) < 2
        else:
            values.append((position, stop))
        position = stop
    return _Stream(b"".join(definitions), first, values, in_order)


# What is remembered of the descriptors of others: so many, of so many bytes at most (the usual ones have 220).
_MAX_SHAPES = 256
_MAX_DEFINITIONS = 2048
_shapes: dict[tuple[bytes, int, int, int], tuple[bytes, bytes] | None] = {}


def _shape(stream: bytes, cut: _Stream) -> tuple[bytes, bytes] | None:
    """What precedes summaries and lists under these descriptors; None unless they are exactly the usual ones."""
    if len(cut.values) < 2 or not cut.in_order or len(cut.definitions) > _MAX_DEFINITIONS:
        return None
    summary_id, links_id = _id(stream, cut.values[0]), _id(stream, cut.values[1])
    key = cut.definitions, cut.first, summary_id, links_id
    if key not in _shapes:
        shape = (gob.encode_int(summary_id), gob.encode_int(links_id) + b"\0") if _usual(*key) else None
        if len(_shapes) >= _MAX_SHAPES:
            del _shapes[next(iter(_shapes))]
        _shapes[key] = shape
    return _shapes[key]


def _usual(definitions: bytes, first: int, summary_id: int, links_id: int) -> bool:
    """Whether the two ids stand for the two types, with their fields in the order that we write."""
    summary_probe = gob.encode_bytes(gob.encode_int(summary_id) + b"\0")
    links_probe = gob.encode_bytes(gob.encode_int(links_id) + b"\0\0")
    decoder = gob.Decoder(definitions[:first] + summary_probe + definitions[first:] + links_probe)
    summary, _ = decoder.next_any()
    links, _ = decoder.next_any()
    if not isinstance(links, gob.ListOf) or links.length is not None:
        return False
    return _fields(summary) == _fields(_SUMMARY) and _fields(links.element) == _fields(_LINKS.element)


def _fields(kind: gob.Kind) -> list[tuple[str, int]] | None:
    if not isinstance(kind, gob.Struct) or not all(isinstance(declared.kind, gob.Basic) for declared in kind.fields):
        return None
    return [(declared.name, declared.kind.wire) for declared in kind.fields if isinstance(declared.kind, gob.Basic)]


class Cut(NamedTuple):
    """An undecoded update: pairs to be read, and the names of those whose summaries were known."""

    unknown: list[Pair]
    known: list[PeerName]


_NOBODY: Mapping[bytes, PeerName] = {}


def split_pairs(stream: bytes, known: Mapping[bytes, PeerName] = _NOBODY) -> Cut | None:
    """Cut a usual stream into pairs; None where the general decoder is needed. Raises GobError.

    `known` holds the canonical summaries that need not be read again: the links that follow them are not looked at.
    """
    cut = _cut(stream)
    shape = _shape(stream, cut)
    if shape is None:
        return None
    summary_prefix, links_prefix = shape
    summary_size, links_size = len(summary_prefix), len(links_prefix)
    found = Cut([], [])
    spans = iter(cut.values)
    for start, stop in spans:
        if not stream.startswith(summary_prefix, start, stop):
            return None
        summary = stream[start + summary_size : stop]
        start, stop = next(spans, (-1, -1))
        if start < 0:
            # A summary without links says nothing, but it has to be one.
            decode_pair(Pair(summary, b"\0"))
        elif not stream.startswith(links_prefix, start, stop):
            return None
        elif summary in known:
            found.known.append(known[summary])
        else:
            found.unknown.append(Pair(summary, stream[start + links_size : stop]))
    return found


def _name(raw: bytes) -> PeerName:
    """Names are six bytes; of more, the low 48 bits are the name that people see."""
    return peer_name_from_bytes(raw[-NAME_SIZE:])


def decode_stream(stream: bytes) -> list[Described]:
    """Any acceptable stream, by the general decoder. Raises GobError."""
    decoder = gob.Decoder(stream)
    peers = []
    while not decoder.at_end():
        summary: _Summary = decoder.next(_SUMMARY)
        if decoder.at_end():
            break
        links: list[_LinkSummary] = decoder.next(_LINKS)
        described = Described(
            _name(summary.name),
            summary.nickname,
            summary.uid,
            summary.version,
            summary.short_id,
            summary.has_short_id,
        )
        for link in links:
            remote = _name(link.name)
            described.links[remote] = Link(remote, link.address, link.outbound, link.established)
        peers.append(described)
    return peers


# Outbound and established follow the address as deltas and ones; neither is sent when false.
_LINK = re.compile(rb"\x01\x06(.{6})\x01(.)([0-9A-Za-z.:\[\]%_-]+)(\x01\x01\x01\x01|\x01\x01|\x02\x01|)\x00", re.DOTALL)
_FLAGS = {b"\1\1\1\1": (True, True), b"\1\1": (True, False), b"\2\1": (False, True), b"": (False, False)}
_LINK_FRAME = 11


def decode_pair(pair: Pair) -> Described:
    """One described peer of a usual stream. Raises GobError."""
    cursor = gob.Cursor(pair.summary)
    described = Described(PeerName(0), "", 0, 0, 0, False)
    number = -1
    while delta := cursor.uint():
        number += delta
        if number == 0:
            described.name = _name(cursor.octets())
        elif number == 1:
            described.nickname = cursor.octets().decode("utf-8", "surrogateescape")
        elif number == 2:
            described.uid = cursor.uint()
        elif number == 3:
            described.version = cursor.uint()
        elif number == 4:
            described.short_id = cursor.uint()
            if described.short_id > 0xFFFF:
                raise GobError('value for "ShortID" out of range')
        elif number == 5:
            described.has_short_id = cursor.uint() != 0
        else:
            raise GobError("gob: field number out of range")
    described.links, canonical = _decode_links(pair.links)
    if canonical and pair.summary == _encode_summary(described):
        described.pair = pair
    return described


def _decode_links(raw: bytes) -> tuple[dict[PeerName, Link], bool]:
    """Links, and whether the bytes are what we would write."""
    cursor = gob.Cursor(raw)
    count = cursor.count()
    found = _LINK.findall(raw, cursor.position)
    links: dict[PeerName, Link] = {}
    size = cursor.position
    for name_bytes, length, address, flags in found:
        if len(address) != length[0]:
            break
        size += _LINK_FRAME + len(address) + len(flags)
        name = PeerName(int.from_bytes(name_bytes, "big"))
        outbound, established = _FLAGS[flags]
        links[name] = Link(name, address.decode(), outbound, established)
    if len(found) == count and size == len(raw):
        return links, len(links) == count and raw.startswith(gob.encode_uint(count))
    return _decode_links_slowly(cursor, count), False


def _decode_links_slowly(cursor: gob.Cursor, count: int) -> dict[PeerName, Link]:
    """Links with any address and any legal form of their fields."""
    links: dict[PeerName, Link] = {}
    for _ in range(count):
        name, address, outbound, established = b"", "", False, False
        number = -1
        while delta := cursor.uint():
            number += delta
            if number == 0:
                name = cursor.octets()
            elif number == 1:
                address = cursor.octets().decode("utf-8", "surrogateescape")
            elif number == 2:
                outbound = cursor.uint() != 0
            elif number == 3:
                established = cursor.uint() != 0
            else:
                raise GobError("gob: field number out of range")
        remote = _name(name)
        links[remote] = Link(remote, address, outbound, established)
    return links


_FLAG_BYTES = {flags: raw for raw, flags in _FLAGS.items()}


def _encode_summary(peer: Described) -> bytes:
    summary = b"\1\6" + peer_name_to_bytes(peer.name)
    last = 0
    for number, raw in (
        (1, gob.encode_string(peer.nickname) if peer.nickname else b""),
        (2, gob.encode_uint(peer.uid) if peer.uid else b""),
        (3, gob.encode_uint(peer.version) if peer.version else b""),
        (4, gob.encode_uint(peer.short_id) if peer.short_id else b""),
        (5, b"\1" if peer.has_short_id else b""),
    ):
        if raw:
            summary += bytes((number - last,)) + raw
            last = number
    return summary + b"\0"


def encode_pair(peer: Described) -> Pair:
    """The canonical bytes of one peer."""
    links = gob.encode_uint(len(peer.links)) + b"".join(map(_encode_link, peer.links.values()))
    return Pair(_encode_summary(peer), links)


def _encode_link(link: Link) -> bytes:
    name = b"\1\6" + peer_name_to_bytes(link.remote)
    if link.address:
        flags = _FLAG_BYTES[link.outbound, link.established]
        return name + b"\1" + gob.encode_string(link.address) + flags + b"\0"
    flags = (b"\2\1" if link.outbound else b"") + ((b"\1\1" if link.outbound else b"\3\1") if link.established else b"")
    return name + flags + b"\0"


DESCRIPTORS, _SUMMARY_PREFIX, _LINKS_PREFIX = _prefixes()


def encode_messages(pair: Pair) -> bytes:
    """A pair as the two gob messages that follow our descriptors."""
    return gob.encode_bytes(_SUMMARY_PREFIX + pair.summary) + gob.encode_bytes(_LINKS_PREFIX + pair.links)


def encode_stream(messages: Iterable[bytes]) -> bytes:
    """A whole stream of encoded peers; nothing for none."""
    body = b"".join(messages)
    return DESCRIPTORS + body if body else b""
