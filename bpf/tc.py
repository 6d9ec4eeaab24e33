"""Programs at the two ends of an interface: clsact's `ingress` (what arrives) and `egress` (what leaves).

A program is replaced in one step, no packet goes without. It stays when its owner ends, and is found again by its
number. Source: tc-bpf(8), <linux/pkt_cls.h>, rtnetlink(7).
"""

import errno
import os
import socket
import struct
from collections.abc import Mapping

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_PRIORITY = 1
_GET_FILTER, _NEW_FILTER, _ERROR, _DONE = 46, 44, 2, 3
_REQUEST_DUMP = 0x301
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=B3xiIII")
_ATTRIBUTE = struct.Struct("=HH")
_KIND, _OPTIONS, _PROGRAM = 1, 2, 11
_TYPE_MASK = 0x3FFF


def attach(ip: IPRoute, index: int, programs: Mapping[str, int]) -> None:
    """Run these programs (direction: descriptor) on an interface, in place of those of before. Raises NetlinkError."""
    try:
        ip.tc("add", "clsact", index)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
    for direction, descriptor in programs.items():
        ip.tc(
            "replace-filter", "bpf", index, ":1", fd=descriptor, name=direction, parent=PARENTS[direction],
            classid=1, direct_action=True, prio=_PRIORITY,
        )  # fmt: skip


def attached(index: int) -> list[int]:
    """Numbers of the programs on an interface. Raises OSError."""
    return [number for parent in PARENTS.values() for number in _programs(index, parent)]


def _programs(index: int, parent: int) -> list[int]:
    body = _MESSAGE.pack(0, index, 0, parent, 0)
    found: list[int] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(5)
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(body), _GET_FILTER, _REQUEST_DUMP, 1, 0) + body)
        while True:
            data = sock.recv(1 << 16)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == _ERROR:
                    code = -int(struct.unpack_from("=i", message)[0])
                    raise OSError(code, os.strerror(code))
                if kind == _DONE:
                    return found
                attributes = _attributes(message[_MESSAGE.size :])
                if kind == _NEW_FILTER and attributes.get(_KIND, b"").rstrip(b"\0") == b"bpf":
                    number = _attributes(attributes.get(_OPTIONS, b"")).get(_PROGRAM)
                    if number is not None:
                        found.append(int.from_bytes(number, "little" if struct.pack("=H", 1)[0] else "big"))


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[(max(length, _ATTRIBUTE.size) + 3) & ~3 :]
    return found
