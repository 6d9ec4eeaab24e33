"""Keys of an encrypted link, how they are agreed on, and what ESP adds to a packet. No sockets, no randomness.

Each side draws a nonce and derives the key of what is sent towards itself; it tells the peer nonce and SPI in one
control message over the mesh connection. AES-256-GCM (RFC 4106) with extended sequence numbers, transport mode.
Source: data plane spec §5; HKDF: RFC 5869.
"""

import hashlib
import hmac
import struct

from mesh.names import PeerName

NONCE = 32
KEY = 36
_HASH = hashlib.sha256
# Nonce, SPI, zeros.
_BODY = struct.Struct(">32sI28x")
_NAME = struct.Struct(">Q")
# SPI and sequence number, IV, check value; two octets close the padding to a multiple of four.
_HEADER, _IV, _CHECK, _TRAILER, _BLOCK = 8, 8, 16, 2, 4
# The most that ESP adds to any packet, in octets.
MOST = _HEADER + _IV + _BLOCK - 1 + _TRAILER + _CHECK
_UDP_AND_VXLAN = 8 + 8 + 14


class BodyError(Exception):
    """A peer's message about its key is none."""


def key(session_key: bytes, nonce: bytes, receiver: PeerName) -> bytes:
    """Key and salt, 36 octets, of what is sent to `receiver`."""
    extracted = hmac.digest(nonce, session_key, _HASH)
    block, made = b"", b""
    for number in range(1, -(-KEY // len(extracted)) + 1):
        block = hmac.digest(extracted, block + _NAME.pack(receiver) + bytes((number,)), _HASH)
        made += block
    return made[:KEY]


def body(nonce: bytes, spi: int) -> bytes:
    """What the control message about our key says."""
    return _BODY.pack(nonce, spi)


def unpack_body(payload: bytes) -> tuple[bytes, int]:
    """(nonce, SPI). Raises BodyError."""
    if len(payload) != _BODY.size:
        raise BodyError(f"the peer's key message has {len(payload)} octets instead of {_BODY.size}")
    nonce, spi = _BODY.unpack(payload)
    return nonce, spi


def overhead(mtu: int) -> int:
    """What ESP adds to the packet of the longest frame, in octets; `mtu` of a frame's content."""
    padding = -(mtu + _UDP_AND_VXLAN + _TRAILER) % _BLOCK
    return _HEADER + _IV + padding + _TRAILER + _CHECK
