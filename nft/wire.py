"""Netlink bytes of nf_tables: attributes, batches, and the answers of the kernel.

Source: linux/netlink.h, linux/netfilter/nf_tables.h (constants), nft's own documentation of the object model.
"""

import os
import socket
import struct
from collections.abc import Iterable, Sequence

NETLINK_NETFILTER = 12
NLMSG_ERROR = 2
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN = 0x10
NFNL_MSG_BATCH_END = 0x11
_NLA_F_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_NFGENMSG = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT = 5.0


class NftError(Exception):
    """The kernel refused a transaction; the text names the object."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = _ATTRIBUTE.size + len(payload)
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


class Message:
    """One request of a transaction; `what` is for the error text."""

    __slots__ = ("body", "family", "flags", "kind", "what")

    def __init__(self, kind: int, family: int, flags: int, body: bytes, what: str) -> None:
        self.kind = kind
        self.family = family
        self.flags = flags
        self.body = body
        self.what = what


def _encode(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    payload = _NFGENMSG.pack(family, 0, resource) + body
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def commit(messages: Sequence[Message]) -> None:
    """Send messages as one transaction: all of it, or none and an NftError. Blocks, at most a few seconds."""
    first = 1
    parts = [_encode(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, 0, NFNL_SUBSYS_NFTABLES, b"")]
    for sequence, message in enumerate(messages, first):
        kind = NFNL_SUBSYS_NFTABLES << 8 | message.kind
        flags = NLM_F_REQUEST | NLM_F_ACK | message.flags
        parts.append(_encode(kind, flags, sequence, message.family, 0, message.body))
    parts.append(_encode(NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, 0, NFNL_SUBSYS_NFTABLES, b""))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.bind((0, 0))
        sock.send(b"".join(parts))
        _await(sock, messages, first)


def _await(sock: socket.socket, messages: Sequence[Message], first: int) -> None:
    """Every message is acknowledged, or one is refused."""
    open_ = len(messages)
    while open_:
        try:
            answer = sock.recv(65536)
        except TimeoutError as error:
            raise NftError(f"no answer from the kernel about {messages[-1].what}") from error
        for sequence, code in _results(answer):
            if code:
                index = sequence - first
                what = messages[index].what if 0 <= index < len(messages) else "the transaction"
                raise NftError(f"unable to change {what}: {os.strerror(-code)}")
            open_ -= 1


def _results(answer: bytes) -> Iterable[tuple[int, int]]:
    """(sequence, 0 or negative errno) of each acknowledgement in a datagram."""
    position = 0
    while position + _HEADER.size <= len(answer):
        size, kind, _flags, sequence, _port = _HEADER.unpack_from(answer, position)
        if kind == NLMSG_ERROR:
            yield sequence, struct.unpack_from("=i", answer, position + _HEADER.size)[0]
        if size < _HEADER.size:
            return
        position += size + (-size % 4)
