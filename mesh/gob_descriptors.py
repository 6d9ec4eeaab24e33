"""The type definitions of a gob stream, as they came: nothing resolved, everything bounded. Source: mesh spec §19.3."""

from collections.abc import Iterator
from enum import IntEnum

from mesh.gob_types import GobError
from mesh.gob_wire import Cursor, read_string

FIRST_USER_ID = 64
MAX_USER_ID = (1 << 31) - 1
# Types of one stream, and bytes of all its definitions (the largest of a real router have 600).
MAX_TYPES = 512
MAX_DEFINITIONS = 64 << 10


class Shape(IntEnum):
    """Which field of a wireType is set."""

    ARRAY = 0
    SLICE = 1
    STRUCT = 2
    MAP = 3
    GOB_ENCODER = 4
    BINARY_MARSHALER = 5
    TEXT_MARSHALER = 6


_COMMON = 0
_NAME, _ID = 0, 1
_FIELDS = 1
# Fields behind Common that hold a type id, and the one that holds a length.
_IDS = {Shape.ARRAY: (1,), Shape.SLICE: (1,), Shape.MAP: (1, 2)}
_LENGTH = {Shape.ARRAY: 2}


class Definition:
    """One type definition: its shape, the ids of its key and elements, an array's length, a struct's fields."""

    __slots__ = ("fields", "ids", "length", "name", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.name = ""
        self.ids: list[int] = []
        self.length = 0
        self.fields: list[tuple[str, int]] = []


def read_definition(cursor: Cursor) -> Definition:
    """The wireType value of a type definition. Raises GobError."""
    definition: Definition | None = None
    for number in _fields(cursor):
        if definition is not None or number > max(Shape):
            raise GobError("gob: malformed type definition")
        definition = Definition(Shape(number))
        _read_body(cursor, definition)
    if definition is None:
        raise GobError("gob: empty type definition")
    return definition


def _fields(cursor: Cursor) -> Iterator[int]:
    """Field numbers of a struct value, up to its end."""
    number = -1
    while delta := cursor.uint():
        number += delta
        yield number


def _read_body(cursor: Cursor, definition: Definition) -> None:
    shape = definition.shape
    id_fields = _IDS.get(shape, ())
    ids = dict.fromkeys(id_fields, 0)
    for number in _fields(cursor):
        if number == _COMMON:
            _read_common(cursor, definition)
        elif shape is Shape.STRUCT and number == _FIELDS:
            definition.fields = [_read_field(cursor) for _ in range(cursor.count())]
        elif number in ids:
            ids[number] = cursor.signed()
        elif number == _LENGTH.get(shape):
            definition.length = cursor.signed()
        else:
            raise GobError("gob: malformed type definition")
    definition.ids = list(ids.values())


def _read_common(cursor: Cursor, definition: Definition) -> None:
    """The name is kept for messages only; the id is the one of the definition itself, so it is ignored."""
    for number in _fields(cursor):
        if number == _NAME:
            definition.name = read_string(cursor)
        elif number == _ID:
            cursor.signed()
        else:
            raise GobError("gob: malformed type definition")


def _read_field(cursor: Cursor) -> tuple[str, int]:
    name, wire = "", 0
    for number in _fields(cursor):
        if number == _NAME:
            name = read_string(cursor)
        elif number == _ID:
            wire = cursor.signed()
        else:
            raise GobError("gob: malformed type definition")
    return name, wire
