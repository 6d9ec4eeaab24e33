"""What every netlink protocol has in common: a socket of the calling thread's namespace, and messages in datagrams.

Headers are in host order. Source: netlink(7), linux/netlink.h.
"""

import socket
import struct
from collections.abc import Iterator

ERROR, DONE = 2, 3
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
# What an error begins with: the negative number of it, 0 for an acknowledgement; the request's header follows.
ERRNO = struct.Struct("=i")
HEADER = struct.Struct("=IHHII")


def opened(protocol: int, timeout: float) -> socket.socket:
    """A socket that waits at most so many seconds. Raises OSError where the kernel has no such protocol."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.settimeout(timeout)
    sock.bind((0, 0))
    return sock


def request(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One message to the kernel."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags | REQUEST, sequence, 0) + payload


def each_message(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence, payload) of each message of a datagram."""
    position = 0
    while position + HEADER.size <= len(datagram):
        size, kind, flags, sequence, _port = HEADER.unpack_from(datagram, position)
        if size < HEADER.size:
            return
        yield kind, flags, sequence, datagram[position + HEADER.size : position + size]
        position += size + (-size % 4)
