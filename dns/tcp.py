"""The TCP side of the server: several queries a connection, all of it bounded. No decisions.

A message has its length in front. Connections are few, in all and from one address; they end after a while without a
query, after many queries, and when their client does not read. Source: DNS spec §7; RFC 7766.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

_IDLE = 8.0
_QUERIES = 128
_CONNECTIONS, _CONNECTIONS_FROM_ONE = 256, 64
# Queries of one connection that wait for their answers.
_WAITING = 16
_WRITE_BUFFER = 128 << 10


class TcpClient:
    """Who sent one query on a connection (`dns.seams.Client`)."""

    __slots__ = ("_connection", "_waits")
    tcp = True

    def __init__(self, connection: "_Connection") -> None:
        self._connection = connection
        self._waits = True

    def send(self, reply: bytes) -> None:
        if self._waits:
            self._waits = False
            self._connection.answered(reply)


Ask = Callable[[bytes, TcpClient], None]


class TcpServer:
    """Makes the protocol of each accepted connection."""

    def __init__(self, ask: Ask, counts: Counter[str]) -> None:
        self.ask = ask
        self.counts = counts
        self._open: set[_Connection] = set()
        self._from: Counter[str] = Counter()

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self)

    def close(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            connection.abort()

    def opened(self, connection: "_Connection", source: str) -> bool:
        """Whether there is room for one more."""
        if len(self._open) >= _CONNECTIONS or self._from[source] >= _CONNECTIONS_FROM_ONE:
            self.counts["connections-refused"] += 1
            return False
        self._open.add(connection)
        self._from[source] += 1
        return True

    def closed(self, connection: "_Connection", source: str) -> None:
        if connection in self._open:
            self._open.discard(connection)
            self._from[source] -= 1
            if not self._from[source]:
                del self._from[source]


class _Connection(asyncio.Protocol):
    """One connection: the bytes that came, how many queries it may still ask, and when it last did."""

    def __init__(self, server: TcpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._source = ""
        self._received = bytearray()
        self._left = _QUERIES
        self._waiting = 0
        self._full = False
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._source = str(peer[0]) if peer else ""
        if not self._server.opened(self, self._source):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._timer = self._loop.call_later(_IDLE, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.closed(self, self._source)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._take()

    def eof_received(self) -> bool:
        """The client says no more, and may still read."""
        self._left = 0
        self._received.clear()
        return self._waiting > 0

    def pause_writing(self) -> None:
        self._full = True
        self._regulate()

    def resume_writing(self) -> None:
        self._full = False
        self._take()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def answered(self, reply: bytes) -> None:
        """One query less to wait for."""
        self._waiting -= 1
        if self._transport is None:
            return
        self._transport.write(len(reply).to_bytes(2, "big") + reply)
        if not self._left and not self._waiting:
            self._transport.close()
        elif self._received:
            # Not at once: this may be the answer to a query that is being taken.
            self._loop.call_soon(self._take)
        else:
            self._regulate()

    @property
    def _busy(self) -> bool:
        return self._full or self._waiting >= _WAITING

    def _take(self) -> None:
        """Ask what has come whole, as long as answers get away."""
        received = self._received
        while self._left and not self._busy and len(received) >= 2 and self._transport is not None:
            size = int.from_bytes(received[:2], "big")
            if len(received) < 2 + size:
                break
            query = bytes(received[2 : 2 + size])
            del received[: 2 + size]
            self._left -= 1
            self._waiting += 1
            self._last = self._loop.time()
            self._server.counts["tcp-queries"] += 1
            self._server.ask(query, TcpClient(self))
        if not self._left:
            received.clear()
        self._regulate()

    def _regulate(self) -> None:
        """Read on only when what was read could be taken."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._busy or not self._left:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _check(self) -> None:
        rest = self._last + _IDLE - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._check)
        else:
            self.abort()
