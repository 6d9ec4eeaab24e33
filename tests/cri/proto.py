"""The few messages of the Container Runtime Interface v1 that tests need, as protobuf bytes.

A message is written as a list of fields (number, value): numbers are varints, texts and messages have a length. It is
read as a dictionary of field numbers to all their values. Source: cri-api, runtime/v1/api.proto; protobuf's encoding.
"""

from collections.abc import Iterable

Field = tuple[int, "int | str | bytes"]
_VARINT, _LENGTH = 0, 2


def message(fields: Iterable[Field]) -> bytes:
    """The bytes of a message; what is zero or empty is left out, as protobuf does."""
    made = bytearray()
    for number, value in fields:
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, int) and value:
            made += _varint(number << 3 | _VARINT) + _varint(value)
        elif isinstance(value, bytes) and value:
            made += _varint(number << 3 | _LENGTH) + _varint(len(value)) + value
    return bytes(made)


def fields(data: bytes) -> dict[int, list[int | bytes]]:
    """The values of a message's fields, by number."""
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        key, at = _read(data, at)
        value: int | bytes
        value, at = _read(data, at)
        if key & 7 == _LENGTH:
            size, value = value, data[at : at + value]
            at += size
        elif key & 7 != _VARINT:
            raise ValueError(f"wire type {key & 7} is not expected")
        found.setdefault(key >> 3, []).append(value)
    return found


def text(values: dict[int, list[int | bytes]], number: int) -> str:
    """A text field, empty where it is missing."""
    value = values.get(number, [b""])[0]
    assert isinstance(value, bytes)
    return value.decode()


def within(values: dict[int, list[int | bytes]], number: int) -> dict[int, list[int | bytes]]:
    """A message in a field."""
    value = values.get(number, [b""])[0]
    assert isinstance(value, bytes)
    return fields(value)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
