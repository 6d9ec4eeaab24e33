"""Sleeve's UDP sockets: one port, with and without DF, datagrams sent and read in runs. No decisions.

One socket per address family serves both send paths (the same source port keeps one NAT mapping): whether the
kernel may fragment is switched on the socket when the next datagram wants it otherwise. Datagrams of one size go to
the kernel in one call, and come from it so, where it can (UDP_SEGMENT, UDP_GRO); on the wire nothing shows of it.
Source: data plane spec §3.2; ip(7), ipv6(7), udp(7).
"""

import asyncio
import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from sleeve.link import Address

# Not in the socket module: <linux/in.h>, <linux/in6.h>, <linux/udp.h>, <asm-generic/socket.h>.
_IP_MTU_DISCOVER, _IP_MTU, _IP_PKTINFO = 10, 14, 8
_IPV6_MTU_DISCOVER, _IPV6_MTU, _IPV6_PKTINFO = 23, 24, 50
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_SEGMENT = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_GRO_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)
_BUFFER = 4 << 20
_BATCH = 64
_MAX_DATAGRAM = 65535
MAX_RUN = 65507
MAX_SEGMENTS = 64
# What a send may answer while the network is having a moment: the link's own time-out decides about the link.
_REASONS = {
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
_FULL = (errno.EAGAIN, errno.ENOBUFS)
# Kernels differ in how they say that a datagram's source is no address of the host.
_NOT_OURS = (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL)

Ancillary = tuple[int, int, bytes]


@dataclass(slots=True)
class Origin:
    """The local address that a peer knows us by: a host with several must answer from the right one."""

    address: str
    ancillary: list[Ancillary]


@dataclass(frozen=True, slots=True)
class Refused:
    """The kernel did not take a datagram. `path_mtu`: bytes of IP packet, where it was too big.

    `lasting`: no mere lack of room in a queue.
    """

    reason: str
    path_mtu: int | None = None
    lasting: bool = True


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
        self.v6 = sock.family == socket.AF_INET6
        self._level = socket.IPPROTO_IPV6 if self.v6 else socket.IPPROTO_IP
        self._discover = _IPV6_MTU_DISCOVER if self.v6 else _IP_MTU_DISCOVER
        self._any = ip_address(sock.getsockname()[0]).is_unspecified
        self._df: bool | None = None
        self._segments = True
        try:
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            # An older kernel: datagrams come one by one.
            counts["no-receive-offload"] = 1
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def origin(self, local: str) -> Origin | None:
        """How to send from `local`; None where the socket is bound to one address anyway, or it is none of ours."""
        if not self._any or (":" in local) != self.v6:
            return None
        try:
            packed = socket.inet_pton(self._sock.family, local)
        except OSError:
            return None
        if self.v6:
            return Origin(local, [(self._level, _IPV6_PKTINFO, _PKTINFO6.pack(packed, 0))])
        return Origin(local, [(self._level, _IP_PKTINFO, _PKTINFO4.pack(0, packed, bytes(4)))])

    def send(self, run: list[bytes], to: Address, df: bool, origin: Origin | None, fits: int) -> Refused | None:
        """Send datagrams in order; what became of the last one that was refused, if any.

        Only datagrams of up to `fits` bytes may go as one: what exceeds the path the kernel must fragment singly.
        """
        if df is not self._df:
            self._sock.setsockopt(self._level, self._discover, _PMTUDISC_DO if df else _PMTUDISC_DONT)
            self._df = df
        refused = None
        position = 0
        while position < len(run):
            count = self._equal(run, position) if self._segments and len(run[position]) <= fits else 1
            part = run[position : position + count]
            if count == 1 or not self._send_segments(part, to, origin):
                for datagram in part:
                    refused = self._send_one(datagram, to, origin) or refused
                    if refused is not None and refused.path_mtu is not None:
                        # The rest of this part is no smaller.
                        break
            position += count
        return refused

    @staticmethod
    def _equal(run: list[bytes], start: int) -> int:
        """How many datagrams from `start` on one call can take: of one size, the last one may be shorter."""
        size = total = len(run[start])
        count = 1
        for datagram in run[start + 1 : start + MAX_SEGMENTS]:
            total += len(datagram)
            if len(datagram) > size or total > MAX_RUN:
                break
            count += 1
            if len(datagram) < size:
                break
        return count

    def _send_segments(self, part: list[bytes], to: Address, origin: Origin | None) -> bool:
        """Several datagrams in one call. False: send them singly, which also tells what is wrong."""
        ancillary = [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(len(part[0])))]
        if origin is not None:
            ancillary += origin.ancillary
        try:
            self._sock.sendmsg(part, ancillary, 0, to)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                # The device cannot do checksums, or the kernel is older than this option.
                self._segments = False
                self._counts["no-send-offload"] = 1
            return False
        return True

    def _send_one(self, datagram: bytes, to: Address, origin: Origin | None) -> Refused | None:
        try:
            if origin is None or not origin.ancillary:
                self._sock.sendto(datagram, to)
            else:
                self._sock.sendmsg((datagram,), origin.ancillary, 0, to)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                local = origin.address if origin is not None and origin.ancillary else None
                return Refused("over-path-mtu", path_mtu(to, local))
            if error.errno in _NOT_OURS and origin is not None and origin.ancillary:
                # The address may be no longer ours: if so, any other is better than none.
                refused = self._send_one(datagram, to, None)
                if refused is None:
                    origin.ancillary.clear()
                return refused
            reason = _REASONS.get(error.errno or 0, "send-error")
            return Refused(reason, lasting=error.errno not in _FULL)
        return None

    def _readable(self) -> None:
        receive = self._sock.recvmsg
        handled = 0
        while handled < _BATCH:
            try:
                data, ancillary, _, source = receive(_MAX_DATAGRAM, _GRO_SPACE)
            except BlockingIOError:
                break
            except OSError:
                # An earlier send's ICMP error: it was counted, or will be, where the link times out.
                self._counts["receive-error"] += 1
                handled += 1
                continue
            sender = (source[0], source[1])
            size = _GRO_SIZE.unpack(ancillary[0][2])[0] if ancillary else 0
            if not 0 < size < len(data):
                self._received(data, sender)
                handled += 1
                continue
            for position in range(0, len(data), size):
                self._received(data[position : position + size], sender)
                handled += 1
        self._batch_done()


def path_mtu(to: Address, local: str | None) -> int | None:
    """What the kernel knows of the path from a local address: bytes of IP packet. Only a connected socket tells."""
    v6 = ":" in to[0]
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if v6 else (socket.IPPROTO_IP, _IP_MTU)
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            if local is not None:
                probe.bind((local, 0))
            probe.connect(to)
            return probe.getsockopt(level, option)
        except OSError:
            return None


def sending_twin(sock: socket.socket) -> socket.socket:
    """A second socket on a bound one's address and port, so that each send path has its own. Raises OSError.

    The port is shared only now, when nobody else can have it; what arrives is spread over both.
    """
    twin = socket.socket(sock.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        for each in (sock, twin):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _enlarge(twin)
        twin.bind(sock.getsockname())
    except OSError:
        twin.close()
        raise
    return twin


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
            _enlarge(sock)
            sock.bind((host, port))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _enlarge(sock: socket.socket) -> None:
    for force, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
