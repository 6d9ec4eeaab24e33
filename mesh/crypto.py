"""Session keys and sealed messages of a control connection: NaCl box and secretbox.

The nonce is a counter per direction that is never sent; TCP's order defines it. Keys appear in no repr and no
log. Source: mesh spec §4.
"""

import hashlib
import struct

from nacl import bindings
from nacl.exceptions import CryptoError

from mesh.errors import ProtocolError

KEY_SIZE = 32
OVERHEAD = 16
_COUNTER = struct.Struct(">Q")
_DIALER = 0x80
_TCP = 0x40


class KeyPair:
    """A Curve25519 key pair for one connection, made of 32 secret random bytes."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = private
        self.public: bytes = bindings.crypto_scalarmult_base(private)

    def session_key(self, remote_public: bytes, password: bytes) -> bytes:
        """SHA-256 of the precomputed box key and the password, 32 bytes. Raises ProtocolError on a bad key."""
        try:
            shared: bytes = bindings.crypto_box_beforenm(remote_public, self._private)
        except (CryptoError, ValueError, TypeError) as error:
            raise ProtocolError("peer sent an unusable public key") from error
        return hashlib.sha256(shared + password).digest()


def _nonce_prefix(sender_is_dialer: bool) -> bytes:
    return bytes((_TCP | (_DIALER if sender_is_dialer else 0),)) + bytes(15)


class Sealer:
    """Seals the messages of one direction, in order."""

    __slots__ = ("_key", "_prefix", "_sequence")

    def __init__(self, key: bytes, *, sender_is_dialer: bool) -> None:
        self._key = key
        self._prefix = _nonce_prefix(sender_is_dialer)
        self._sequence = 0

    def seal(self, plaintext: bytes) -> bytes:
        """Tag and ciphertext, 16 bytes longer."""
        nonce = self._prefix + _COUNTER.pack(self._sequence)
        self._sequence += 1
        sealed: bytes = bindings.crypto_secretbox(plaintext, nonce, self._key)
        return sealed


class Opener:
    """Opens the messages of the other direction, in order."""

    __slots__ = ("_key", "_prefix", "_sequence")

    def __init__(self, key: bytes, *, sender_is_dialer: bool) -> None:
        self._key = key
        self._prefix = _nonce_prefix(sender_is_dialer)
        self._sequence = 0

    def open(self, sealed: bytes) -> bytes:
        """The plaintext. Raises ProtocolError; the sequence is used up only by a message that opens."""
        nonce = self._prefix + _COUNTER.pack(self._sequence)
        try:
            plaintext: bytes = bindings.crypto_secretbox_open(sealed, nonce, self._key)
        except (CryptoError, ValueError) as error:
            raise ProtocolError("Unable to decrypt TCP msg") from error
        self._sequence += 1
        return plaintext
