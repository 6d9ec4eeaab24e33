"""Who this host is: the peer name that it had under Weave Net 2.8, and keeps.

Order: the name that was given; the MAC of an existing bridge; a remembered name of the old style (of the UUID alone);
the hash of the machine's ids. A name that changes orphans the host's addresses, so the hash takes the files' bytes as
they are, newline included, and a file counts as missing only if it does not exist: an empty one stays empty, one that
cannot be read is an error. All of this was seen of the reference. Source: data plane spec §7, CLI spec §9.2.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from host.errors import HostError

_SALT = b"9oBJ0Jmip-"
_LOCAL_BIT = 0x02
_MULTICAST_BIT = 0x01


@dataclass(frozen=True, slots=True)
class SystemIds:
    """The contents of the files that tell machines apart; empty where there is none."""

    machine_id: bytes
    product_uuid: bytes


def hashed_name(ids: SystemIds) -> str:
    """The peer name made of the machine's ids, as text. Raises HostError if both are blank."""
    if not ids.machine_id and not ids.product_uuid:
        raise HostError("All system IDs are blank")
    digest = bytearray(hashlib.sha256(_SALT + ids.machine_id + ids.product_uuid).digest()[:6])
    digest[0] = digest[0] & ~_MULTICAST_BIT | _LOCAL_BIT
    return bytes(digest).hex(":")


def choose_name(ids: SystemIds, *, bridge_mac: str | None = None, remembered: str | None = None) -> str:
    """The name where none was given. Raises HostError if nothing tells this machine from others."""
    if bridge_mac is not None:
        return bridge_mac
    if remembered is not None and ids.product_uuid and remembered == hashed_name(SystemIds(b"", ids.product_uuid)):
        return remembered
    return hashed_name(ids)


def read_ids(host_root: str = "", sys_root: str = "/sys") -> SystemIds:
    """This machine's ids; `host_root` is where the host's files are seen. Raises HostError on an unreadable file."""
    root, system = Path(host_root or "/"), Path(sys_root)
    machine_id = _first(root / "etc/machine-id", root / "var/lib/dbus/machine-id")
    return SystemIds(machine_id, _first(system / "class/dmi/id/product_uuid", system / "hypervisor/uuid"))


def system_name(host_root: str = "", sys_root: str = "/sys") -> str:
    """This machine's name by its ids alone. Raises HostError."""
    return hashed_name(read_ids(host_root, sys_root))


def _first(*paths: Path) -> bytes:
    """What the first existing file holds."""
    for path in paths:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise HostError(f"unable to read {path}: {error.strerror}; the peer name depends on it") from error
    return b""
