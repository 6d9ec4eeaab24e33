"""What travels on a mesh connection: tags, and the headers of the three gossip messages.

The headers are two or three built-in gob values, nearly always of the same few channels and peers. Every gossip
message passes here, so the bytes of a header are taken as a whole and looked up. A payload of any other shape goes
to the general decoder. Source: mesh spec §5.
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


# Type id and marker of a []byte value.
_BYTES = b"\x0a\x00"


@lru_cache(maxsize=256)
def _channel(name: str) -> bytes:
    return gob.encode(gob.STRING, name)


@lru_cache(maxsize=4096)
def _name(name: PeerName) -> bytes:
    return gob.encode(gob.UINT, name)


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
    data_start = _header_size(payload, 2)
    if data_start:
        data = _data_at(payload, data_start)
        header = _gossip_header(payload[:data_start])
        if data is not None and header is not None:
            return *header, data
    decoder = gob.Decoder(payload)
    return decoder.next(gob.STRING), PeerName(decoder.next(gob.UINT)), decoder.next(gob.BYTES)


def decode_gossip_unicast(payload: bytes) -> tuple[str, PeerName, PeerName, bytes]:
    """Channel, origin, destination, data of tag 5. Raises GobError."""
    data_start = _header_size(payload, 3)
    if data_start:
        data = _data_at(payload, data_start)
        header = _unicast_header(payload[:data_start])
        if data is not None and header is not None:
            return *header, data
    decoder = gob.Decoder(payload)
    channel = decoder.next(gob.STRING)
    return channel, PeerName(decoder.next(gob.UINT)), PeerName(decoder.next(gob.UINT)), decoder.next(gob.BYTES)


def _header_size(payload: bytes, messages: int) -> int:
    """Where the payload's short messages before the data end; 0 where they are not short, or not there."""
    position, end = 0, len(payload)
    for _ in range(messages):
        if position >= end or payload[position] >= 128:
            return 0
        position += 1 + payload[position]
    return position if position < end else 0


def _data_at(payload: bytes, position: int) -> bytes | None:
    """The []byte value of the last message, None unless it is of the usual form and there is nothing else."""
    size, position = _length_at(payload, position)
    if position + size != len(payload) or size <= len(_BYTES) or not payload.startswith(_BYTES, position):
        return None
    length, position = _length_at(payload, position + len(_BYTES))
    return payload[position:] if position + length == len(payload) else None


def _length_at(payload: bytes, position: int) -> tuple[int, int]:
    """A length and the position behind it; a length that nothing has where the integer is no good."""
    first = payload[position]
    if first < 128:
        return first, position + 1
    stop = position + 1 + 256 - first
    if stop - position > 9:
        return len(payload) + 1, stop
    return int.from_bytes(payload[position + 1 : stop], "big"), stop


@lru_cache(maxsize=4096)
def _gossip_header(raw: bytes) -> tuple[str, PeerName] | None:
    """A header's values, None where the whole payload has to be looked at."""
    decoder = gob.Decoder(raw)
    try:
        return decoder.next(gob.STRING), PeerName(decoder.next(gob.UINT))
    except gob.GobError:
        return None


@lru_cache(maxsize=4096)
def _unicast_header(raw: bytes) -> tuple[str, PeerName, PeerName] | None:
    decoder = gob.Decoder(raw)
    try:
        return decoder.next(gob.STRING), PeerName(decoder.next(gob.UINT)), PeerName(decoder.next(gob.UINT))
    except gob.GobError:
        return None
