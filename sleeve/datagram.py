"""Sleeve datagrams: a sender's name, then frames, each with the peers it travels between; plain or sealed.

A sealed body is preceded by 8 bytes of sequence number, whose highest bit says which of the sender's two counters
made it (the one for packets with DF, or the other). Source: data plane spec §3.1, §3.4.
"""

import struct
from collections.abc import Iterator

from nacl import bindings
from nacl.exceptions import CryptoError

from mesh.names import NAME_SIZE, PeerName, peer_name_to_bytes
from sleeve.replay import ReplayWindow

FRAME_HEADER = struct.Struct(">6s6sH")
SEQUENCE = struct.Struct(">Q")
TAG_SIZE = 16
DF_BIT = 1 << 63
PLAIN_OVERHEAD = NAME_SIZE
SEALED_OVERHEAD = NAME_SIZE + SEQUENCE.size + TAG_SIZE
FRAME_OVERHEAD = FRAME_HEADER.size
_DIALER = 0x80
# Younger PyNaCl has one that copies less.
_seal = getattr(bindings, "crypto_secretbox_easy", bindings.crypto_secretbox)


class DatagramError(Exception):
    """A datagram that is not what it should be. It is counted; nothing else follows."""


def frame_header(source: PeerName, destination: PeerName, size: int) -> bytes:
    """What precedes a frame."""
    return FRAME_HEADER.pack(peer_name_to_bytes(source), peer_name_to_bytes(destination), size)


def decode_frames(body: bytes) -> Iterator[tuple[PeerName, PeerName, bytes]]:
    """(source, destination, frame) of a body; DatagramError at the end of a malformed one."""
    position, end = 0, len(body)
    while position < end:
        if end - position < FRAME_OVERHEAD:
            raise DatagramError(f"{end - position} octets of trailing garbage")
        source, destination, size = FRAME_HEADER.unpack_from(body, position)
        position += FRAME_OVERHEAD
        if size > end - position:
            raise DatagramError(f"too short; expected frame of length {size}, got {end - position}")
        yield (
            PeerName(int.from_bytes(source, "big")),
            PeerName(int.from_bytes(destination, "big")),
            body[position : position + size],
        )
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
        self._prefix = peer_name_to_bytes(ourself)
        self._key = key
        self._nonce_out = bytes((_DIALER if outbound else 0,)) + bytes(15)
        self._nonce_in = bytes((0 if outbound else _DIALER,)) + bytes(15)
        self._sequence = {True: DF_BIT, False: 0}
        self._windows = {True: ReplayWindow(), False: ReplayWindow()}
        self.replayed = 0

    def seal(self, body: bytes, df: bool) -> bytes:
        """A whole datagram; its number is used up whether it is sent or not."""
        sequence = SEQUENCE.pack(self._sequence[df])
        self._sequence[df] += 1
        sealed: bytes = _seal(body, self._nonce_out + sequence, self._key)
        return self._prefix + sequence + sealed

    def open(self, datagram: bytes) -> bytes | None:
        """The body; None for a number seen before. Raises DatagramError."""
        size = len(datagram) - NAME_SIZE
        if size < SEQUENCE.size:
            raise DatagramError(f"encrypted UDP packet too short; expected length >= {SEQUENCE.size}, got {size}")
        sequence = datagram[NAME_SIZE : NAME_SIZE + SEQUENCE.size]
        try:
            body: bytes = bindings.crypto_secretbox_open(
                datagram[NAME_SIZE + SEQUENCE.size :], self._nonce_in + sequence, self._key
            )
        except (CryptoError, ValueError) as error:
            raise DatagramError("UDP packet decryption failed") from error
        number = SEQUENCE.unpack(sequence)[0]
        if not self._windows[bool(number & DF_BIT)].accept(number & ~DF_BIT):
            self.replayed += 1
            return None
        return body

    def close(self) -> None:
        """Forget the key."""
        self._key = bytes(len(self._key))


Session = PlainSession | SealedSession
