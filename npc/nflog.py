"""The packets that class chains drop, as the kernel hands them out in a group of nfnetlink_log.

A socket of its own, no daemon in between. The kernel gives the first bytes of a packet and the prefix of the rule,
which names direction and class. Source: NPC spec §7; linux/netfilter/nfnetlink_log.h.
"""

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from nft.netlink import ACK, ERRNO, ERROR, each_message, opened
from nft.wire import NETLINK_NETFILTER, NftError, attribute, attributes, encode, text, u32

GROUP = 86
_CONFIG, _PACKET = 0x401, 0x400
_BIND = 1
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD = 1, 2, 4, 5
_COPY_PACKET = 2
_PAYLOAD, _PREFIX = 9, 10
_SO_RCVBUFFORCE = 33
_ROOM = 1 << 20
_NFGENMSG = 4
# How long the kernel may keep packets to hand out several at once: in hundredths of a second.
_PATIENCE = 10
_ANSWER = 5.0


@dataclass(frozen=True, slots=True)
class Logged:
    """A dropped packet's first bytes, from the IP header on, and the prefix of the rule that dropped it."""

    prefix: str
    packet: bytes


class PacketLog:
    """A group's packets, in the namespace of the thread that made it; non-blocking, to be watched by an event loop.

    `lost` counts the times that there were more packets than room.
    """

    def __init__(self, group: int = GROUP, snaplen: int = 96) -> None:
        """Raises NftError: EBUSY where another program has the group."""
        self.lost = 0
        self._sock = opened(NETLINK_NETFILTER, _ANSWER)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
            self._ask(group, attribute(_COMMAND, bytes((_BIND,))))
            mode = attribute(_MODE, snaplen.to_bytes(4, "big") + bytes((_COPY_PACKET, 0)))
            self._ask(group, mode + u32(_TIMEOUT, _PATIENCE) + u32(_THRESHOLD, 32))
            self._sock.setblocking(False)
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """To wait for: readable when there is something."""
        return self._sock.fileno()

    def close(self) -> None:
        """The group is free again."""
        self._sock.close()

    def read(self) -> Iterator[Logged]:
        """What was dropped since; ends when nothing is left."""
        while True:
            try:
                datagram = self._sock.recv(1 << 17)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            for kind, _flags, _sequence, payload in each_message(datagram):
                if kind == _PACKET:
                    said = dict(attributes(payload[_NFGENMSG:]))
                    yield Logged(text(said.get(_PREFIX, b"")), said.get(_PAYLOAD, b""))

    def _ask(self, group: int, body: bytes) -> None:
        self._sock.send(encode(_CONFIG, ACK, 1, 0, group, body))
        for kind, _flags, _sequence, payload in each_message(self._sock.recv(1 << 16)):
            number = -ERRNO.unpack_from(payload)[0] if kind == ERROR else 0
            if number:
                raise NftError(f"unable to listen to packet log group {group}: {os.strerror(number)}", number)
