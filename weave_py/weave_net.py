"""What a Weave Net router keeps in its Bolt file, read when a node comes from it and written when it goes back.

Reading changes nothing, and is refused while a router holds the file. Writing makes a whole new file, gives it its
name by a rename, and keeps the one that stood there. The ring goes through untouched: it is the same value in both.
Source: Kubernetes and CNI spec §6, §7; IPAM spec §14.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, ip_interface

from mesh import gob
from mesh.names import PeerName
from weave_py import bolt

_TOP = b"top"
_FLAG = "flag:"
_VERSION = b"\x01\x00"
_NEW, _BEFORE = ".new", ".before"
_LARGEST = 1 << 30
_NAME_LIMIT = 1 << 48


class WeaveNetError(Exception):
    """The file cannot be read or written: one line, with its name."""


@dataclass(frozen=True, slots=True)
class Held:
    """Addresses of one identifier, as `10.32.0.1/12`."""

    is_container: bool
    cidrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeaveNetState:
    """The content of the file; None and empty where it says nothing. `ring` is the gob value."""

    peer_name: PeerName | None = None
    ring: bytes | None = None
    owned: Mapping[str, Held] = field(default_factory=dict)
    direct_peers: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cidr:
    address: int = gob.of("Addr", gob.UINT32)
    prefix_length: int = gob.of("PrefixLen", gob.INT)


@dataclass(frozen=True, slots=True)
class _Owned:
    is_container: bool = gob.of("IsContainer", gob.BOOL)
    cidrs: Sequence[_Cidr] = gob.of("Cidrs", gob.ListOf(gob.struct_of("CIDR", _Cidr)))


_OWNED = gob.MapOf(gob.STRING, gob.struct_of("ownedData", _Owned))
_PEERS = gob.ListOf(gob.STRING)
_ENTRY = gob.Struct("entry", [gob.StructField(name, name, gob.UINT) for name in ("Token", "Peer", "Version", "Free")])
# Only to see that it can be read: what it means is the business of whoever gives addresses.
_RING = gob.Struct(
    "Ring",
    [
        *(gob.StructField(name, name, gob.UINT) for name in ("Start", "End", "Peer")),
        gob.StructField("Entries", "Entries", gob.ListOf(_ENTRY)),
        gob.StructField("Seeds", "Seeds", gob.ListOf(gob.UINT)),
    ],
)


def read(path: str) -> WeaveNetState:
    """The state in a file. Raises WeaveNetError: it is in use, no Bolt file, or not Weave Net's."""
    try:
        with open(path, "rb") as file, _held(file.fileno(), fcntl.LOCK_SH, path):
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise bolt.BoltError(f"it is larger than {_LARGEST >> 20} MiB")
        return decode(bolt.parse(content))
    except OSError as error:
        raise WeaveNetError(f"unable to read {path}: {(error.strerror or str(error)).lower()}") from error
    except (bolt.BoltError, gob.GobError, ValueError) as error:
        raise WeaveNetError(f"unable to read {path}: {error}") from error


def write(path: str, state: WeaveNetState, ready: Callable[[], None] = lambda: None) -> None:
    """Make the file anew; one that is there becomes `path` + `.before`. Raises WeaveNetError.

    `ready` is called when all is on the disk but the name: as long as `is_prepared`, the file is the old one.
    """
    content = bolt.build({_TOP: encode(state)})
    try:
        with contextlib.ExitStack() as stack:
            if os.path.exists(path):
                standing = stack.enter_context(open(path, "rb"))
                stack.enter_context(_held(standing.fileno(), fcntl.LOCK_EX, path))
            _prepare(path, content)
            ready()
            _replace(path)
    except OSError as error:
        raise WeaveNetError(f"unable to write {path}: {(error.strerror or str(error)).lower()}") from error


def is_prepared(path: str) -> bool:
    """Whether a file was made and did not get its name."""
    return os.path.exists(path + _NEW)


def decode(buckets: bolt.Bucket) -> WeaveNetState:
    """The meaning of the buckets. Raises ValueError, GobError."""
    values = buckets.get(_TOP, {})
    if not isinstance(values, dict) or not all(isinstance(value, bytes) for value in values.values()):
        raise ValueError("its bucket 'top' is none of Weave Net")
    top = {key: value for key, value in values.items() if isinstance(value, bytes)}
    version = top.get(b"version", _VERSION)
    if version[:1] != _VERSION[:1]:
        raise ValueError(f"it has version {version.hex()}, and only 01 is known")
    peer_name = gob.decode(top[b"peername"], gob.UINT) if b"peername" in top else None
    if peer_name is not None and peer_name >= _NAME_LIMIT:
        raise ValueError(f"its peer name {peer_name:#x} is longer than 48 bits")
    if b"ring" in top:
        gob.decode(top[b"ring"], _RING)
    owned = gob.decode(top[b"ownedAddresses"], _OWNED) if b"ownedAddresses" in top else {}
    return WeaveNetState(
        peer_name=None if peer_name is None else PeerName(peer_name),
        ring=top.get(b"ring"),
        owned={
            ident: Held(held.is_container, tuple(_text(cidr) for cidr in held.cidrs)) for ident, held in owned.items()
        },
        direct_peers=tuple(gob.decode(top[b"directPeers"], _PEERS)) if b"directPeers" in top else (),
        flags={
            key.decode()[len(_FLAG) :]: gob.decode(value, gob.STRING)
            for key, value in top.items()
            if key.startswith(_FLAG.encode())
        },
    )


def encode(state: WeaveNetState) -> dict[bytes, bytes]:
    """The values of bucket `top`. Addresses of IPv6, which Weave Net cannot hold, are left out."""
    owned = {}
    for ident, held in state.owned.items():
        cidrs = [ip_interface(cidr) for cidr in held.cidrs]
        kept = [_Cidr(int(cidr.ip), cidr.network.prefixlen) for cidr in cidrs if isinstance(cidr, IPv4Interface)]
        if kept:
            owned[ident] = _Owned(held.is_container, kept)
    values = {
        b"version": _VERSION,
        b"ownedAddresses": gob.encode(_OWNED, owned),
        b"directPeers": gob.encode(_PEERS, list(state.direct_peers)),
    }
    if state.peer_name is not None:
        values[b"peername"] = gob.encode(gob.UINT, state.peer_name)
    if state.ring is not None:
        values[b"ring"] = state.ring
    for name, value in state.flags.items():
        values[f"{_FLAG}{name}".encode()] = gob.encode(gob.STRING, value)
    return values


def _text(cidr: _Cidr) -> str:
    if not 0 <= cidr.prefix_length <= 32:
        raise ValueError(f"it holds an address with prefix length {cidr.prefix_length}")
    return f"{IPv4Address(cidr.address)}/{cidr.prefix_length}"


@contextlib.contextmanager
def _held(descriptor: int, mode: int, path: str) -> Iterator[None]:
    """Bolt's own lock on the file, while it is needed."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WeaveNetError(f"{path} is in use by a Weave Net router: stop that one first") from error
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _prepare(path: str, content: bytes) -> None:
    descriptor = os.open(path + _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    _sync_directory(path)


def _replace(path: str) -> None:
    if os.path.exists(path):
        # A second name first: there is no moment without the file.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + _BEFORE)
        os.link(path, path + _BEFORE)
    os.rename(path + _NEW, path)
    _sync_directory(path)


def _sync_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
