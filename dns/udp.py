"""The UDP side of the server: datagrams in, most of them answered on the spot. No decisions.

One readable socket is drained in a loop: a call of the event loop costs as much as an answer. Where the socket is
bound to no address, the answer leaves from the one that was asked. Source: DNS spec §7; ip(7), ipv6(7).
"""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from dns.batch import Batch
from dns.message import MIN_SIZE

# Not in the socket module: <linux/in.h>.
_IP_PKTINFO = 8
_BATCH = 64
_LARGEST_QUERY = 1232
_BUFFER = 1 << 20
_ATTEMPTS = 16

Quick = Callable[[bytes], bytes | None]
Ancillary = list[tuple[int, int, bytes]]


class UdpClient:
    """Who sent one datagram (`dns.seams.Client`)."""

    __slots__ = ("_ancillary", "_server", "_source")
    tcp = False

    def __init__(self, server: "UdpServer", source: Any, ancillary: Ancillary) -> None:
        self._server = server
        self._source = source
        self._ancillary = ancillary

    def send(self, reply: bytes) -> None:
        self._server.send(reply, self._source, self._ancillary)


class UdpServer:
    """One bound socket. `quick` answers what it can, `slow` takes the rest with the client who asked."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        quick: Quick,
        slow: Callable[[bytes, UdpClient], None],
        counts: Counter[str],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._quick = quick
        self._slow = slow
        self._counts = counts
        self._closed = False
        self._any = ip_address(sock.getsockname()[0]).is_unspecified
        if self._any and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._any:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # What is answered on the spot fits the smallest answer that every client takes.
        self._batch = Batch(sock, _BATCH, _LARGEST_QUERY, MIN_SIZE)
        loop.add_reader(sock.fileno(), self._read_with_destination if self._any else self._read)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def send(self, reply: bytes, source: Any, ancillary: Ancillary) -> None:
        """Answer a client, whose query may be of a while ago."""
        if self._closed:
            return
        try:
            if ancillary:
                self._sock.sendmsg((reply,), ancillary, 0, source)
            else:
                self._sock.sendto(reply, source)
        except OSError as error:
            self._counts[f"send-{errno.errorcode.get(error.errno or 0, 'error')}"] += 1

    def _read(self) -> None:
        batch, quick = self._batch, self._quick
        try:
            datagrams = batch.receive()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                # An answer's ICMP error: that client is gone.
                self._counts["receive-error"] += 1
            return
        self._counts["udp-queries"] += len(datagrams)
        for number, datagram in enumerate(datagrams):
            reply = quick(datagram)
            if reply is None:
                self._slow(datagram, UdpClient(self, batch.source(number), []))
            else:
                batch.answer(number, reply)
        for code in batch.send():
            self._counts[f"send-{errno.errorcode.get(code, 'error')}"] += 1

    def _read_with_destination(self) -> None:
        space = socket.CMSG_SPACE(20)
        for _ in range(_BATCH):
            try:
                datagram, received, _flags, source = self._sock.recvmsg(_LARGEST_QUERY, space)
            except BlockingIOError:
                return
            except OSError:
                self._counts["receive-error"] += 1
                continue
            self._counts["udp-queries"] += 1
            ancillary = [_asked_address(level, kind, value) for level, kind, value in received]
            reply = self._quick(datagram)
            if reply is None:
                self._slow(datagram, UdpClient(self, source, ancillary))
            else:
                self.send(reply, source, ancillary)


def _asked_address(level: int, kind: int, value: bytes) -> tuple[int, int, bytes]:
    """What was received with a datagram, as it is sent with the answer: from the address that was asked."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        # in_pktinfo: interface, address to send from, address in the header.
        return level, kind, bytes(4) + value[4:8] + bytes(4)
    return level, kind, value


def server_sockets(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A bound UDP socket and a listening TCP socket at one port; port 0 is any that both can have. Raises OSError."""
    attempts = 1 if port else _ATTEMPTS
    while True:
        udp = _bound(host, port, socket.SOCK_DGRAM)
        attempts -= 1
        try:
            tcp = _bound(host, udp.getsockname()[1], socket.SOCK_STREAM)
            tcp.listen(128)
        except OSError:
            udp.close()
            if not attempts:
                raise
        else:
            return udp, tcp


def _bound(host: str, port: int, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
