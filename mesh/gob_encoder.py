"""Gob streams out: descriptors once, then values by writers that are made once for each kind.

Type ids are given depth first from 65, as the reference's routers give them. Zero scalars and empty slices are left
out of structs; nested structs, arrays and maps that exist are not. Source: mesh spec §19.2-19.5.
"""

from collections.abc import Callable
from typing import Any

from mesh.gob_types import (
    BOOL,
    BYTES,
    COMPLEX,
    FLOAT,
    INT,
    STRING,
    UINT,
    Basic,
    Kind,
    ListOf,
    MapOf,
    Opaque,
    Struct,
    StructField,
    zero_factory,
)
from mesh.gob_wire import (
    encode_bool,
    encode_bytes,
    encode_complex,
    encode_float,
    encode_int,
    encode_string,
    encode_uint,
)

_FIRST_ID = 65
# Kinds whose writers and descriptors are remembered.
_MAX_WRITERS = 256

Write = Callable[[Any], bytes]

_BASIC: dict[int, Write] = {
    BOOL.wire: encode_bool,
    INT.wire: encode_int,
    UINT.wire: encode_uint,
    FLOAT.wire: encode_float,
    BYTES.wire: encode_bytes,
    STRING.wire: encode_string,
    COMPLEX.wire: encode_complex,
}


class _Writers:
    """Makes the writer of a kind. A kind may contain itself: its own writer is then looked up when it is called."""

    def __init__(self) -> None:
        self._made: dict[int, list[Write]] = {}

    def of(self, kind: Kind) -> Write:
        if isinstance(kind, Basic):
            if kind.wire not in _BASIC:
                raise NotImplementedError(f"gob: {kind.name} values are not written")
            return _BASIC[kind.wire]
        slot = self._made.get(id(kind))
        if slot is None:
            slot = self._made[id(kind)] = []
            slot.append(self._make(kind))
        elif not slot:
            under_way = slot
            return lambda value: under_way[0](value)
        return slot[0]

    def _make(self, kind: Kind) -> Write:
        match kind:
            case ListOf(element=element):
                return _list_writer(self.of(element))
            case MapOf(key=key, value=value):
                return _map_writer(self.of(key), self.of(value))
            case Struct(factory=None):
                return _mapping_writer([(field, self.of(field.kind)) for field in kind.fields])
            case Struct():
                return _struct_writer([(field, self.of(field.kind)) for field in kind.fields])
        return encode_bytes


def _list_writer(element: Write) -> Write:
    def write(value: Any) -> bytes:
        return encode_uint(len(value)) + b"".join(map(element, value))

    return write


def _map_writer(key: Write, item: Write) -> Write:
    def write(value: Any) -> bytes:
        pairs = value.items() if isinstance(value, dict) else value
        return encode_uint(len(value)) + b"".join([key(k) + item(v) for k, v in pairs])

    return write


def _mapping_writer(fields: list[tuple[StructField, Write]]) -> Write:
    """A dictionary holds what is there: no more is sent, and no less."""

    def write(value: Any) -> bytes:
        parts = []
        last = -1
        for number, (field, item) in enumerate(fields):
            if field.attribute in value:
                parts.append(encode_uint(number - last) + item(value[field.attribute]))
                last = number
        return b"".join(parts) + b"\0"

    return write


def _struct_writer(fields: list[tuple[StructField, Write]]) -> Write:
    steps = [
        (number, field.attribute, _omission(field), item, zero_factory(field.kind))
        for number, (field, item) in enumerate(fields)
    ]

    def write(value: Any) -> bytes:
        parts = []
        last = -1
        for number, attribute, omitted, item, zero in steps:
            attained = getattr(value, attribute)
            if omitted(attained):
                continue
            parts.append(encode_uint(number - last) + item(zero() if attained is None else attained))
            last = number
        return b"".join(parts) + b"\0"

    return write


def _is_absent(value: Any) -> bool:
    return value is None


def _never(_: Any) -> bool:
    return False


def _is_zero(value: Any) -> bool:
    return not value


def _omission(field: StructField) -> Callable[[Any], bool]:
    """When a field is left out of its struct."""
    match field.kind:
        case Struct():
            return _is_absent if field.optional else _never
        case MapOf():
            return _is_absent if field.optional else _is_zero
        case ListOf(length=int()):
            return _never
    return _is_zero


class _Fresh:
    """All that a fresh stream of a kind starts with: its definitions, and what precedes its value."""

    __slots__ = ("definitions", "ids", "kind", "prefix", "write")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.ids: dict[int, tuple[int, Kind]] = {}
        parts: list[bytes] = []
        wire = _define(kind, self.ids, parts)
        self.definitions = b"".join(parts)
        self.prefix = _prefix(kind, wire)
        self.write = _Writers().of(kind)


_fresh: dict[int, _Fresh] = {}


def _fresh_of(kind: Kind) -> _Fresh:
    known = _fresh.get(id(kind))
    if known is None:
        known = _Fresh(kind)
        if len(_fresh) >= _MAX_WRITERS:
            del _fresh[next(iter(_fresh))]
        # The entry keeps the kind alive, so that its id means no other.
        _fresh[id(kind)] = known
    return known


def _prefix(kind: Kind, wire: int) -> bytes:
    return encode_int(wire) + (b"" if isinstance(kind, Struct) else b"\0")


class Encoder:
    """One gob stream: a descriptor goes out once, before the first value that needs it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._ids: dict[int, tuple[int, Kind]] = {}

    def add(self, kind: Kind, value: Any) -> "Encoder":
        """Append one value; returns itself."""
        fresh = _fresh_of(kind)
        prefix = fresh.prefix
        if not self._ids:
            self._ids = dict(fresh.ids)
            if fresh.definitions:
                self._parts.append(fresh.definitions)
        elif fresh.ids:
            prefix = _prefix(kind, _define(kind, self._ids, self._parts))
        self._parts.append(encode_bytes(prefix + fresh.write(value)))
        return self

    def done(self) -> bytes:
        """The whole stream."""
        return b"".join(self._parts)


def encode(kind: Kind, value: Any) -> bytes:
    """A stream of one value."""
    fresh = _fresh_of(kind)
    return fresh.definitions + encode_bytes(fresh.prefix + fresh.write(value))


def _define(kind: Kind, ids: dict[int, tuple[int, Kind]], parts: list[bytes]) -> int:
    """The kind's type id; definitions that the stream has not had yet are appended to `parts`."""
    if isinstance(kind, Basic):
        return kind.wire
    known = ids.get(id(kind))
    if known is not None:
        return known[0]
    wire = _FIRST_ID + len(ids)
    ids[id(kind)] = (wire, kind)
    match kind:
        case Struct():
            fields = [(field.name, _define(field.kind, ids, parts)) for field in kind.fields]
            body = b"\3" + _common(wire, kind.name) + _field_list(fields)
        case ListOf(element=element, length=None):
            body = b"\2" + _common(wire) + b"\1" + encode_int(_define(element, ids, parts))
        case ListOf(element=element, length=length):
            size = b"\1" + encode_int(length) if length else b""
            body = b"\1" + _common(wire) + b"\1" + encode_int(_define(element, ids, parts)) + size
        case MapOf(key=key, value=value):
            body = b"\4" + _common(wire) + b"\1" + encode_int(_define(key, ids, parts))
            body += b"\1" + encode_int(_define(value, ids, parts))
        case Opaque(tag=tag):
            body = bytes((tag + 1,)) + _common(wire)
    parts.append(encode_bytes(encode_int(-wire) + body + b"\0\0"))
    return wire


def _common(wire: int, name: str = "") -> bytes:
    """What every descriptor begins with: the type's name, if it has one, and its id."""
    named = b"\1" + encode_string(name) + b"\1" if name else b"\2"
    return b"\1" + named + encode_int(wire) + b"\0"


def _field_list(fields: list[tuple[str, int]]) -> bytes:
    if not fields:
        return b""
    listed = b"".join(b"\1" + encode_string(name) + b"\1" + encode_int(wire) + b"\0" for name, wire in fields)
    return b"\1" + encode_uint(len(fields)) + listed
