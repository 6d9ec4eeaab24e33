"""Gob's smallest parts: integers, lengths and strings, read from a buffer or written as bytes.

Lengths are believed only as far as there are bytes, counts only as far as there is a budget; whatever is wrong
raises GobError. Source: mesh spec §19.1, §19.6.
"""

import struct
from typing import Any, Protocol

from mesh.gob_types import GobError

# How deep values may be nested, and how many elements of lists and maps one stream may have. Ten megabytes, the
# largest message, hold fewer of anything that is really sent.
MAX_DEPTH = 100
MAX_ELEMENTS = 1_000_000


class Stream(Protocol):
    """What a value may ask of the stream it is in."""

    elements: int

    def interface_value(self, cursor: "Cursor") -> Any:
        """Read a value whose type only the stream knows."""


class Cursor:
    """A position in a buffer. Reading past `end` raises GobError."""

    __slots__ = ("buffer", "depth", "end", "position", "stream")

    def __init__(self, buffer: bytes, stream: Stream | None = None) -> None:
        self.buffer = buffer
        self.position = 0
        self.end = len(buffer)
        self.depth = 0
        self.stream = stream

    def uint(self) -> int:
        position = self.position
        if position >= self.end:
            raise GobError("gob: unexpected end of data")
        first = self.buffer[position]
        if first < 128:
            self.position = position + 1
            return first
        size = 256 - first
        stop = position + 1 + size
        if size > 8 or stop > self.end:
            raise GobError("gob: invalid integer")
        self.position = stop
        return int.from_bytes(self.buffer[position + 1 : stop], "big")

    def signed(self) -> int:
        raw = self.uint()
        return ~(raw >> 1) if raw & 1 else raw >> 1

    def octets(self) -> bytes:
        size = self.uint()
        start = self.position
        if size > self.end - start:
            raise GobError("gob: length exceeds the data")
        self.position = start + size
        return self.buffer[start : start + size]

    def skip_octets(self) -> None:
        size = self.uint()
        if size > self.end - self.position:
            raise GobError("gob: length exceeds the data")
        self.position += size

    def count(self) -> int:
        """A number of elements; each takes at least one byte, and all of a stream's come out of one budget."""
        count = self.uint()
        if count > self.end - self.position:
            raise GobError("gob: more elements than data")
        stream = self.stream
        if stream is not None:
            stream.elements += count
            if stream.elements > MAX_ELEMENTS:
                raise GobError("gob: too many elements")
        return count

    def enter(self) -> None:
        """One level deeper; the reader of the level subtracts it again."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GobError("gob: values are nested too deeply")


def read_bool(cursor: Cursor) -> bool:
    return cursor.uint() != 0


def read_string(cursor: Cursor) -> str:
    """Text; bytes that are no UTF-8 survive as surrogates."""
    return cursor.octets().decode("utf-8", "surrogateescape")


def read_float(cursor: Cursor) -> float:
    value: float = struct.unpack("<d", cursor.uint().to_bytes(8, "big"))[0]
    return value


def read_complex(cursor: Cursor) -> complex:
    return complex(read_float(cursor), read_float(cursor))


def encode_uint(value: int) -> bytes:
    """A value below 128 is itself, another its length complemented and its big-endian bytes.

    Raises OverflowError below zero and from 2**64 on.
    """
    if 0 <= value < 128:
        return bytes((value,))
    size = (value.bit_length() + 7) // 8
    if size > 8:
        raise OverflowError(f"{value} does not fit 64 bits")
    return bytes((256 - size,)) + value.to_bytes(size, "big")


def encode_int(value: int) -> bytes:
    """Sign in the lowest bit."""
    return encode_uint(~value << 1 | 1 if value < 0 else value << 1)


def encode_bytes(value: bytes) -> bytes:
    """Length and bytes."""
    return encode_uint(len(value)) + value


def encode_string(value: str) -> bytes:
    """Length and UTF-8 (bytes that came as no UTF-8 go out as they came)."""
    return encode_bytes(value.encode("utf-8", "surrogateescape"))


def encode_bool(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def encode_float(value: float) -> bytes:
    """IEEE double, its bytes reversed so that round numbers are short."""
    return encode_uint(int.from_bytes(struct.pack("<d", value), "big"))


def encode_complex(value: complex) -> bytes:
    return encode_float(value.real) + encode_float(value.imag)
