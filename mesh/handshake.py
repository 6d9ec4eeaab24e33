"""The introduction: header, encryption flag and key, feature map; then the codec that the connection goes on with.

A state machine without I/O: bytes in, bytes to send out, one result. Two protocol versions share it. In version 2
everything behind the header is framed messages; in version 1 one continuous gob stream. With several passwords
(rotation) the peer's first sealed message shows which one it uses: it is read before ours is sealed.
Source: mesh spec §2, §4.2, §5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from mesh import gob
from mesh.crypto import KEY_SIZE, KeyPair, Opener, Sealer
from mesh.errors import ProtocolError
from mesh.features import FEATURE_MAP, V1_KEYS, Features, build_features, parse_features
from mesh.messages import MAX_MESSAGE
from mesh.names import PeerName

PROTOCOL = b"weave"
HEADER_SIZE = len(PROTOCOL) + 2
HEADER_TIMEOUT = 10.0
INTRODUCTION_TIMEOUT = 60.0
# How long a dialer with several passwords waits for the acceptor's first message before it speaks itself.
DIALER_WAIT = 0.5
_LENGTH = 4
# A feature map is a few hundred bytes; who has not shown who it is makes us hold no more than this.
MAX_INTRODUCTION = 64 << 10


class MessageCodec(Protocol):
    """Messages of one connection to bytes and back."""

    def feed(self, data: bytes) -> list[bytes]:
        """Plaintexts of the messages that are complete now. Raises ProtocolError."""

    def encode(self, plaintext: bytes) -> bytes:
        """One message, ready to send. Raises ProtocolError over the size limit."""


class FrameCodec:
    """Version 2: u32 length and that many bytes, sealed if there is a key."""

    __slots__ = ("_buffer", "_opener", "_sealer")

    def __init__(self, sealer: Sealer | None, opener: Opener | None) -> None:
        self._sealer = sealer
        self._opener = opener
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= _LENGTH:
            size = int.from_bytes(buffer[start : start + _LENGTH], "big")
            if size > MAX_MESSAGE:
                raise ProtocolError(f"incoming message exceeds maximum size: {size} > {MAX_MESSAGE}")
            stop = start + _LENGTH + size
            if stop > len(buffer):
                break
            body = bytes(memoryview(buffer)[start + _LENGTH : stop])
            messages.append(body if self._opener is None else self._opener.open(body))
            start = stop
        if start:
            del buffer[:start]
        return messages

    def encode(self, plaintext: bytes) -> bytes:
        body = plaintext if self._sealer is None else self._sealer.seal(plaintext)
        if len(body) > MAX_MESSAGE:
            raise ProtocolError(f"outgoing message exceeds maximum size: {len(body)} > {MAX_MESSAGE}")
        return len(body).to_bytes(_LENGTH, "big") + body


class GobStreamCodec:
    """Version 1: each message is a []byte value of one continuous gob stream per direction."""

    __slots__ = ("_buffer", "_opener", "_sealer")

    def __init__(self, sealer: Sealer | None, opener: Opener | None) -> None:
        self._sealer = sealer
        self._opener = opener
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        messages = []
        while (message := take_gob_message(self._buffer)) is not None:
            body = gob.decode(message, gob.BYTES)
            messages.append(body if self._opener is None else self._opener.open(body))
        return messages

    def encode(self, plaintext: bytes) -> bytes:
        body = plaintext if self._sealer is None else self._sealer.seal(plaintext)
        return gob.encode(gob.BYTES, body)


def take_gob_message(buffer: bytearray, limit: int = MAX_MESSAGE) -> bytes | None:
    """Cut one complete gob message, length included, off the front.

    Raises ProtocolError over the limit, in bytes, and on an empty message, which ends a stream.
    """
    if not buffer:
        return None
    head = 1 if buffer[0] < 128 else 1 + 256 - buffer[0]
    if head > 9:
        raise ProtocolError("gob: invalid message length")
    if len(buffer) < head:
        return None
    size = gob.Cursor(bytes(buffer[:head])).uint()
    if size > limit:
        raise ProtocolError(f"incoming message exceeds maximum size: {size} > {limit}")
    if not size:
        raise ProtocolError("EOF")
    if len(buffer) < head + size:
        return None
    message = bytes(buffer[: head + size])
    del buffer[: head + size]
    return message


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """A completed introduction. `leftover` are bytes of the peer behind it, for `codec.feed`."""

    version: int
    features: Features
    connection_uid: int
    session_key: bytes | None
    codec: MessageCodec
    leftover: bytes

    def __repr__(self) -> str:
        return f"HandshakeResult(version={self.version}, peer={self.features.name:012x})"


class _Stage(Enum):
    HEADER = auto()
    FLAG = auto()
    KEY = auto()
    FEATURES = auto()
    V1_FEATURES = auto()
    DONE = auto()


class Handshake:
    """One side of an introduction. `key_seed` is 32 secret random bytes, needed with a password only."""

    def __init__(
        self,
        *,
        outbound: bool,
        name: PeerName,
        nickname: str,
        uid: int,
        conn_id: int,
        short_id: int | None,
        trusted: bool,
        extra: Mapping[str, str],
        passwords: Sequence[bytes] = (),
        min_version: int = 1,
        max_version: int = 2,
        key_seed: bytes = b"",
    ) -> None:
        self._outbound = outbound
        self._conn_id = conn_id
        self._features = build_features(
            name=name, nickname=nickname, uid=uid, conn_id=conn_id, short_id=short_id, trusted=trusted, extra=extra
        )
        self._passwords = tuple(password for password in passwords if password)
        self._min_version = min_version
        self._max_version = max_version
        self._keys = KeyPair(key_seed) if self._passwords else None
        self._stage = _Stage.HEADER
        self._buffer = bytearray()
        self._output: list[bytes] = []
        self._definitions = b""
        self._remote_public = b""
        self._session_keys: tuple[bytes, ...] = ()
        self._session_key: bytes | None = None
        self._codec: FrameCodec | None = None
        self._features_sent = False
        self._now = 0.0
        self.version = 0
        self.deadline: float | None = None
        self.result: HandshakeResult | None = None

    @property
    def header_received(self) -> bool:
        """Whether the peer's protocol header is here: from then on the introduction's deadline counts."""
        return self._stage is not _Stage.HEADER

    def start(self, now: float) -> bytes:
        """The first bytes to send."""
        self._now = now
        return PROTOCOL + bytes((self._min_version, self._max_version))

    def receive(self, data: bytes, now: float) -> bytes:
        """Bytes of the peer; returns bytes to send. Raises ProtocolError, after which nothing follows."""
        self._now = now
        self._buffer += data
        while self.result is None and self._step():
            pass
        return self.take_output()

    def tick(self, now: float) -> bytes:
        """Time went on: from the deadline on a dialer with several passwords speaks first. Early calls do nothing."""
        self._now = now
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self._choose(self._session_keys[0])
            self._send_features()
        return self.take_output()

    def closed_early(self, error: str) -> ProtocolError:
        """What the peer's silence means, when its stream ended in the middle of the header."""
        if self._stage is not _Stage.HEADER:
            return ProtocolError(error)
        if not self._buffer:
            return ProtocolError(f"failed to receive remote protocol header: {error}")
        octets = " ".join(str(octet) for octet in self._buffer)
        return ProtocolError(
            f"received incomplete remote protocol header ({len(self._buffer)} octets instead of {HEADER_SIZE}): "
            f"[{octets}]; error: {error}"
        )

    def take_output(self) -> bytes:
        """Bytes to send that were made before an error and not returned."""
        output, self._output = b"".join(self._output), []
        return output

    def _take(self, size: int) -> bytes | None:
        if len(self._buffer) < size:
            return None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _step(self) -> bool:
        """One stage forward; False where more bytes are needed."""
        match self._stage:
            case _Stage.HEADER:
                return self._on_header()
            case _Stage.FLAG:
                return self._on_flag()
            case _Stage.KEY:
                return self._on_key()
            case _Stage.FEATURES:
                return self._on_features()
            case _Stage.V1_FEATURES:
                return self._on_v1_features()
        return False

    def _on_header(self) -> bool:
        header = self._take(HEADER_SIZE)
        if header is None:
            return False
        if header[: len(PROTOCOL)] != PROTOCOL:
            octets = " ".join(str(octet) for octet in header[: len(PROTOCOL)])
            raise ProtocolError(f"remote protocol header not recognised: [{octets}]")
        their_min, their_max = header[len(PROTOCOL) :]
        version = min(self._max_version, their_max)
        if max(self._min_version, their_min) > version:
            raise ProtocolError(
                f"remote version range [{their_min},{their_max}] is incompatible with ours "
                f"[{self._min_version},{self._max_version}]"
            )
        self.version = version
        if version == 1:
            self._stage = _Stage.V1_FEATURES
            self._send_v1_features()
        else:
            self._stage = _Stage.FLAG
            self._output.append(b"\1" + self._keys.public if self._keys else b"\0")
            if self._keys is None:
                self._codec = FrameCodec(None, None)
                self._send_features()
        return True

    def _on_flag(self) -> bool:
        flag = self._take(1)
        if flag is None:
            return False
        if flag == b"\0":
            if self._keys is not None:
                raise ProtocolError("password specified, but peer requested an unencrypted connection")
            self._stage = _Stage.FEATURES
        elif flag == b"\1":
            if self._keys is None:
                raise ProtocolError("no password specificed, but peer requested an encrypted connection")
            self._stage = _Stage.KEY
        else:
            raise ProtocolError(f"Bad encryption flag {flag[0]}")
        return True

    def _on_key(self) -> bool:
        public = self._take(KEY_SIZE)
        if public is None:
            return False
        self._derive(public)
        self._stage = _Stage.FEATURES
        if len(self._session_keys) == 1:
            self._choose(self._session_keys[0])
            self._send_features()
        elif self._outbound:
            self.deadline = self._now + DIALER_WAIT
        return True

    def _derive(self, public: bytes) -> None:
        assert self._keys is not None
        self._session_keys = tuple(self._keys.session_key(public, password) for password in self._passwords)

    def _choose(self, key: bytes) -> None:
        self._session_key = key
        sealer = Sealer(key, sender_is_dialer=self._outbound)
        self._codec = FrameCodec(sealer, Opener(key, sender_is_dialer=not self._outbound))

    def _send_features(self) -> None:
        assert self._codec is not None
        self._features_sent = True
        self._output.append(self._codec.encode(gob.encode(FEATURE_MAP, self._features)))

    def _on_features(self) -> bool:
        if len(self._buffer) < _LENGTH:
            return False
        size = int.from_bytes(self._buffer[:_LENGTH], "big")
        if size > MAX_INTRODUCTION:
            raise ProtocolError(f"incoming message exceeds maximum size: {size} > {MAX_INTRODUCTION}")
        frame = self._take(_LENGTH + size)
        if frame is None:
            return False
        plaintext = self._open_first(frame)
        if not self._features_sent:
            self._send_features()
        self.deadline = None
        features = parse_features(gob.decode(plaintext, FEATURE_MAP))
        assert self._codec is not None
        self._finish(features, self._codec)
        return True

    def _open_first(self, frame: bytes) -> bytes:
        """The first message shows which of our passwords the peer has."""
        if self._codec is None:
            for key in self._session_keys:
                opener = Opener(key, sender_is_dialer=not self._outbound)
                try:
                    opener.open(frame[_LENGTH:])
                except ProtocolError:
                    continue
                self._choose(key)
                break
            else:
                raise ProtocolError("Unable to decrypt TCP msg")
        assert self._codec is not None
        return self._codec.feed(frame)[0]

    def _send_v1_features(self) -> None:
        features = {key: self._features[key] for key in V1_KEYS}
        if self._keys is not None:
            features["PublicKey"] = self._keys.public.hex()
        self._features_sent = True
        self._output.append(gob.encode(FEATURE_MAP, features))

    def _on_v1_features(self) -> bool:
        message = take_gob_message(self._buffer, MAX_INTRODUCTION - len(self._definitions))
        if message is None:
            return False
        self._definitions += message
        if gob.is_definition(message):
            # Definitions wait for their value, so that they are read once.
            return True
        raw: dict[str, str] = gob.decode(self._definitions, FEATURE_MAP)
        public = raw.get("PublicKey")
        features = parse_features({key: raw[key] for key in V1_KEYS if key in raw})
        if public is None and self._keys is not None:
            raise ProtocolError("password specified, but peer requested an unencrypted connection")
        if public is not None and self._keys is None:
            raise ProtocolError("no password specificed, but peer requested an encrypted connection")
        sealer = opener = None
        if public is not None:
            self._derive(_public_key(public))
            self._session_key = key = self._session_keys[0]
            sealer = Sealer(key, sender_is_dialer=self._outbound)
            opener = Opener(key, sender_is_dialer=not self._outbound)
        self._finish(features, GobStreamCodec(sealer, opener))
        return True

    def _finish(self, features: Features, codec: MessageCodec) -> None:
        self._stage = _Stage.DONE
        self.result = HandshakeResult(
            version=self.version,
            features=features,
            connection_uid=self._conn_id ^ features.conn_id,
            session_key=self._session_key,
            codec=codec,
            leftover=bytes(self._buffer),
        )
        self._buffer.clear()


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError as error:
        raise ProtocolError("peer sent an unusable public key") from error
    if len(key) != KEY_SIZE or len(text) != 2 * KEY_SIZE:
        raise ProtocolError("peer sent an unusable public key")
    return key
