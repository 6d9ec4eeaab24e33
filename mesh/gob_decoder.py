"""Gob streams in: how a stream's own types become the kinds that are wanted.

A plan, which is a function that reads one value, is made once for each (wanted kind, type id, definitions) and kept
for the next stream with the same definitions. What is unknown is skipped by its description alone, which is looked
up when such a value comes: a type may contain itself, and may be defined after the types that use it.
Source: mesh spec §19.4, §19.6.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mesh.gob_descriptors import (
    FIRST_USER_ID,
    MAX_DEFINITIONS,
    MAX_TYPES,
    MAX_USER_ID,
    Definition,
    Shape,
    read_definition,
)
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
    Basic,
    GobError,
    Kind,
    ListOf,
    MapOf,
    Opaque,
    Struct,
    StructField,
)
from mesh.gob_wire import MAX_DEPTH, Cursor, read_bool, read_complex, read_float, read_string

# Plans of others' descriptors that are remembered, and the size of descriptors that are worth it, in bytes.
_MAX_PLANS = 256
_MAX_PLANNED = 4096

Read = Callable[[Cursor], Any]
Types = Mapping[int, Definition]


def _read_interface(cursor: Cursor) -> Any:
    """None, or the value itself: its concrete name says nothing to us."""
    name = cursor.octets()
    if not name:
        return None
    if cursor.stream is None:
        raise GobError("gob: interface value outside a stream")
    return cursor.stream.interface_value(cursor)


_READ: Mapping[int, Read] = {
    BOOL.wire: read_bool,
    INT.wire: Cursor.signed,
    UINT.wire: Cursor.uint,
    FLOAT.wire: read_float,
    BYTES.wire: Cursor.octets,
    STRING.wire: read_string,
    COMPLEX.wire: read_complex,
    INTERFACE.wire: _read_interface,
}


def _skip_complex(cursor: Cursor) -> None:
    cursor.uint()
    cursor.uint()


_SKIP: Mapping[int, Read] = {
    **dict.fromkeys((BOOL.wire, INT.wire, UINT.wire, FLOAT.wire), Cursor.uint),
    BYTES.wire: Cursor.skip_octets,
    STRING.wire: Cursor.skip_octets,
    COMPLEX.wire: _skip_complex,
    INTERFACE.wire: _read_interface,
}


def _builtin_reader(kind: Basic, what: str) -> Read:
    if kind.wire != UINT.wire or kind.bits == 64:
        return _READ[kind.wire]
    limit = 1 << kind.bits

    def read(cursor: Cursor) -> int:
        value = cursor.uint()
        if value >= limit:
            raise GobError(f'value for "{what}" out of range')
        return value

    return read


def _described(types: Types, wire: int) -> Definition:
    definition = types.get(wire)
    if definition is None:
        raise GobError("gob: unknown type id or corrupted data")
    return definition


# --- skipping ---


class _Skippers:
    """Passes over values nobody wants. Types are looked up when their values come, one level at a time."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._made: dict[int, Read] = dict(_SKIP)

    def of(self, wire: int) -> Read:
        skip = self._made.get(wire)
        if skip is None:
            skip = self._made[wire] = self._make(_described(self._types, wire))
        return skip

    def _make(self, definition: Definition) -> Read:
        if definition.shape is Shape.STRUCT:
            return self._struct([wire for _, wire in definition.fields])
        if definition.shape > Shape.MAP:
            return Cursor.skip_octets
        return self._elements(definition.ids, definition.length if definition.shape is Shape.ARRAY else None)

    def _struct(self, fields: list[int]) -> Read:
        def skip(cursor: Cursor) -> None:
            cursor.enter()
            number = -1
            while delta := cursor.uint():
                number += delta
                if number >= len(fields):
                    raise GobError("gob: field number out of range")
                self.of(fields[number])(cursor)
            cursor.depth -= 1

        return skip

    def _elements(self, wires: list[int], length: int | None) -> Read:
        def skip(cursor: Cursor) -> None:
            count = cursor.count()
            if length is not None and count != length:
                raise GobError("gob: array length mismatch")
            cursor.enter()
            if count:
                skips = [self.of(wire) for wire in wires]
                for _ in range(count):
                    for element in skips:
                        element(cursor)
            cursor.depth -= 1

        return skip


# --- plans ---


class _Planner:
    """Makes the readers of wanted kinds from the definitions of a stream."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._kinds: dict[int, Kind] = {}
        self._made: dict[tuple[int, int], list[Read]] = {}
        self._skippers = _Skippers(types)

    def kind_of(self, wire: int, depth: int = 0) -> Kind:
        """The kind that takes a wire type as it is; GobError where the type is too deep, or a list of itself."""
        if wire in BUILTIN:
            return BUILTIN[wire]
        if wire in self._kinds:
            return self._kinds[wire]
        if depth > MAX_DEPTH:
            raise GobError("gob: types are nested too deeply")
        definition = _described(self._types, wire)
        if definition.shape is Shape.STRUCT:
            # Registered before its fields are looked at: a type may contain itself.
            struct = self._kinds[wire] = Struct(definition.name)
            for name, field_wire in definition.fields:
                struct.fields.append(StructField(name, name, self.kind_of(field_wire, depth + 1)))
            return struct
        # A list that contains itself without a struct between fails on this when it is read.
        self._kinds[wire] = INTERFACE
        inner = [self.kind_of(id_, depth + 1) for id_ in definition.ids]
        kind: Kind
        match definition.shape:
            case Shape.ARRAY:
                kind = ListOf(inner[0], definition.length)
            case Shape.SLICE:
                kind = ListOf(inner[0])
            case Shape.MAP:
                kind = MapOf(inner[0], inner[1])
            case shape:
                kind = Opaque(shape)
        self._kinds[wire] = kind
        return kind

    def reader(self, kind: Kind, wire: int, what: str) -> Read:
        """The reader, or GobError where the wire's type cannot be read as `kind`."""
        if isinstance(kind, Basic):
            if wire != kind.wire:
                raise GobError(f"gob: wrong type ({kind.name}) for received field {what}")
            return _builtin_reader(kind, what)
        if wire in BUILTIN:
            raise GobError(f"gob: wrong type ({type(kind).__name__.lower()}) for received field {what}")
        slot = self._made.get((id(kind), wire))
        if slot is None:
            slot = self._made[id(kind), wire] = []
            slot.append(self._compound(kind, wire, what))
        elif not slot:
            # A recursive type: its reader is looked up when it is complete.
            under_way = slot
            return lambda cursor: under_way[0](cursor)
        return slot[0]

    def _compound(self, kind: Kind, wire: int, what: str) -> Read:
        definition = _described(self._types, wire)
        match kind:
            case Struct():
                if definition.shape is not Shape.STRUCT:
                    raise GobError(f"gob: type mismatch in decoder: want struct type {kind.name}; got non-struct")
                return self._struct(kind, definition, what)
            case ListOf(element=element, length=length):
                if definition.shape is not (Shape.SLICE if length is None else Shape.ARRAY):
                    raise GobError(f"gob: wrong type (list) for received field {what}")
                return _list_reader(self.reader(element, definition.ids[0], what), length)
            case MapOf(key=key, value=value):
                if definition.shape is not Shape.MAP:
                    raise GobError(f"gob: wrong type (map) for received field {what}")
                readers = [self.reader(k, id_, what) for k, id_ in zip((key, value), definition.ids, strict=True)]
                return _map_reader(*readers)
        if definition.shape <= Shape.MAP:
            raise GobError(f"gob: wrong type (opaque) for received field {what}")
        return Cursor.octets

    def _struct(self, kind: Struct, definition: Definition, what: str) -> Read:
        wanted = {field.name: field for field in kind.fields}
        steps: list[tuple[str | None, Read]] = []
        matched = False
        for name, wire in definition.fields:
            field = wanted.get(name)
            if field is not None:
                matched = True
                steps.append((field.attribute, self.reader(field.kind, wire, name)))
            else:
                steps.append((None, self._skipper(wire)))
        if kind.fields and definition.fields and not matched:
            raise GobError(f"gob: type mismatch: no fields matched compiling decoder for {kind.name or what}")
        return _struct_reader(steps, kind.factory)

    def _skipper(self, wire: int) -> Read:
        if wire in BUILTIN:
            return _SKIP[wire]
        _described(self._types, wire)
        return lambda cursor: self._skippers.of(wire)(cursor)


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
            # Keys of a kind that Python cannot hash.
            return pairs

    return read


def _struct_reader(steps: list[tuple[str | None, Read]], factory: Callable[..., Any] | None) -> Read:
    last = len(steps)

    def read(cursor: Cursor) -> Any:
        cursor.enter()
        number = -1
        values: dict[str, Any] = {}
        while delta := cursor.uint():
            number += delta
            if number >= last:
                raise GobError("gob: field number out of range")
            attribute, reader = steps[number]
            value = reader(cursor)
            if attribute is not None:
                values[attribute] = value
        cursor.depth -= 1
        return values if factory is None else factory(**values)

    return read


_plans: dict[tuple[int, int, bytes], tuple[Kind, Read]] = {}


# --- streams ---


class Decoder:
    """One gob stream held in memory. `next(kind)` reads the next value; `at_end` says there is none."""

    def __init__(self, data: bytes) -> None:
        self.elements = 0
        self._cursor = Cursor(bytes(data))
        self._types: dict[int, Definition] = {}
        # The definitions' bytes say what a plan was made from, unless some came inside an interface value.
        self._definitions: list[bytes] = []
        self._definitions_size = 0
        self._shareable = True
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
            self._shareable = False
            self._define(-wire, cursor)
            following = self._message()
            if following is None:
                raise GobError("gob: unexpected end of data")
            cursor.buffer, cursor.position, cursor.end = following.buffer, following.position, following.end
        body = Cursor(cursor.octets(), self)
        body.depth = cursor.depth
        body.enter()
        planner = _Planner(self._types)
        kind = planner.kind_of(wire)
        if not isinstance(kind, Struct):
            body.uint()
        return planner.reader(kind, wire, "interface")(body)

    def _plan(self, kind: Kind, wire: int) -> Read:
        if isinstance(kind, Basic):
            if wire != kind.wire:
                raise GobError(f"gob: wrong type ({kind.name}) for received value")
            return _builtin_reader(kind, kind.name)
        # A type is defined once in a stream, so a plan holds for the rest of it.
        plan = self._planned.get((id(kind), wire))
        if plan is None:
            plan = self._planned[id(kind), wire] = self._shared_plan(kind, wire)
        return plan[1]

    def _shared_plan(self, kind: Kind, wire: int) -> tuple[Kind, Read]:
        key = (id(kind), wire, b"".join(self._definitions))
        plan = _plans.get(key) if self._shareable else None
        if plan is None:
            # A copy: what this stream defines later is no business of the next one with this plan.
            plan = (kind, _Planner(dict(self._types)).reader(kind, wire, "value"))
            if self._shareable and self._definitions_size <= _MAX_PLANNED:
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
            self._define(-wire, cursor)
            self._definitions.append(self._cursor.buffer[before : self._cursor.position])

    def _value(self) -> tuple[int, Cursor]:
        found = self._peek()
        if found is None:
            raise GobError("EOF")
        self._message()
        wire, cursor = found
        definition = self._types.get(wire)
        if wire not in BUILTIN and definition is None:
            raise GobError("gob: unknown type id or corrupted data")
        if (definition is None or definition.shape is not Shape.STRUCT) and cursor.uint() != 0:
            raise GobError("gob: decode: corrupted data: non-zero delta for singleton")
        return wire, cursor

    def _define(self, wire: int, cursor: Cursor) -> None:
        """Take in a definition, which is alone in its message."""
        if not FIRST_USER_ID <= wire <= MAX_USER_ID or wire in self._types:
            raise GobError("gob: duplicate type received")
        self._definitions_size += cursor.end
        if len(self._types) >= MAX_TYPES or self._definitions_size > MAX_DEFINITIONS:
            raise GobError("gob: too many types")
        self._types[wire] = read_definition(cursor)
        if cursor.position < cursor.end:
            raise GobError("extra data in buffer")


def decode(data: bytes, kind: Kind) -> Any:
    """The first value of a stream. Raises GobError."""
    return Decoder(data).next(kind)


def is_definition(message: bytes) -> bool:
    """Whether a whole message of a stream is a type definition, not a value. Raises GobError."""
    cursor = Cursor(message)
    cursor.uint()
    return cursor.signed() < 0
