"""Datagrams in runs: one call of the kernel for many, and none of Python's own sockets' work on each.

Receive and answer share the place where the kernel put the sender's address: it is never looked at, unless somebody
asks. Buffers are made once. Source: recvmmsg(2), sendmmsg(2).
"""

import socket
import struct
from typing import Any

import cffi

_ffi = cffi.FFI()
_ffi.cdef(
    """
    struct iovec { void *iov_base; size_t iov_len; };
    struct msghdr { void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
                    void *msg_control; size_t msg_controllen; int msg_flags; };
    struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
    int recvmmsg(int sockfd, struct mmsghdr *msgvec, unsigned int vlen, int flags, void *timeout);
    int sendmmsg(int sockfd, struct mmsghdr *msgvec, unsigned int vlen, int flags);
    """
)
_libc: Any = _ffi.dlopen(None)
_ADDRESS_SPACE = 32
_PORT = struct.Struct("!H")


class Batch:
    """Room for `count` datagrams of a socket: of at most `largest_in` bytes in, and `largest_out` out.

    Order of calls: `receive`, `datagram` and `answer` for any of what came, `send`.
    """

    def __init__(self, sock: socket.socket, count: int, largest_in: int, largest_out: int) -> None:
        self._descriptor = sock.fileno()
        self._v6 = sock.family == socket.AF_INET6
        self._count = count
        self._largest_in = largest_in
        self._largest_out = largest_out
        self._addresses = _ffi.new("char[]", count * _ADDRESS_SPACE)
        self._in = _ffi.new("char[]", count * largest_in)
        self._out = _ffi.new("char[]", count * largest_out)
        self._received = _ffi.buffer(self._in)
        self._answers = _ffi.buffer(self._out)
        self._in_parts = _ffi.new("struct iovec[]", count)
        self._out_parts = _ffi.new("struct iovec[]", count)
        self._in_heads = _ffi.new("struct mmsghdr[]", count)
        self._out_heads = _ffi.new("struct mmsghdr[]", count)
        for number in range(count):
            self._in_parts[number].iov_base = self._in + number * largest_in
            self._in_parts[number].iov_len = largest_in
            self._out_parts[number].iov_base = self._out + number * largest_out
            for heads, parts in ((self._in_heads, self._in_parts), (self._out_heads, self._out_parts)):
                heads[number].msg_hdr.msg_iov = parts + number
                heads[number].msg_hdr.msg_iovlen = 1
            self._in_heads[number].msg_hdr.msg_name = self._addresses + number * _ADDRESS_SPACE
            self._in_heads[number].msg_hdr.msg_namelen = _ADDRESS_SPACE
        self._answered = 0

    def receive(self) -> list[bytes]:
        """What has come, at most `count` datagrams. Raises OSError, BlockingIOError among them."""
        self._answered = 0
        count = _libc.recvmmsg(self._descriptor, self._in_heads, self._count, socket.MSG_DONTWAIT, _ffi.NULL)
        if count < 0:
            raise OSError(_ffi.errno, "recvmmsg")
        received, largest, heads = self._received, self._largest_in, self._in_heads
        return [
            received[start : start + heads[number].msg_len]
            for number, start in zip(range(count), range(0, count * largest, largest), strict=True)
        ]

    def answer(self, number: int, reply: bytes) -> None:
        """Answer datagram `number` of what came, with at most `largest_out` bytes."""
        slot = self._answered
        start = slot * self._largest_out
        self._answers[start : start + len(reply)] = reply
        self._out_parts[slot].iov_len = len(reply)
        head = self._out_heads[slot].msg_hdr
        head.msg_name = self._addresses + number * _ADDRESS_SPACE
        head.msg_namelen = 28 if self._v6 else 16
        self._answered = slot + 1

    def send(self) -> list[int]:
        """Send the answers; the errors of those that could not be."""
        done, errors = 0, []
        while done < self._answered:
            heads = self._out_heads + done
            count = _libc.sendmmsg(self._descriptor, heads, self._answered - done, socket.MSG_DONTWAIT)
            if count < 0:
                errors.append(_ffi.errno)
                count = 1
            done += count
        self._answered = 0
        return errors

    def source(self, number: int) -> tuple[Any, ...]:
        """Who sent datagram `number`, as the socket module has it."""
        raw = bytes(_ffi.buffer(self._addresses + number * _ADDRESS_SPACE, 28))
        (port,) = _PORT.unpack_from(raw, 2)
        if not self._v6:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        scope = int.from_bytes(raw[24:28], "little" if struct.pack("=H", 1)[0] else "big")
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port, 0, scope
