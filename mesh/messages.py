"""What travels on a mesh connection: tags, and the headers of the three gossip messages.

The headers are two or three built-in gob values, always the same shape; they are read and written by hand, since
every gossip message passes here. A header of another shape goes to the general decoder. Source: mesh spec §5.
"""

from enum import IntEnum
from functools import lru_cache

from mesh import gob
from mesh.names import PeerName

MAX_MESSAGE = 10 << 20


class Tag(IntEnum):
    """The first byte of a message."""

    HEARTBEAT = 0
    SLEEVE_ESTABLISHED = 1
    SLEEVE_FRAGMENTED = 2
    SLEEVE_MTU_VERIFIED = 3
    GOSSIP = 4
    GOSSIP_UNICAST = 5
    GOSSIP_BROADCAST = 6
    OVERLAY_CONTROL = 7


class ExtensionTag(IntEnum):
    """Messages between nodes of our own kind, sent only to peers that announced them."""

    DIGEST = 200
    SUMMARY = 201
    WANT = 202


_UINT = b"\x06\x00"
_STRING = b"\x0c\x00"
_BYTES = b"\x0a\x00"


@lru_cache(maxsize=256)
def _channel(name: str) -> bytes:
    return gob.encode_bytes(_STRING + gob.encode_string(name))


@lru_cache(maxsize=4096)
def _name(name: PeerName) -> bytes:
    return gob.encode_bytes(_UINT + gob.encode_uint(name))


def _data(data: bytes) -> bytes:
    inner = gob.encode_uint(len(data))
    return gob.encode_uint(len(_BYTES) + len(inner) + len(data)) + _BYTES + inner + data


def encode_gossip(channel: str, name: PeerName, data: bytes) -> bytes:
    """Payload of tags 4 and 6: channel, sender (4) or original source (6), data."""
    return _channel(channel) + _name(name) + _data(data)


def encode_gossip_unicast(channel: str, origin: PeerName, destination: PeerName, data: bytes) -> bytes:
    """Payload of tag 5."""
    return _channel(channel) + _name(origin) + _name(destination) + _data(data)


def decode_gossip(payload: bytes) -> tuple[str, PeerName, bytes]:
    """Channel, sender or source, data of tags 4 and 6. Raises GobError."""
    cursor = gob.Cursor(payload)
    channel = _value(cursor, _STRING)
    name = _value(cursor, _UINT)
    data = _value(cursor, _BYTES)
    if channel is None or name is None or data is None:
        decoder = gob.Decoder(payload)
        return decoder.next(gob.STRING), PeerName(decoder.next(gob.UINT)), decoder.next(gob.BYTES)
    return _text(channel), _peer(name), _bytes(data)


def decode_gossip_unicast(payload: bytes) -> tuple[str, PeerName, PeerName, bytes]:
    """Channel, origin, destination, data of tag 5. Raises GobError."""
    cursor = gob.Cursor(payload)
    values = [_value(cursor, kind) for kind in (_STRING, _UINT, _UINT, _BYTES)]
    channel, origin, destination, data = values
    if channel is None or origin is None or destination is None or data is None:
        decoder = gob.Decoder(payload)
        name = decoder.next(gob.STRING)
        peers = PeerName(decoder.next(gob.UINT)), PeerName(decoder.next(gob.UINT))
        return name, *peers, decoder.next(gob.BYTES)
    return _text(channel), _peer(origin), _peer(destination), _bytes(data)


def _value(cursor: gob.Cursor, kind: bytes) -> gob.Cursor | None:
    """The next message's value if it is of this kind and has no other shape."""
    body = gob.Cursor(cursor.octets())
    if body.buffer[:2] != kind:
        return None
    body.position = 2
    return body


def _text(cursor: gob.Cursor) -> str:
    return cursor.octets().decode("utf-8", "surrogateescape")


def _peer(cursor: gob.Cursor) -> PeerName:
    return PeerName(cursor.uint())


def _bytes(cursor: gob.Cursor) -> bytes:
    return cursor.octets()
