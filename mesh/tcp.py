"""The mesh's shell: TCP sockets, name look-ups and the event loop's clock. No decisions, only I/O.

Every connection is an asyncio protocol that feeds a `Connection`. Closing is a reset (linger 0), as Weave Net
does it: what was not sent is void once a connection is given up. Source: mesh spec §2, §6.5, §13.
"""

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from random import Random
from typing import cast

from mesh.config import LIMITS, TIMING, Limits, MeshConfig, Timing
from mesh.connection import Connection, address_text
from mesh.errors import MeshError
from mesh.gossip import Channel
from mesh.maker import DirectPeer
from mesh.router import Router
from mesh.seams import Gossiper, Overlay
from mesh.status import MeshStatus
from mesh.topology import Topology

_LINGER_RESET = struct.pack("ii", 1, 0)
_KEEPALIVE = 15
_ACCEPT_BURST = 20
_ACCEPT_INTERVAL = 0.05
_WRITE_HIGH = 256 << 10


class LoopScheduler:
    """The event loop as the core's clock (`mesh.scheduler.Scheduler`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def call_later(self, delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, call)


class _Stream(asyncio.Protocol):
    """One TCP connection; also the core's `Wire`."""

    def __init__(self, service: "MeshService", attempt: int) -> None:
        self._service = service
        self._attempt = attempt
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._local = ("", 0)
        self._remote = ("", 0)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        stream = self._transport = cast(asyncio.Transport, transport)
        try:
            self._set_options(stream)
            self._local = _address(stream.get_extra_info("sockname"))
            self._remote = _address(stream.get_extra_info("peername"))
        except (OSError, TypeError):
            # The peer was gone before we looked at it.
            stream.abort()
            return
        stream.set_write_buffer_limits(high=_WRITE_HIGH)
        self._connection = self._service.router.opened(
            self, local=self._local, remote=self._remote, attempt=self._attempt
        )

    @staticmethod
    def _set_options(transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE)

    def data_received(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.receive(data)

    def eof_received(self) -> bool:
        if self._connection is not None:
            self._connection.lost("EOF")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is None:
            return
        path = f"{address_text(self._local)}->{address_text(self._remote)}"
        if isinstance(exc, ConnectionResetError | BrokenPipeError) or exc is None:
            text = f"read tcp {path}: read: connection reset by peer"
        else:
            text = f"read tcp {path}: {exc}"
        self._connection.lost(text)

    def pause_writing(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # the core's side

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()


class MeshService:
    """The mesh on real sockets. Build it, build the overlay on its `topology`, attach, start.

    `short_id` is the one to begin with, where an earlier process had one that its data path still goes by.
    """

    def __init__(
        self,
        config: MeshConfig,
        *,
        uid: int,
        rng: Random,
        log: logging.Logger,
        timing: Timing = TIMING,
        limits: Limits = LIMITS,
        short_id: int | None = None,
    ) -> None:
        self._config = config
        self._log = log
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._listener: asyncio.Server | None = None
        self._listen_sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._typed: dict[str, DirectPeer] = {}
        self.router = Router(
            config,
            uid=uid,
            scheduler=LoopScheduler(self._loop),
            rng=rng,
            entropy=os.urandom,
            dial=self._dial,
            log=log,
            timing=timing,
            limits=limits,
            topology=Topology(config.name, config.nickname, uid, rng=rng, short_id=short_id),
        )

    @property
    def topology(self) -> Topology:
        """What is known of the mesh's peers."""
        return self.router.topology

    def attach_overlay(self, overlay: Overlay) -> None:
        """Say what carries frames; before `start`."""
        self.router.attach_overlay(overlay)

    def channel(self, name: str, user: Gossiper) -> Channel:
        """Open a gossip channel."""
        return self.router.open_channel(name, user)

    async def start(self) -> None:
        """Listen and begin dialling. Raises OSError where the port cannot be had."""
        self._listen_sockets = listening_sockets(self._config.host, self._config.port)
        for sock in self._listen_sockets:
            self._spawn(self._accept(sock), "accepting connections")
        self.router.start()

    async def stop(self) -> None:
        """Close everything."""
        self.router.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._listen_sockets:
            sock.close()

    async def connect(self, peers: Sequence[str], replace: bool = False) -> list[str]:
        """Make `host[:port]` peers direct targets; returns one line per peer that could not be used."""
        results = await asyncio.gather(*(self._resolve(peer) for peer in peers))
        errors = [result for result in results if isinstance(result, str)]
        self.router.connect([result for result in results if isinstance(result, DirectPeer)], replace=replace)
        return errors

    def forget(self, peers: Sequence[str]) -> None:
        """Stop dialling these."""
        self.router.forget(peers)

    def status(self) -> MeshStatus:
        """What to show."""
        return self.router.status(self.format_time)

    def format_time(self, when: float) -> str:
        """The loop's time as a date, in the form that scripts know, with nanoseconds and seconds since start."""
        at = time.time() + when - self._loop.time()
        date = datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{date}.{int(at % 1 * 1e9):09d} +0000 UTC m={when - self._started:+.9f}"

    # --- resolving and dialling ---

    async def _resolve(self, peer: str) -> DirectPeer | str:
        split = split_peer(peer)
        if isinstance(split, str):
            return split
        host, port = split
        try:
            found = await asyncio.wait_for(
                self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM), self._timing.resolve_timeout
            )
        except TimeoutError:
            return f"lookup {host}: i/o timeout"
        except UnicodeError:
            # No host name at all (an empty label, one that is too long), found before anybody is asked.
            return f"lookup {host}: no such host"
        except OSError as error:
            text = "no such host" if error.errno == socket.EAI_NONAME else error.strerror
            return f"lookup {host}: {text}"
        hosts = _preferred(info[4][0] for info in found)
        chosen = port if port is not None else self._config.port
        return DirectPeer(peer, tuple(address_text((host, chosen)) for host in hosts[:1]), port is not None)

    def _dial(self, address: str, attempt: int) -> None:
        self._spawn(self._connect(address, attempt), f"dialling {address}")

    async def _connect(self, address: str, attempt: int) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        local = (self._config.host, 0) if self._config.host else None
        try:
            await asyncio.wait_for(
                self._loop.create_connection(
                    lambda: _Stream(self, attempt), host, int(port), local_addr=local
                ),
                self._timing.dial_timeout,
            )
        except TimeoutError:
            self.router.dial_failed(address, MeshError(f"dial tcp {_dialled(local)}->{address}: i/o timeout"))
        except (OSError, ValueError) as error:
            self.router.dial_failed(address, MeshError(f"dial tcp {_dialled(local)}->{address}: {_reason(error)}"))

    # --- accepting ---

    async def _accept(self, sock: socket.socket) -> None:
        """Accept a burst of 20, then 20 a second."""
        tokens = float(_ACCEPT_BURST)
        last = self._loop.time()
        while True:
            try:
                accepted, _ = await self._loop.sock_accept(sock)
            except OSError as error:
                # Out of descriptors, or the peer gave up first: neither may end the listener.
                self._log.warning("unable to accept a connection: %s", error)
                await asyncio.sleep(_ACCEPT_INTERVAL)
                continue
            try:
                await self._loop.connect_accepted_socket(lambda: _Stream(self, 0), accepted)
            except OSError:
                accepted.close()
            now = self._loop.time()
            tokens = min(_ACCEPT_BURST, tokens + (now - last) / _ACCEPT_INTERVAL) - 1
            last = now
            if tokens < 0:
                await asyncio.sleep(-tokens * _ACCEPT_INTERVAL)

    def _spawn(self, work: Coroutine[None, None, None], what: str) -> None:
        task = self._loop.create_task(self._watched(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, work: Coroutine[None, None, None], what: str) -> None:
        try:
            await work
        except Exception:
            self._log.exception("unexpected error while %s", what)


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """TCP listeners: one dual-stack socket, or one on `host`. Raises OSError."""
    family = socket.AF_INET if host and ip_address(host).version == 4 else socket.AF_INET6
    if not host and not socket.has_dualstack_ipv6():
        family = socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not host else 1)
        sock.bind((host, port))
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    return [sock]


def split_peer(peer: str) -> tuple[str, int | None] | str:
    """`host`, `host:port`, `[ip6]` or `[ip6]:port`; otherwise the line to show."""
    invalid = f'invalid peer name "{peer}", should be host[:port]'
    if peer.startswith("["):
        host, bracket, rest = peer[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return invalid
        port_text = rest[1:]
    else:
        if peer.count(":") > 1:
            return f"address {peer}:0: too many colons in address"
        host, _, port_text = peer.partition(":")
        if _ and not port_text:
            return invalid
    if not host:
        return invalid
    if not port_text:
        return host, None
    if not port_text.isdecimal() or not 0 < int(port_text) < 65536:
        return invalid
    return host, int(port_text)


def _preferred(hosts: Iterable[object]) -> list[str]:
    """Distinct addresses, IPv4 first: 2.8 peers have no IPv6 data path."""
    distinct = list(dict.fromkeys(str(host) for host in hosts))
    return sorted(distinct, key=lambda host: ":" in host)


def _address(raw: Sequence[object]) -> tuple[str, int]:
    """(ip, port) of a socket, an IPv4 address in IPv6 clothes undressed."""
    host, port = str(raw[0]).partition("%")[0], raw[1]
    assert isinstance(port, int)
    if host.startswith("::ffff:") and "." in host:
        host = host[len("::ffff:") :]
    return host, port


def _dialled(local: tuple[str, int] | None) -> str:
    return ":0" if local is None else address_text(local)


def _reason(error: Exception) -> str:
    """The operating system's word, in the form that scripts know."""
    code = getattr(error, "errno", None)
    text = os.strerror(code).lower() if isinstance(code, int) and code > 0 else str(error)
    return f"connect: {text}"


