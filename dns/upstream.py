"""The sockets towards upstream servers, and the file that names them. No decisions.

A server is asked through a few connected sockets, so that only it can answer, each for some seconds only, so that its
port is hard to guess. Source: DNS spec §8; RFC 5452 §9.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dns.forwarder import Forwarder
from dns.resolv_conf import Server, parse_resolv_conf

_SOCKETS = 2
_LIFE = 10.0
_BATCH = 64
_LARGEST = 2048
_TCP_CONNECT = 2.0
_CHECK_EVERY = 5.0
_LARGEST_FILE = 64 << 10


@dataclass(slots=True)
class _Pool:
    """A server's sockets, and when they are too old (seconds of the loop's clock)."""

    sockets: list[socket.socket] = field(default_factory=list)
    until: float = 0.0


class UpstreamSockets:
    """`dns.forwarder.Upstream` on the event loop. `timeout`: seconds for a TCP exchange, and for late answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._forwarder: Forwarder | None = None
        self._pools: dict[Server, _Pool] = {}
        self._open: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0

    def serve(self, forwarder: Forwarder) -> None:
        """Say who gets what comes in."""
        self._forwarder = forwarder

    def send(self, server: Server, message: bytes) -> None:
        pool = self._pools.get(server)
        now = self._loop.time()
        if pool is None or now > pool.until:
            pool = self._renew(server, pool, now)
        if not pool.sockets:
            self._loop.call_soon(self._failed, server)
            return
        self._turn += 1
        try:
            pool.sockets[self._turn % len(pool.sockets)].send(message)
        except BlockingIOError:
            # As if the network had lost it.
            pass
        except OSError:
            self._loop.call_soon(self._failed, server)

    def ask_tcp(self, server: Server, message: bytes, done: Callable[[bytes | None], None]) -> None:
        task = self._loop.create_task(self._exchange(server, message, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for sock in list(self._open):
            self._close(sock)
        self._pools.clear()

    def _renew(self, server: Server, old: _Pool | None, now: float) -> _Pool:
        if old is not None:
            for sock in old.sockets:
                self._loop.call_later(self._timeout, self._close, sock)
        pool = self._pools[server] = _Pool([], now + _LIFE)
        for _ in range(_SOCKETS):
            try:
                pool.sockets.append(self._connected(server))
            except OSError:
                break
        return pool

    def _connected(self, server: Server) -> socket.socket:
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect((server.host, server.port))
        except OSError:
            sock.close()
            raise
        self._open.add(sock)
        self._loop.add_reader(sock.fileno(), self._readable, sock, server)
        return sock

    def _close(self, sock: socket.socket) -> None:
        if sock in self._open:
            self._open.discard(sock)
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _failed(self, server: Server) -> None:
        assert self._forwarder is not None
        self._forwarder.failed(server)

    def _readable(self, sock: socket.socket, server: Server) -> None:
        assert self._forwarder is not None
        for _ in range(_BATCH):
            try:
                datagram = sock.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                # Nobody listens there: an ICMP error of an earlier question.
                self._forwarder.failed(server)
                return
            self._forwarder.received(server, datagram)

    async def _exchange(self, server: Server, message: bytes, done: Callable[[bytes | None], None]) -> None:
        reply: bytes | None = None
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout):
                async with asyncio.timeout(_TCP_CONNECT):
                    reader, writer = await asyncio.open_connection(server.host, server.port)
                writer.write(len(message).to_bytes(2, "big") + message)
                size = int.from_bytes(await reader.readexactly(2), "big")
                reply = await reader.readexactly(size)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            reply = None
        finally:
            if writer is not None:
                writer.close()
            done(reply)


class ResolvConf:
    """A resolv.conf that is read again when it was changed; a file that cannot be read changes nothing."""

    def __init__(self, path: str, own_host: str, log: logging.Logger) -> None:
        self._path = Path(path)
        self._own_host = own_host
        self._log = log
        self._seen: tuple[int, int, int] | None = None
        self._error = ""
        self._check_at = 0.0
        self.servers: Sequence[Server] = ()

    def check(self, now: float) -> bool:
        """Look at the file, but at most every 5 s; whether it was read anew. `now`: seconds of any monotonic clock."""
        if now < self._check_at:
            return False
        self._check_at = now + _CHECK_EVERY
        try:
            stat = os.stat(self._path)
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return False
            with open(self._path, "rb") as file:
                text = file.read(_LARGEST_FILE).decode("utf-8", "replace")
        except OSError as error:
            if self._error != (error.strerror or ""):
                self._error = error.strerror or ""
                self._log.warning("%s: %s; upstream DNS servers stay as they were", self._path, self._error.lower())
            return False
        self._seen, self._error = seen, ""
        self.servers = parse_resolv_conf(text, self._own_host)
        self._log.info("upstream DNS servers: %s", ", ".join(map(str, self.servers)) or "none")
        return True
