"""What the courier sends and what it is answered: bytes of a unix socket, and of the files that wait in the spool.

A request is a header, the variables CNI_* each ended by a zero byte, and the network configuration; the descriptor of
the pod's namespace comes with its first byte. An answer is a header, then standard output, then notes for standard
error. Both sides are of one machine, so numbers are in its order. `courier.c` is the other half.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

# No request of HTTP begins with a zero byte: one socket serves both.
MAGIC = b"\0CNI"
_VERSION = 1
_HEADER = struct.Struct("=4sHHiII")
_ANSWER = struct.Struct("=III")
HEADER_SIZE = _HEADER.size
MAX_ENVIRONMENT = 64 << 10
MAX_INPUT = 1 << 20
MAX_REQUEST = HEADER_SIZE + MAX_ENVIRONMENT + MAX_INPUT
MAX_ANSWER = 1 << 20
_NO_NAMESPACE = -1
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


class WireError(Exception):
    """Bytes that are no request."""


class Role(IntEnum):
    """By which name the plugin was called."""

    NET = 0
    IPAM = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the plugin. `namespace` is the descriptor that came along, None where none did.

    `obstacle` says why the namespace that was named could not be opened; empty if it could, or none was named.
    """

    role: Role
    environment: Mapping[str, str]
    configuration: bytes
    namespace: int | None = None
    obstacle: str = ""

    def variable(self, name: str) -> str:
        """A variable, empty where it is not set."""
        return self.environment.get(f"CNI_{name}", "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the plugin prints and how it ends."""

    output: bytes = b""
    notes: tuple[str, ...] = field(default=())
    status: int = 0

    def encode(self) -> bytes:
        """The answer's bytes; what is too long for the courier is cut."""
        output = self.output[:MAX_ANSWER]
        notes = "".join(f"weave-cni: {note}\n" for note in self.notes).encode()[:MAX_ANSWER]
        return _ANSWER.pack(self.status, len(output), len(notes)) + output + notes


def decode_answer(data: bytes) -> tuple[int, bytes, bytes]:
    """Status, output and notes of an answer. Raises WireError."""
    if len(data) < _ANSWER.size:
        raise WireError("an answer is cut off")
    status, output, notes = _ANSWER.unpack_from(data)
    body = data[_ANSWER.size :]
    if len(body) != output + notes:
        raise WireError("an answer has another size than it says")
    return status, body[:output], body[output:]


def request_size(header: bytes) -> int:
    """The size of the whole request that begins with this header. Raises WireError."""
    magic, version, role, _, environment, configuration = _HEADER.unpack(header)
    if magic != MAGIC or version != _VERSION:
        raise WireError(f"not a request of the courier, or of another version than {_VERSION}")
    if role not in (Role.NET, Role.IPAM):
        raise WireError(f"no role {role}")
    if environment > MAX_ENVIRONMENT or configuration > MAX_INPUT:
        raise WireError("a request is too long")
    return int(HEADER_SIZE + environment + configuration)


def decode_request(data: bytes, namespace: int | None = None) -> Request:
    """A whole request. Raises WireError."""
    if len(data) < HEADER_SIZE or len(data) != request_size(data[:HEADER_SIZE]):
        raise WireError("a request has another size than it says")
    _, _, role, error, size, _ = _HEADER.unpack_from(data)
    body = data[HEADER_SIZE : HEADER_SIZE + size]
    if body and not body.endswith(b"\0"):
        raise WireError("the variables of a request are cut off")
    environment = {}
    for entry in body.split(b"\0")[:-1]:
        name, equals, value = entry.decode(errors="replace").partition("=")
        if not equals:
            raise WireError("a variable without a value")
        environment[name] = value
    obstacle = os.strerror(error).lower() if error > 0 else ""
    return Request(Role(role), environment, data[HEADER_SIZE + size :], namespace, obstacle)


def encode_request(request: Request) -> bytes:
    """A request as the courier would send it, without a namespace."""
    body = b"".join(f"{name}={value}\0".encode() for name, value in request.environment.items())
    sizes = (len(body), len(request.configuration))
    return _HEADER.pack(MAGIC, _VERSION, request.role, _NO_NAMESPACE, *sizes) + body + request.configuration


def spool_name(role: Role, container: str, interface: str) -> str:
    """The file in which the release of an interface waits: FNV-1a of 64 bits, as the courier computes it."""
    value = _FNV_OFFSET
    for part in (f"weave-{role.name.lower()}", container, interface):
        for byte in part.encode() + b"\0":
            value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"
