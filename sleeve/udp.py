"""Sleeve's UDP sockets: one port, with and without DF, datagrams read in batches. No decisions.

One socket per address family serves both send paths (the same source port keeps one NAT mapping): whether the
kernel may fragment is switched on the socket when the next datagram wants it otherwise.
Source: data plane spec §3.2; ip(7), ipv6(7).
"""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

from sleeve.link import Address

# Not in the socket module: <linux/in.h>, <linux/in6.h>, <asm-generic/socket.h>.
_IP_MTU_DISCOVER, _IP_MTU = 10, 14
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 4 << 20
_BATCH = 64
_MAX_DATAGRAM = 65535
# What a send may answer while the network is having a moment: the link's own time-out decides about the link.
_TRANSIENT = {
    errno.EAGAIN: "send-queue-full",
    errno.ENOBUFS: "no-buffers",
    errno.EPERM: "refused-by-firewall",
    errno.ENETUNREACH: "network-unreachable",
    errno.EHOSTUNREACH: "host-unreachable",
    errno.ECONNREFUSED: "connection-refused",
    errno.ENETDOWN: "network-down",
    errno.EINVAL: "invalid-address",
    errno.EADDRNOTAVAIL: "address-not-available",
}


class UdpSocket:
    """One address family's socket. `received(datagram, source)` is called for each datagram, `batch_done` after."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        received: Callable[[bytes, Address], None],
        batch_done: Callable[[], None],
        counts: Counter[str],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._received = received
        self._batch_done = batch_done
        self._counts = counts
        v6 = sock.family == socket.AF_INET6
        self._level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        self._discover = _IPV6_MTU_DISCOVER if v6 else _IP_MTU_DISCOVER
        self._mtu_option = _IPV6_MTU if v6 else _IP_MTU
        self._df: bool | None = None
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def send(self, datagram: bytes, to: Address, df: bool) -> int | None:
        """Send, or count why not. Returns the path's MTU (bytes of IP packet) where the datagram was too big."""
        if df is not self._df:
            self._sock.setsockopt(self._level, self._discover, _PMTUDISC_DO if df else _PMTUDISC_DONT)
            self._df = df
        try:
            self._sock.sendto(datagram, to)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return self._path_mtu(to)
            self._counts[_TRANSIENT.get(error.errno or 0, "send-error")] += 1
        return None

    def _path_mtu(self, to: Address) -> int | None:
        """What the kernel knows of the path; only a connected socket tells."""
        with socket.socket(self._sock.family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(to)
                return probe.getsockopt(self._level, self._mtu_option)
            except OSError:
                return None

    def _readable(self) -> None:
        receive = self._sock.recvfrom
        for _ in range(_BATCH):
            try:
                datagram, source = receive(_MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                # An earlier send's ICMP error: it was counted, or will be, where the link times out.
                self._counts["receive-error"] += 1
                continue
            self._received(datagram, (source[0], source[1]))
        self._batch_done()


def udp_sockets(host: str, port: int) -> list[socket.socket]:
    """Bound, non-blocking sockets: IPv4 and, where the host has it, IPv6; or the one family of `host`.

    Raises OSError where the port cannot be had.
    """
    families = [socket.AF_INET, socket.AF_INET6]
    if host:
        families = [socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET]
    sockets: list[socket.socket] = []
    try:
        for family in families:
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            except OSError:
                if family == socket.AF_INET6 and sockets:
                    continue
                raise
            sockets.append(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for force, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
                _enlarge(sock, force, plain)
            sock.bind((host, port))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _enlarge(sock: socket.socket, force: int, plain: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
