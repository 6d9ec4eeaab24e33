"""What others change in nftables, as the kernel tells whoever listens.

Our own changes are many and known, so a filter in the kernel keeps them from this socket. Source:
linux/netfilter/nf_tables.h, linux/filter.h.
"""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from nft.netlink import each_message
from nft.wire import NETLINK_NETFILTER, attributes, text

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP = 7
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_ROOM = 1 << 20
_SUBSYSTEM, _NEWGEN = 10, 15
_NFGENMSG_SIZE = 4
_PORT_OFFSET = 12
# Load a word, jump if it equals, return so many bytes.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")


@dataclass(frozen=True, slots=True)
class Changed:
    """Somebody changed a table; an empty name where events were lost, so that it may be any."""

    table: str


class Events:
    """A socket of the namespace of the thread that made it; non-blocking, to be watched by an event loop."""

    def __init__(self, ours: int) -> None:
        """`ours` is the port of the channel whose changes are not told. Raises OSError."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        _ignore(self._sock, ours)
        self._sock.bind((0, 0))
        self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)

    def fileno(self) -> int:
        """To wait for: readable when there is something."""
        return self._sock.fileno()

    def close(self) -> None:
        """Listen no more."""
        self._sock.close()

    def read(self) -> Iterator[Changed]:
        """What happened since, each table once for a message; ends when nothing is left."""
        while True:
            try:
                datagram = self._sock.recv(1 << 16)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield Changed("")
                continue
            for kind, _flags, _sequence, payload in each_message(datagram):
                if kind >> 8 == _SUBSYSTEM and kind & 0xFF != _NEWGEN:
                    found = dict(attributes(payload[_NFGENMSG_SIZE:]))
                    if 1 in found:
                        yield Changed(text(found[1]))


def _ignore(sock: socket.socket, port: int) -> None:
    """Drop messages whose sender has this port, before they take room."""
    # The filter's machine loads in network order what the header holds in the host's.
    loaded = int.from_bytes(port.to_bytes(4, sys.byteorder), "big")
    rows = (
        _INSTRUCTION.pack(_LOAD, 0, 0, _PORT_OFFSET),
        _INSTRUCTION.pack(_JUMP_EQUAL, 0, 1, loaded),
        _INSTRUCTION.pack(_RETURN, 0, 0, 0),
        _INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFFFFFF),
    )
    code = ctypes.create_string_buffer(b"".join(rows))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(rows), ctypes.addressof(code)))
