"""bpf(2) as this project uses it: maps, programs, and finding again what another process loaded.

Every call is one system call through libc; attributes are packed here and nowhere else. Descriptors are closed on
exec by the kernel's own doing. Source: bpf(2), <linux/bpf.h>.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from enum import IntEnum

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_LOG_SIZE = 1 << 18
_NAME_SIZE = 15
_U32 = struct.Struct("=I")
_MAP_CREATE = struct.Struct("=IIIII II 16s")
_ELEMENT = struct.Struct("=I4xQQQ")
_PROG_LOAD = struct.Struct("=IIQQIIQII 16s")
_INFO_BY_FD = struct.Struct("=IIQ")
_MAP_INFO = struct.Struct("=IIIIII16s")
_PROG_INFO = struct.Struct("=II8sIIQQQIIQ16s")
_MAX_MAPS = 64


class MapType(IntEnum):
    """Kinds of maps."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    QUEUE = 22


class _Command(IntEnum):
    MAP_CREATE = 0
    LOOKUP = 1
    UPDATE = 2
    DELETE = 3
    NEXT_KEY = 4
    PROG_LOAD = 5
    PROG_FD_BY_ID = 13
    MAP_FD_BY_ID = 14
    INFO_BY_FD = 15
    LOOKUP_AND_DELETE = 21


class BpfError(OSError):
    """The kernel refused; the text says what, and of a program the verifier's last words."""


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What a map is, sizes in bytes."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A loaded program: `tag` tells its instructions from others', `map_ids` the maps it uses."""

    name: str
    tag: bytes
    map_ids: tuple[int, ...]


_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: _Command, attributes: "ctypes.Array[ctypes.c_char] | bytes") -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise BpfError(errno.ENOSYS, f"no bpf(2) known for {platform.machine()}")
    buffer = (
        ctypes.create_string_buffer(bytes(attributes), len(attributes)) if isinstance(attributes, bytes) else attributes
    )
    result = int(_libc.syscall(number, int(command), buffer, len(buffer)))
    if result < 0:
        code = ctypes.get_errno()
        raise BpfError(code, os.strerror(code))
    return result


def _name(text: str) -> bytes:
    return text.encode()[:_NAME_SIZE]


class Map:
    """One map by its descriptor. Keys and values are bytes of the map's sizes; errors are BpfError."""

    __slots__ = ("_key", "_value", "descriptor", "info")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.info = _map_info(descriptor)
        size = self.info.value_size
        if self.info.kind == MapType.PERCPU_ARRAY:
            size = (size + 7) // 8 * 8 * possible_cpus()
        self._key = ctypes.create_string_buffer(max(self.info.key_size, 1))
        self._value = ctypes.create_string_buffer(size)

    @classmethod
    def create(cls, info: MapInfo) -> "Map":
        """A new map. Raises BpfError."""
        attributes = _MAP_CREATE.pack(
            info.kind, info.key_size, info.value_size, info.max_entries, info.flags, 0, 0, _name(info.name)
        )
        return cls(_call(_Command.MAP_CREATE, attributes))

    def get(self, key: bytes) -> bytes | None:
        """A value, None where there is none. Of a per-CPU map the values of all CPUs, one behind the other."""
        self._key.raw = key.ljust(len(self._key), b"\0")
        return self._take(_Command.LOOKUP)

    def pop(self) -> bytes | None:
        """The oldest value of a queue, None where it is empty."""
        return self._take(_Command.LOOKUP_AND_DELETE)

    def _take(self, command: _Command) -> bytes | None:
        key = 0 if self.info.key_size == 0 else ctypes.addressof(self._key)
        try:
            _call(command, _ELEMENT.pack(self.descriptor, key, ctypes.addressof(self._value), 0))
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Write a value, in place of another if there is one."""
        self._key.raw = key
        self._value.raw = value
        attributes = _ELEMENT.pack(self.descriptor, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        _call(_Command.UPDATE, attributes)

    def delete(self, key: bytes) -> None:
        """Remove a value; nothing happens where there is none."""
        self._key.raw = key
        try:
            _call(_Command.DELETE, _ELEMENT.pack(self.descriptor, ctypes.addressof(self._key), 0, 0))
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise

    def all_keys(self) -> list[bytes]:
        """All keys now; those that come or go meanwhile may be missed."""
        return self.first_keys(self.info.max_entries)

    def first_keys(self, limit: int) -> list[bytes]:
        """Some keys, so many at most."""
        found: list[bytes] = []
        following = ctypes.create_string_buffer(self.info.key_size)
        current = 0
        while len(found) < limit:
            try:
                _call(_Command.NEXT_KEY, _ELEMENT.pack(self.descriptor, current, ctypes.addressof(following), 0))
            except BpfError as error:
                if error.errno == errno.ENOENT:
                    break
                raise
            found.append(following.raw)
            self._key.raw = following.raw
            current = ctypes.addressof(self._key)
        return found

    def close(self) -> None:
        """Let go of the map; it stays for as long as a program uses it."""
        os.close(self.descriptor)


def _map_info(descriptor: int) -> MapInfo:
    kind, _, key_size, value_size, max_entries, flags, name = _MAP_INFO.unpack_from(_info(descriptor, 88))
    return MapInfo(kind, key_size, value_size, max_entries, flags, name.rstrip(b"\0").decode())


def _info(descriptor: int, size: int, content: bytes = b"") -> bytes:
    buffer = ctypes.create_string_buffer(content, size)
    _call(_Command.INFO_BY_FD, _INFO_BY_FD.pack(descriptor, size, ctypes.addressof(buffer)))
    return buffer.raw


def map_by_id(number: int) -> Map:
    """A map that somebody loaded. Raises BpfError."""
    return Map(_call(_Command.MAP_FD_BY_ID, _U32.pack(number) + bytes(8)))


def program_by_id(number: int) -> int:
    """The descriptor of a program that somebody loaded. Raises BpfError."""
    return _call(_Command.PROG_FD_BY_ID, _U32.pack(number) + bytes(8))


def program_info(descriptor: int) -> ProgramInfo:
    """What a loaded program is. Raises BpfError."""
    ids = (ctypes.c_uint32 * _MAX_MAPS)()
    wish = _PROG_INFO.pack(0, 0, bytes(8), 0, 0, 0, 0, 0, 0, _MAX_MAPS, ctypes.addressof(ids), bytes(16))
    fields = _PROG_INFO.unpack_from(_info(descriptor, 128, wish))
    return ProgramInfo(fields[11].rstrip(b"\0").decode(), fields[2], tuple(ids[: min(fields[9], _MAX_MAPS)]))


def load_program(kind: int, name: str, instructions: bytes, licence: str) -> int:
    """Load a program (`kind` is BPF_PROG_TYPE_*); its descriptor. Raises BpfError with the verifier's last lines."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    text = ctypes.create_string_buffer(licence.encode())
    log = ctypes.create_string_buffer(_LOG_SIZE)

    def attributes(level: int) -> bytes:
        size, where = (_LOG_SIZE, ctypes.addressof(log)) if level else (0, 0)
        return _PROG_LOAD.pack(
            kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(text), level, size, where, 0, 0,
            _name(name),
        )  # fmt: skip

    try:
        return _call(_Command.PROG_LOAD, attributes(0))
    except BpfError as error:
        if error.errno == errno.EPERM:
            raise BpfError(
                error.errno, f"program {name}: {error.strerror}; it takes CAP_BPF and CAP_NET_ADMIN"
            ) from error
        first = error
    try:
        return _call(_Command.PROG_LOAD, attributes(1))
    except BpfError:
        words = log.value.decode(errors="replace").strip().splitlines()[-12:]
        raise BpfError(first.errno, f"program {name}: {first.strerror}; the verifier: {' | '.join(words)}") from first


def possible_cpus() -> int:
    """How many values a per-CPU map keeps for each key."""
    with open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().rpartition("-")[2].rpartition(",")[2]) + 1
