"""What gob values look like on our side: kinds, and dataclasses that say which wire field each attribute is.

A kind describes a value as we want it (a u16, a list of structs); the wire describes it again in its own
descriptors, and `mesh/gob.py` matches the two by field name. Source: mesh spec §19.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import ProtocolError


class GobError(ProtocolError):
    """Bytes that are not gob, or not the gob that was asked for."""


@dataclass(frozen=True, slots=True)
class Basic:
    """A built-in type. `bits` bounds integers; `wire` is the type's id."""

    name: str
    wire: int
    bits: int = 64


BOOL = Basic("bool", 1)
INT = Basic("int", 2)
UINT = Basic("uint", 3)
UINT8 = Basic("uint", 3, 8)
UINT16 = Basic("uint", 3, 16)
UINT32 = Basic("uint", 3, 32)
FLOAT = Basic("float", 4)
BYTES = Basic("bytes", 5)
STRING = Basic("string", 6)
COMPLEX = Basic("complex", 7)
INTERFACE = Basic("interface", 8)
BUILTIN: Mapping[int, Basic] = {b.wire: b for b in (BOOL, INT, UINT, FLOAT, BYTES, STRING, COMPLEX, INTERFACE)}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A slice: a Python list. With `length`, an array of exactly that many."""

    element: "Kind"
    length: int | None = None


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map: a Python dict, or a list of pairs where keys cannot be hashed."""

    key: "Kind"
    value: "Kind"


@dataclass(frozen=True, slots=True)
class Opaque:
    """A type with its own encoding: its bytes. `tag` is the wireType field (4 gob, 5 binary, 6 text)."""

    tag: int = 4


@dataclass(slots=True)
class StructField:
    """One field: its wire name, our attribute, its kind."""

    name: str
    attribute: str
    kind: "Kind"
    optional: bool = False


@dataclass(slots=True, eq=False)
class Struct:
    """A struct: instances of `factory` (keyword arguments), or dictionaries of the fields present."""

    name: str
    fields: list[StructField] = field(default_factory=list)
    factory: Callable[..., Any] | None = None


Kind = Basic | ListOf | MapOf | Opaque | Struct


def of(name: str, kind: Kind, default: Any = dataclasses.MISSING, *, optional: bool = False) -> Any:
    """A dataclass field that travels as `name`. `optional`: None is sent as "not there" (a nil pointer or map)."""
    metadata = {"gob": (name, kind, optional)}
    if optional:
        return dataclasses.field(default=None, metadata=metadata)
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(default_factory=zero_factory(kind), metadata=metadata)


def struct_of(name: str, record: type) -> Struct:
    """The kind of a dataclass whose fields were declared with `of`."""
    fields = []
    for declared in dataclasses.fields(record):
        wire_name, kind, optional = declared.metadata["gob"]
        fields.append(StructField(wire_name, declared.name, kind, optional))
    return Struct(name, fields, record)


def zero_factory(kind: Kind) -> Callable[[], Any]:
    """Makes the value that is not sent."""
    match kind:
        case Basic():
            zero = {1: False, 4: 0.0, 5: b"", 6: "", 7: 0j, 8: None}.get(kind.wire, 0)
            return lambda: zero
        case ListOf(length=None):
            return list
        case ListOf(element=element, length=length):
            return lambda: [zero_factory(element)() for _ in range(length or 0)]
        case MapOf():
            return dict
        case Opaque():
            return bytes
        case Struct(factory=None):
            return dict
        case Struct(factory=factory):
            assert factory is not None
            return factory
