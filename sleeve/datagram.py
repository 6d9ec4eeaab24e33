"""Sleeve datagrams: a sender's name, then frames, each with the peers it travels between; plain or sealed.

A sealed body is preceded by 8 bytes of sequence number, whose highest bit says which of the sender's two counters
made it (the one for packets with DF, or the other). PyNaCl's functions copy and check more than they work on a packet,
so its libsodium is called itself, into memory of ours. Source: data plane spec §3.1, §3.4; NaCl, secretbox.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache

from nacl import bindings
from nacl._sodium import ffi, lib

from mesh.names import NAME_SIZE, PeerName, peer_name_to_bytes
from sleeve.replay import ReplayWindow

FRAME_HEADER = struct.Struct(">6s6sH")
_ENDS = 2 * NAME_SIZE
SEQUENCE = struct.Struct(">Q")
TAG_SIZE = 16
DF_BIT = 1 << 63
PLAIN_OVERHEAD = NAME_SIZE
SEALED_OVERHEAD = NAME_SIZE + SEQUENCE.size + TAG_SIZE
FRAME_OVERHEAD = FRAME_HEADER.size
SEALED_HEADER = NAME_SIZE + SEQUENCE.size
_DIALER = 0x80
_ROOM = 65536
bindings.sodium_init()


class DatagramError(Exception):
    """A datagram that is not what it should be. It is counted; nothing else follows."""


def frame_header(source: PeerName, destination: PeerName, size: int) -> bytes:
    """What precedes a frame."""
    return FRAME_HEADER.pack(peer_name_to_bytes(source), peer_name_to_bytes(destination), size)


@lru_cache(1024)
def _ends(octets: bytes) -> tuple[PeerName, PeerName]:
    """The names before a frame's length: mostly those of the frame before."""
    return PeerName(int.from_bytes(octets[:NAME_SIZE], "big")), PeerName(int.from_bytes(octets[NAME_SIZE:], "big"))


def decode_frames(body: bytes) -> Iterator[tuple[PeerName, PeerName, bytes]]:
    """(source, destination, frame) of a body; DatagramError at the end of a malformed one."""
    position, end = 0, len(body)
    while position < end:
        if end - position < FRAME_OVERHEAD:
            raise DatagramError(f"{end - position} octets of trailing garbage")
        source, destination = _ends(body[position : position + _ENDS])
        size = body[position + _ENDS] << 8 | body[position + _ENDS + 1]
        position += FRAME_OVERHEAD
        if size > end - position:
            raise DatagramError(f"too short; expected frame of length {size}, got {end - position}")
        yield source, destination, body[position : position + size]
        position += size


class PlainSession:
    """Datagrams in clear. Bodies are joined frames with their headers."""

    overhead = PLAIN_OVERHEAD
    encrypted = False

    def __init__(self, ourself: PeerName) -> None:
        self._prefix = peer_name_to_bytes(ourself)

    def seal(self, body: bytes, df: bool) -> bytes:
        """A whole datagram."""
        return self._prefix + body

    def open(self, datagram: bytes) -> bytes | None:
        """The body of a peer's datagram; None for one to be ignored. Raises DatagramError."""
        return datagram[NAME_SIZE:]

    def close(self) -> None:
        """Nothing to wipe."""


class SealedSession:
    """Datagrams under a session key (32 bytes): one counter for packets with DF, one for those without."""

    overhead = SEALED_OVERHEAD
    encrypted = True

    def __init__(self, ourself: PeerName, key: bytes, *, outbound: bool) -> None:
        self._key = key
        self._sealed, self._opened = (ffi.new("unsigned char[]", _ROOM) for _ in "12")
        self._sealed_body = self._sealed + SEALED_HEADER
        self._sealed_view, self._opened_view = ffi.buffer(self._sealed), ffi.buffer(self._opened)
        self._sealed_view[:NAME_SIZE] = peer_name_to_bytes(ourself)
        self._nonce_out = bytes((_DIALER if outbound else 0,)) + bytes(15)
        self._nonce_in = bytes((0 if outbound else _DIALER,)) + bytes(15)
        self._sequence = {True: DF_BIT, False: 0}
        self._windows = {True: ReplayWindow(), False: ReplayWindow()}
        self.replayed = 0

    def seal(self, body: bytes, df: bool) -> bytes:
        """A whole datagram of at most 65535 bytes; its number is used up whether it is sent or not."""
        sequence = SEQUENCE.pack(self._sequence[df])
        self._sequence[df] += 1
        size = len(body)
        if size + SEALED_OVERHEAD > _ROOM:
            raise ValueError(f"{size} bytes are no datagram")
        self._sealed_view[NAME_SIZE:SEALED_HEADER] = sequence
        lib.crypto_secretbox_easy(self._sealed_body, body, size, self._nonce_out + sequence, self._key)
        made: bytes = self._sealed_view[: size + SEALED_OVERHEAD]
        return made

    def open(self, datagram: bytes) -> bytes | None:
        """The body; None for a number seen before. Raises DatagramError."""
        size = len(datagram) - SEALED_HEADER
        if size < 0:
            size += SEQUENCE.size
            raise DatagramError(f"encrypted UDP packet too short; expected length >= {SEQUENCE.size}, got {size}")
        sequence = datagram[NAME_SIZE:SEALED_HEADER]
        nonce, sealed = self._nonce_in + sequence, datagram[SEALED_HEADER:]
        if size > _ROOM or lib.crypto_secretbox_open_easy(self._opened, sealed, size, nonce, self._key):
            raise DatagramError("UDP packet decryption failed")
        number = int.from_bytes(sequence, "big")
        if not self._windows[number >= DF_BIT].accept(number & ~DF_BIT):
            self.replayed += 1
            return None
        body: bytes = self._opened_view[: size - TAG_SIZE]
        return body

    def close(self) -> None:
        """Forget the key, and what was opened last."""
        self._key = bytes(len(self._key))
        self._opened_view[:] = bytes(_ROOM)


Session = PlainSession | SealedSession
