"""The part of Go's gob encoding that Weave Net speaks: a tolerant decoder, a minimal encoder.

Kinds and declared dataclasses are in `gob_types`, streams in in `gob_decoder`, streams out in `gob_encoder`, integers
and lengths in `gob_wire`; users need this module only. A stream carries its own type descriptors, of any ids and in
any order; fields are matched by name, unknown ones skipped. Whatever is wrong with the bytes raises GobError, and
time and memory are bounded by the size of the data. Source: mesh spec §19.
"""

from mesh.gob_decoder import Decoder, decode, is_definition
from mesh.gob_encoder import Encoder, encode
from mesh.gob_types import (
    BOOL,
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
)
from mesh.gob_wire import MAX_DEPTH, Cursor, encode_bytes, encode_int, encode_string, encode_uint

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
    "is_definition",
    "of",
    "struct_of",
]
