"""The part of Go's gob encoding that Weave Net speaks: a tolerant decoder, a minimal encoder.

A stream carries its own type descriptors. The decoder builds a plan per (wanted kind, descriptors) once and keeps
it, so that the next message of the same sender is decoded without looking at its descriptors again. Sizes are
bounded by the bytes that are there, nesting by MAX_DEPTH; whatever is wrong with the bytes raises GobError.
Unknown fields are skipped, type ids are arbitrary, definitions may come in any order. Source: mesh spec §19.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any

from mesh.gob_types import (
    BOOL,
    BUILTIN,
    BYTES,
    COMPLEX,
    FLOAT,
    INT,
    INTERFACE,
    STRING,
    UINT,
    UINT8,
    UINT16,
    UINT32,
    Basic,
    GobError,
    Kind,
    ListOf,
    MapOf,
    Opaque,
    Struct,
    StructField,
    of,
    struct_of,
    zero_factory,
)

MAX_DEPTH = 100
MAX_TYPES = 512
FIRST_USER_ID = 64
MAX_USER_ID = (1 << 31) - 1
# Plans of others' descriptors that are remembered, and the size of descriptors that are worth it, in bytes.
_MAX_PLANS = 256
_MAX_PLANNED = 4096

Read = Callable[["Cursor"], Any]


class Cursor:
    """A position in a buffer. Reading past `end` raises GobError."""

    __slots__ = ("buffer", "depth", "end", "position", "stream")

    def __init__(self, buffer: bytes, stream: "Decoder | None" = None) -> None:
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

    def count(self) -> int:
        """A number of elements; each takes at least one byte."""
        count = self.uint()
        if count > self.end - self.position:
            raise GobError("gob: more elements than data")
        return count

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GobError("gob: values are nested too deeply")


# --- reading built-in values ---


def _read_bool(cursor: Cursor) -> bool:
    return cursor.uint() != 0


def _read_string(cursor: Cursor) -> str:
    return cursor.octets().decode("utf-8", "surrogateescape")


def _read_float(cursor: Cursor) -> float:
    value: float = struct.unpack("<d", cursor.uint().to_bytes(8, "big"))[0]
    return value


def _read_complex(cursor: Cursor) -> complex:
    return complex(_read_float(cursor), _read_float(cursor))


def _read_interface(cursor: Cursor) -> Any:
    name = cursor.octets()
    if not name:
        return None
    if cursor.stream is None:
        raise GobError("gob: interface value outside a stream")
    return cursor.stream.interface_value(cursor)


def _uint_reader(bits: int, what: str) -> Read:
    if bits == 64:
        return Cursor.uint
    limit = 1 << bits

    def read(cursor: Cursor) -> int:
        value = cursor.uint()
        if value >= limit:
            raise GobError(f'value for "{what}" out of range')
        return value

    return read


def _builtin_reader(kind: Basic, what: str) -> Read:
    if kind.wire == UINT.wire:
        return _uint_reader(kind.bits, what)
    return {
        BOOL.wire: _read_bool,
        INT.wire: Cursor.signed,
        FLOAT.wire: _read_float,
        BYTES.wire: Cursor.octets,
        STRING.wire: _read_string,
        COMPLEX.wire: _read_complex,
        INTERFACE.wire: _read_interface,
    }[kind.wire]


# --- descriptors ---


class _Definition:
    """One type definition as it came: which wireType field, element and key ids, struct fields."""

    __slots__ = ("fields", "ids", "length", "name", "tag")

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.name = ""
        self.ids: list[int] = []
        self.length = 0
        self.fields: list[tuple[str, int]] = []


def _struct_deltas(cursor: Cursor) -> Iterator[int]:
    """Field numbers of a struct value, up to its end."""
    number = -1
    while delta := cursor.uint():
        number += delta
        yield number


def _read_definition(cursor: Cursor) -> _Definition:
    definition: _Definition | None = None
    for tag in _struct_deltas(cursor):
        if definition is not None or tag > 6:
            raise GobError("gob: malformed type definition")
        definition = _Definition(tag)
        _read_definition_body(cursor, definition)
    if definition is None:
        raise GobError("gob: empty type definition")
    return definition


def _read_definition_body(cursor: Cursor, definition: _Definition) -> None:
    ids: dict[int, int] = {}
    for number in _struct_deltas(cursor):
        if number == 0:
            for common in _struct_deltas(cursor):
                if common == 0:
                    definition.name = _read_string(cursor)
                elif common == 1:
                    cursor.signed()
                else:
                    raise GobError("gob: malformed type definition")
        elif definition.tag == 2 and number == 1:
            definition.fields = [_read_field(cursor) for _ in range(cursor.count())]
        elif definition.tag in (0, 1, 3) and number <= 2:
            ids[number] = cursor.signed()
        else:
            raise GobError("gob: malformed type definition")
    if definition.tag == 0:
        definition.ids, definition.length = [ids.get(1, 0)], ids.get(2, 0)
    elif definition.tag == 1:
        definition.ids = [ids.get(1, 0)]
    elif definition.tag == 3:
        definition.ids = [ids.get(1, 0), ids.get(2, 0)]


def _read_field(cursor: Cursor) -> tuple[str, int]:
    name, kind = "", 0
    for number in _struct_deltas(cursor):
        if number == 0:
            name = _read_string(cursor)
        elif number == 1:
            kind = cursor.signed()
        else:
            raise GobError("gob: malformed type definition")
    return name, kind


# --- plans: how a wire type becomes a wanted kind ---


class _Planner:
    """Builds the reader of one (kind, wire type) from the definitions of a stream."""

    def __init__(self, types: dict[int, _Definition]) -> None:
        self._types = types
        self._kinds: dict[int, Kind] = {}
        self._under_way: dict[tuple[int, int], list[Read]] = {}

    def kind_of(self, wire: int) -> Kind:
        """The kind that takes a wire type as it is."""
        if wire in BUILTIN:
            return BUILTIN[wire]
        if wire in self._kinds:
            return self._kinds[wire]
        definition = self._definition(wire)
        if definition.tag == 2:
            # Registered before its fields are looked at: a type may contain itself.
            struct_kind = Struct(definition.name)
            self._kinds[wire] = struct_kind
            struct_kind.fields = [StructField(name, name, self.kind_of(id_)) for name, id_ in definition.fields]
            return struct_kind
        self._kinds[wire] = INTERFACE
        kind: Kind
        if definition.tag == 0:
            kind = ListOf(self.kind_of(definition.ids[0]), definition.length)
        elif definition.tag == 1:
            kind = ListOf(self.kind_of(definition.ids[0]))
        elif definition.tag == 3:
            kind = MapOf(self.kind_of(definition.ids[0]), self.kind_of(definition.ids[1]))
        else:
            kind = Opaque(definition.tag)
        self._kinds[wire] = kind
        return kind

    def _definition(self, wire: int) -> _Definition:
        definition = self._types.get(wire)
        if definition is None:
            raise GobError("gob: unknown type id or corrupted data")
        return definition

    def reader(self, kind: Kind, wire: int, what: str) -> Read:
        """The reader, or GobError where the wire's type cannot be read as `kind`."""
        if isinstance(kind, Basic):
            if wire != kind.wire:
                raise GobError(f"gob: wrong type ({kind.name}) for received field {what}")
            return _builtin_reader(kind, what)
        if wire in BUILTIN:
            raise GobError(f"gob: wrong type ({type(kind).__name__.lower()}) for received field {what}")
        key = (id(kind), wire)
        if key in self._under_way:
            # A recursive type: look the reader up when it is complete.
            slot = self._under_way[key]
            return lambda cursor: slot[0](cursor)
        slot = self._under_way[key] = []
        slot.append(self._compound(kind, wire, what))
        return slot[0]

    def _compound(self, kind: Kind, wire: int, what: str) -> Read:
        definition = self._definition(wire)
        match kind:
            case Struct():
                if definition.tag != 2:
                    raise GobError(f"gob: type mismatch in decoder: want struct type {kind.name}; got non-struct")
                return self._struct(kind, definition, what)
            case ListOf(element=element, length=length):
                if definition.tag != (1 if length is None else 0):
                    raise GobError(f"gob: wrong type (list) for received field {what}")
                return _list_reader(self.reader(element, definition.ids[0], what), length)
            case MapOf(key=key, value=value):
                if definition.tag != 3:
                    raise GobError(f"gob: wrong type (map) for received field {what}")
                return _map_reader(
                    self.reader(key, definition.ids[0], what), self.reader(value, definition.ids[1], what)
                )
        if definition.tag < 4:
            raise GobError(f"gob: wrong type (opaque) for received field {what}")
        return Cursor.octets

    def _struct(self, kind: Struct, definition: _Definition, what: str) -> Read:
        wanted = {declared.name: declared for declared in kind.fields}
        readers: list[tuple[str | None, Read]] = []
        matched = 0
        for name, wire in definition.fields:
            declared = wanted.get(name)
            if declared is None:
                readers.append((None, self.reader(self.kind_of(wire), wire, name)))
            else:
                matched += 1
                readers.append((declared.attribute, self.reader(declared.kind, wire, name)))
        if kind.fields and definition.fields and not matched:
            raise GobError(f"gob: type mismatch: no fields matched compiling decoder for {kind.name or what}")
        return _struct_reader(readers, kind.factory)


def _list_reader(element: Read, length: int | None) -> Read:
    def read(cursor: Cursor) -> list[Any]:
        count = cursor.count()
        if length is not None and count != length:
            raise GobError("gob: array length mismatch")
        cursor.enter()
        values = [element(cursor) for _ in range(count)]
        cursor.depth -= 1
        return values

    return read


def _map_reader(key: Read, value: Read) -> Read:
    def read(cursor: Cursor) -> Any:
        count = cursor.count()
        cursor.enter()
        pairs = [(key(cursor), value(cursor)) for _ in range(count)]
        cursor.depth -= 1
        try:
            return dict(pairs)
        except TypeError:
            return pairs

    return read


def _struct_reader(readers: list[tuple[str | None, Read]], factory: Callable[..., Any] | None) -> Read:
    last = len(readers)

    def read(cursor: Cursor) -> Any:
        cursor.enter()
        number = -1
        values: dict[str, Any] = {}
        while delta := cursor.uint():
            number += delta
            if number >= last:
                raise GobError("gob: field number out of range")
            attribute, reader = readers[number]
            value = reader(cursor)
            if attribute is not None:
                values[attribute] = value
        cursor.depth -= 1
        return values if factory is None else factory(**values)

    return read


_plans: dict[tuple[int, int, bytes], tuple[Kind, Read]] = {}


class Decoder:
    """One gob stream held in memory. `next(kind)` reads the next value; `at_end` says there is none."""

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._cursor = Cursor(self._data)
        self._types: dict[int, _Definition] = {}
        self._definitions = b""
        self._planned: dict[tuple[int, int], tuple[Kind, Read]] = {}

    def at_end(self) -> bool:
        """Whether no value follows. Raises GobError on bytes that are no stream."""
        return self._peek() is None

    def next(self, kind: Kind) -> Any:
        """The next value as `kind`; GobError where there is none or it is something else."""
        wire, cursor = self._value()
        if isinstance(kind, Struct) and wire in BUILTIN:
            raise GobError(f"gob: type mismatch in decoder: want struct type {kind.name}; got non-struct")
        return self._plan(kind, wire)(cursor)

    def next_any(self) -> tuple[Kind, Any]:
        """The next value and the kind it has by its own description; structs are dictionaries."""
        wire, cursor = self._value()
        planner = _Planner(self._types)
        kind = planner.kind_of(wire)
        return kind, planner.reader(kind, wire, "value")(cursor)

    def interface_value(self, cursor: Cursor) -> Any:
        """A value of a type that only the stream knows; its definition may end the current message."""
        while True:
            wire = cursor.signed()
            if wire >= 0:
                break
            self._define(-wire, cursor)
            if cursor.position < cursor.end:
                raise GobError("extra data in buffer")
            following = self._message()
            if following is None:
                raise GobError("gob: unexpected end of data")
            cursor.buffer, cursor.position, cursor.end = following.buffer, following.position, following.end
        body = Cursor(cursor.octets(), self)
        body.depth = cursor.depth + 1
        if body.depth > MAX_DEPTH:
            raise GobError("gob: values are nested too deeply")
        planner = _Planner(self._types)
        kind = planner.kind_of(wire)
        if not isinstance(kind, Struct):
            body.uint()
        return planner.reader(kind, wire, "interface")(body)

    def _plan(self, kind: Kind, wire: int) -> Read:
        if isinstance(kind, Basic):
            return _Planner(self._types).reader(kind, wire, kind.name)
        # A type is defined once in a stream, so a plan holds for the rest of it.
        plan = self._planned.get((id(kind), wire))
        if plan is None:
            plan = self._planned[id(kind), wire] = self._shared_plan(kind, wire)
        return plan[1]

    def _shared_plan(self, kind: Kind, wire: int) -> tuple[Kind, Read]:
        key = (id(kind), wire, self._definitions)
        plan = _plans.get(key)
        if plan is None:
            plan = (kind, _Planner(self._types).reader(kind, wire, "value"))
            if len(self._definitions) <= _MAX_PLANNED:
                if len(_plans) >= _MAX_PLANS:
                    del _plans[next(iter(_plans))]
                _plans[key] = plan
        return plan

    def _message(self) -> Cursor | None:
        """The next message; None at the end, which an empty message also is."""
        outer = self._cursor
        if outer.position >= outer.end:
            return None
        body = outer.octets()
        return Cursor(body, self) if body else None

    def _peek(self) -> tuple[int, Cursor] | None:
        """The next value's message, definitions before it taken in; it stays the next one."""
        while True:
            before = self._cursor.position
            cursor = self._message()
            if cursor is None:
                self._cursor.position = before
                return None
            wire = cursor.signed()
            if wire >= 0:
                self._cursor.position = before
                return wire, cursor
            start = self._cursor.position - cursor.end
            self._define(-wire, cursor)
            if cursor.position < cursor.end:
                raise GobError("extra data in buffer")
            self._definitions += self._data[start : self._cursor.position]

    def _value(self) -> tuple[int, Cursor]:
        found = self._peek()
        if found is None:
            raise GobError("EOF")
        self._message()
        wire, cursor = found
        definition = self._types.get(wire)
        if wire not in BUILTIN and definition is None:
            raise GobError("gob: unknown type id or corrupted data")
        if (definition is None or definition.tag != 2) and cursor.uint() != 0:
            raise GobError("gob: decode: corrupted data: non-zero delta for singleton")
        return wire, cursor

    def _define(self, wire: int, cursor: Cursor) -> None:
        if not FIRST_USER_ID <= wire <= MAX_USER_ID or wire in self._types:
            raise GobError("gob: duplicate type received")
        if len(self._types) >= MAX_TYPES:
            raise GobError("gob: too many types")
        self._types[wire] = _read_definition(cursor)


def decode(data: bytes, kind: Kind) -> Any:
    """The first value of a stream. Raises GobError."""
    return Decoder(data).next(kind)


# --- encoding ---


def encode_uint(value: int) -> bytes:
    """A value below 128 is itself, another its length complemented and its big-endian bytes."""
    if value < 128:
        return bytes((value,))
    size = (value.bit_length() + 7) // 8
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


def _encode_float(value: float) -> bytes:
    return encode_uint(int.from_bytes(struct.pack("<d", value), "big"))


class Encoder:
    """One gob stream: a descriptor goes out once, before the first value that needs it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._ids: dict[int, tuple[int, Kind]] = {}

    def add(self, kind: Kind, value: Any) -> "Encoder":
        """Append one value; returns itself."""
        wire = self._wire(kind)
        marker = b"" if isinstance(kind, Struct) else b"\0"
        self._put(encode_int(wire) + marker + self._value(kind, value))
        return self

    def done(self) -> bytes:
        """The whole stream."""
        return b"".join(self._parts)

    def _put(self, body: bytes) -> None:
        self._parts.append(encode_bytes(body))

    def _wire(self, kind: Kind) -> int:
        if isinstance(kind, Basic):
            return kind.wire
        known = self._ids.get(id(kind))
        if known is not None:
            return known[0]
        wire = FIRST_USER_ID + 1 + len(self._ids)
        self._ids[id(kind)] = (wire, kind)
        match kind:
            case Struct():
                fields = [(declared.name, self._wire(declared.kind)) for declared in kind.fields]
                listed = b"".join(_delta_string(1, name) + b"\1" + encode_int(id_) + b"\0" for name, id_ in fields)
                common = b"\1" + (_delta_string(1, kind.name) + b"\1" if kind.name else b"\2")
                tail = b"\1" + encode_uint(len(fields)) + listed if fields else b""
                body = b"\3" + common + encode_int(wire) + b"\0" + tail
            case ListOf(element=element, length=None):
                body = b"\2" + self._common(wire) + b"\1" + encode_int(self._wire(element))
            case ListOf(element=element, length=length):
                size = b"\1" + encode_int(length or 0) if length else b""
                body = b"\1" + self._common(wire) + b"\1" + encode_int(self._wire(element)) + size
            case MapOf(key=key, value=value):
                body = b"\4" + self._common(wire) + b"\1" + encode_int(self._wire(key))
                body += b"\1" + encode_int(self._wire(value))
            case Opaque(tag=tag):
                body = bytes((tag + 1,)) + self._common(wire)
        self._put(encode_int(-wire) + body + b"\0\0")
        return wire

    @staticmethod
    def _common(wire: int) -> bytes:
        return b"\1\2" + encode_int(wire) + b"\0"

    def _value(self, kind: Kind, value: Any) -> bytes:
        match kind:
            case Basic():
                return _ENCODE[kind.wire](value)
            case ListOf(element=element):
                return encode_uint(len(value)) + b"".join(self._value(element, item) for item in value)
            case MapOf(key=key, value=item):
                pairs = value.items() if isinstance(value, dict) else value
                parts = [self._value(key, k) + self._value(item, v) for k, v in pairs]
                return encode_uint(len(parts)) + b"".join(parts)
            case Opaque():
                return encode_bytes(value)
            case Struct():
                return self._struct(kind, value)

    def _struct(self, kind: Struct, value: Any) -> bytes:
        parts = []
        last = -1
        for number, declared in enumerate(kind.fields):
            if kind.factory is None:
                # A dictionary holds what is there: no more is sent, and no less.
                if declared.attribute not in value:
                    continue
                item = value[declared.attribute]
            else:
                item = getattr(value, declared.attribute)
                if _omitted(declared, item):
                    continue
            if item is None:
                item = zero_factory(declared.kind)()
            parts.append(encode_uint(number - last) + self._value(declared.kind, item))
            last = number
        return b"".join(parts) + b"\0"


def _omitted(declared: StructField, item: Any) -> bool:
    """Zero scalars and empty slices are not sent; nested structs, arrays and maps that exist are."""
    if isinstance(declared.kind, Struct):
        return declared.optional and item is None
    if isinstance(declared.kind, MapOf):
        return item is None or (not declared.optional and not item)
    if isinstance(declared.kind, ListOf) and declared.kind.length is not None:
        return False
    return not item


def _delta_string(delta: int, text: str) -> bytes:
    return bytes((delta,)) + encode_string(text)


_ENCODE: dict[int, Callable[[Any], bytes]] = {
    BOOL.wire: lambda value: b"\1" if value else b"\0",
    INT.wire: encode_int,
    UINT.wire: encode_uint,
    FLOAT.wire: _encode_float,
    BYTES.wire: encode_bytes,
    STRING.wire: encode_string,
    COMPLEX.wire: lambda value: _encode_float(value.real) + _encode_float(value.imag),
}


def encode(kind: Kind, value: Any) -> bytes:
    """A stream of one value."""
    return Encoder().add(kind, value).done()


__all__ = [
    "BOOL",
    "BYTES",
    "COMPLEX",
    "FLOAT",
    "INT",
    "INTERFACE",
    "MAX_DEPTH",
    "STRING",
    "UINT",
    "UINT8",
    "UINT16",
    "UINT32",
    "Basic",
    "Cursor",
    "Decoder",
    "Encoder",
    "GobError",
    "Kind",
    "ListOf",
    "MapOf",
    "Opaque",
    "Struct",
    "StructField",
    "decode",
    "encode",
    "encode_bytes",
    "encode_int",
    "encode_string",
    "encode_uint",
    "of",
    "struct_of",
]  # fmt: skip
