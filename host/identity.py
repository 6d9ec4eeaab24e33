"""Who this host is: the peer name that it had under Weave Net 2.8, and keeps.

Order: the name that was given; the MAC of an existing bridge; the hash of the machine's ids. A name that changes
orphans the host's addresses, so the hash takes the files' bytes as they are, newline included.
Source: data plane spec §7, CLI spec §9.2.
"""

import hashlib
from pathlib import Path

from host.errors import HostError

_SALT = b"9oBJ0Jmip-"
_LOCAL_BIT = 0x02
_MULTICAST_BIT = 0x01


def hashed_name(machine_id: bytes, product_uuid: bytes) -> str:
    """The peer name made of the machine's ids, as text. Raises HostError if both are blank."""
    if not machine_id.strip() and not product_uuid.strip():
        raise HostError("All system IDs are blank")
    digest = bytearray(hashlib.sha256(_SALT + machine_id + product_uuid).digest()[:6])
    digest[0] = digest[0] & ~_MULTICAST_BIT | _LOCAL_BIT
    return bytes(digest).hex(":")


def system_name(host_root: str = "", sys_root: str = "/sys") -> str:
    """This machine's name by its ids; files that cannot be read count as blank."""
    root = Path(host_root or "/")
    machine_id = _first(root / "etc/machine-id", root / "var/lib/dbus/machine-id")
    uuid = _first(Path(sys_root) / "class/dmi/id/product_uuid", Path(sys_root) / "hypervisor/uuid")
    return hashed_name(machine_id, uuid)


def _first(*paths: Path) -> bytes:
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if content.strip():
            return content
    return b""
