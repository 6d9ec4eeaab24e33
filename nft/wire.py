"""Netlink bytes of nf_tables: attributes, batches, and the answers of the kernel.

A batch is one transaction: all of it happens or nothing. Only its last message asks for an acknowledgement; a message
that is refused answers by itself, and a commit that fails answers in the name of the batch's begin (sequence 0).
Attribute headers are in host order, numbers in network order.
Source: linux/netlink.h, linux/netfilter/nf_tables.h (constants), nft's own documentation of the object model.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from nft.netlink import ACK, DONE, DUMP, ERRNO, ERROR, HEADER, each_message, opened, request

NETLINK_NETFILTER = 12
_NLM_F_CAPPED, _NLM_F_ACK_TLVS, _NLM_F_DUMP_INTERRUPTED = 0x100, 0x200, 0x10
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_ERROR_MESSAGE = 1
_NFGENMSG = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT = 5.0
_RECEIVE = 1 << 17
# What the kernel says while another transaction is in its way, or while it has no memory for an answer.
_PASSING = frozenset((errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ERESTART))
_ATTEMPTS = 5

Attributes = dict[int, bytes]


class NftError(Exception):
    """The kernel refused; the text names the object, `errno` is the kernel's number (0 where there is none).

    `name` is the object's own, where the error is about one of a transaction.
    """

    def __init__(self, text: str, errno: int = 0, name: str = "") -> None:
        super().__init__(text)
        self.errno = errno
        self.name = name


@dataclass(frozen=True, slots=True)
class Message:
    """One request of a transaction; `what` names its object in errors."""

    kind: int
    family: int
    flags: int
    body: bytes
    what: str


# --- attributes ---


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes. Raises NftError where it does not fit its 16-bit length."""
    size = _ATTRIBUTE.size + len(payload)
    if size > 0xFFFF:
        raise NftError(f"attribute {kind & _NLA_TYPE_MASK} of {size} bytes is too long for one message")
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(-size % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def string(kind: int, text: str) -> bytes:
    """A zero-terminated text."""
    return attribute(kind, text.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A number in network order, as nf_tables wants it."""
    return attribute(kind, value.to_bytes(4, "big", signed=value < 0))


def attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a payload, in order. Raises NftError if they are cut."""
    position = 0
    while position + _ATTRIBUTE.size <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, position)
        if size < _ATTRIBUTE.size or position + size > len(payload):
            raise NftError("the kernel's answer is cut")
        yield kind & _NLA_TYPE_MASK, payload[position + _ATTRIBUTE.size : position + size]
        position += size + (-size % 4)


def text(payload: bytes) -> str:
    """The text of a zero-terminated attribute."""
    return payload.partition(b"\0")[0].decode(errors="replace")


# --- the kernel ---


class Channel:
    """A netlink socket of the namespace of the thread that made it; one request at a time.

    Methods block: the kernel does the work of a request while it is sent. What other transactions only disturb is
    tried again a few times.
    """

    def __init__(self) -> None:
        self._sock = _socket()
        self._room = 0
        self._sequence = 0
        self._refused = False

    @property
    def port(self) -> int:
        """Who the sender of our changes is, in the kernel's notifications."""
        port: int = self._sock.getsockname()[0]
        return port

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more requests."""
        self._sock.close()

    def commit(self, messages: Sequence[Message]) -> None:
        """Send messages as one transaction: all of it, or none and an NftError that names the object."""
        if not messages:
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._commit(messages)
                return
            except NftError as error:
                if attempt == _ATTEMPTS or error.errno not in _PASSING:
                    raise

    def dump(self, kind: int, family: int, body: bytes, what: str) -> list[Attributes]:
        """All objects of a kind, each as its attributes. Raises NftError; errno ENOENT if the table is not there."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                found = self._dump(kind, family, body, what)
            except NftError as error:
                if attempt == _ATTEMPTS or error.errno not in _PASSING:
                    raise
                continue
            if found is not None:
                return found
        raise NftError(f"unable to read {what}: it never stood still", errno.EINTR)

    def _commit(self, messages: Sequence[Message]) -> None:
        first = self._next(len(messages) + 1)
        parts = [encode(_BATCH_BEGIN, 0, first - 1, 0, _SUBSYSTEM, b"")]
        last = first + len(messages) - 1
        for sequence, message in enumerate(messages, first):
            flags = message.flags | (ACK if sequence == last else 0)
            parts.append(encode(_SUBSYSTEM << 8 | message.kind, flags, sequence, message.family, 0, message.body))
        parts.append(encode(_BATCH_END, 0, last + 1, 0, _SUBSYSTEM, b""))
        self._send(b"".join(parts), messages[0].what)
        while True:
            for kind, flags, sequence, payload in each_message(self._receive(messages[-1].what)):
                position = sequence - first
                if kind != ERROR or not -1 <= position < len(messages):
                    continue
                number = -ERRNO.unpack_from(payload)[0]
                if number:
                    self._refused = True
                    what = messages[position].what if position >= 0 else "the rules, at the commit"
                    name = what.rpartition(" ")[2] if position >= 0 else ""
                    reason = f"{os.strerror(number)}{_reason(flags, payload)}"
                    raise NftError(f"unable to change {what}: {reason}", number, name)
                if sequence == last:
                    return

    def _dump(self, kind: int, family: int, body: bytes, what: str) -> list[Attributes] | None:
        """None if the tables changed meanwhile."""
        wanted = self._next(1)
        found: list[Attributes] = []
        interrupted = False
        self._send(encode(_SUBSYSTEM << 8 | kind, DUMP, wanted, family, 0, body), what)
        while True:
            for answer_kind, flags, sequence, payload in each_message(self._receive(what)):
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTERRUPTED)
                if answer_kind == DONE:
                    return None if interrupted else found
                if answer_kind == ERROR:
                    number = -ERRNO.unpack_from(payload)[0]
                    raise NftError(f"unable to read {what}: {os.strerror(number)}", number)
                found.append(dict(attributes(payload[_NFGENMSG.size :])))

    def _next(self, count: int) -> int:
        """The first of so many sequence numbers; what is left of earlier answers has other ones."""
        if self._sequence + count + 2 > 0x7FFFFFFF:
            self._sequence = 0
        first = self._sequence + 2
        self._sequence += count + 1
        return first

    def _discard(self) -> None:
        """The rest of what was said of a refused transaction, which would leave no room for the next answer."""
        self._refused = False
        self._sock.setblocking(False)
        try:
            while self._receive(""):
                pass
        except NftError as error:
            if error.errno != errno.EAGAIN:
                raise
        finally:
            self._sock.settimeout(_TIMEOUT)

    def _send(self, datagram: bytes, what: str) -> None:
        if self._refused:
            self._discard()
        # A large transaction is one datagram and must fit the buffer as a whole; so must what it has to say.
        if len(datagram) > self._room:
            self._room = 2 * len(datagram) + 65536
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, self._room)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._room)
        try:
            self._sock.send(datagram)
        except TimeoutError as error:
            raise NftError(f"unable to send about {what}") from error
        except OSError as error:
            raise NftError(f"unable to send about {what}: {error.strerror}", error.errno or 0) from error

    def _receive(self, what: str) -> bytes:
        while True:
            try:
                return self._sock.recv(_RECEIVE)
            except TimeoutError as error:
                raise NftError(f"no answer from the kernel about {what}") from error
            except OSError as error:
                # A transaction of many mistakes has more to say than there is room; the first of it is there.
                if error.errno != errno.ENOBUFS:
                    raise NftError(f"no answer about {what}: {error.strerror}", error.errno or 0) from error


def commit(messages: Sequence[Message]) -> None:
    """Send messages as one transaction: all of it, or none and an NftError. Blocks, at most a few seconds."""
    if messages:
        with Channel() as channel:
            channel.commit(messages)


def dump(kind: int, family: int, body: bytes, what: str) -> list[Attributes]:
    """All objects of a kind, each as its attributes. Raises NftError; errno ENOENT if the table is not there."""
    with Channel() as channel:
        return channel.dump(kind, family, body, what)


def _socket() -> socket.socket:
    sock = opened(NETLINK_NETFILTER, _TIMEOUT)
    for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
        # Only for a better word in errors.
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_NETLINK, option, 1)
    return sock


def encode(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    """One message of a netfilter subsystem: `kind` holds its number in the upper byte; `resource` in host order."""
    return request(kind, flags, sequence, _NFGENMSG.pack(family, 0, resource) + body)


def _reason(flags: int, payload: bytes) -> str:
    """The kernel's own words about an error, if it has any."""
    if not flags & _NLM_F_ACK_TLVS or not flags & _NLM_F_CAPPED:
        return ""
    found = dict(attributes(payload[ERRNO.size + HEADER.size :])).get(_ERROR_MESSAGE)
    return f" ({text(found)})" if found else ""
