"""A link's UDP socket: heartbeats and injected frames leave by it as if the kernel's VXLAN device had sent them.

The device owns the port, so nothing is received here but errors. Source: ip(7), ipv6(7), <asm/socket.h>.
"""

import socket
from pathlib import Path

_MTU_DISCOVER, _MTU = {False: 10, True: 23}, {False: 14, True: 24}
_PMTUDISC_PROBE = 3
_SO_NO_CHECK = 11
# Writing to it makes the kernel forget path MTUs.
FLUSH = {False: Path("/proc/sys/net/ipv4/route/flush"), True: Path("/proc/sys/net/ipv6/route/flush")}


def connected(local: str, remote: str, port: int) -> socket.socket:
    """A socket whose packets look like the kernel's: never fragmented, without checksum. Raises OSError.

    It obeys the interface's MTU and not what the kernel remembers of a path, so that one which recovered is found.
    """
    v6 = ":" in remote
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        sock.setsockopt(level, _MTU_DISCOVER[v6], _PMTUDISC_PROBE)
        sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        sock.bind((local, 0))
        sock.connect((remote, port))
    except BaseException:
        sock.close()
        raise
    return sock


def path_mtu(sock: socket.socket) -> int:
    """What the kernel believes of the path of a connected socket: octets of IP packet. Raises OSError."""
    v6 = sock.family == socket.AF_INET6
    return sock.getsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, _MTU[v6])
