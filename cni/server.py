"""The router's unix socket: calls of the courier are answered here, everything else is handed on to the control API.

The first byte tells them apart, since no request of HTTP begins with zero. Requests are bounded in size, in time and in
how many there are at once; the rest waits in the kernel's queue. A courier that hangs up is not worked for any longer.
Source: Kubernetes and CNI spec §8; unix(7).
"""

import asyncio
import contextlib
import logging
import os
import socket
from array import array
from collections.abc import Awaitable, Callable

from cni.wire import HEADER_SIZE, MAGIC, Answer, Request, WireError, decode_request, request_size

_AT_ONCE = 64
_CONNECTIONS = 256
# Seconds in which a request has to be there, and an answer taken.
_REQUEST_LIMIT = 10.0
# Seconds in which a client of the control API has to say something.
_SILENCE_LIMIT = 300.0
_CHUNK = 1 << 16
_DESCRIPTORS = 4

Respond = Callable[[Request], Awaitable[Answer]]
HandOn = Callable[[socket.socket], Awaitable[None]]


class CniServer:
    """Serves a listening socket. `hand_on` takes over a connection that is none of the courier's."""

    def __init__(self, listener: socket.socket, respond: Respond, hand_on: HandOn, log: logging.Logger) -> None:
        self._listener = listener
        self._respond = respond
        self._hand_on = hand_on
        self._log = log
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take connections from now on."""
        self._listener.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def stop(self) -> None:
        """Take no more, and give up what is under way."""
        tasks = [*self._tasks, *([] if self._accepting is None else [self._accepting])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._tasks) >= _CONNECTIONS:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # No descriptors left, for a while.
                self._log.error("[cni] unable to take a connection: %s", error)
                await asyncio.sleep(1)
                continue
            connection.setblocking(False)
            task = loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(_SILENCE_LIMIT):
                await _readable(connection)
            if connection.recv(1, socket.MSG_PEEK) != MAGIC[:1]:
                await self._hand_on(connection)
                return
            with contextlib.closing(connection):
                await self._call(connection)
        except (OSError, TimeoutError) as error:
            self._log.debug("[cni] a connection ended early: %s", error)
            connection.close()
        except WireError as error:
            self._log.warning("[cni] a request is refused: %s", error)
        except asyncio.CancelledError:
            connection.close()
            raise
        except Exception:
            # The outermost edge of a connection.
            self._log.exception("[cni] unexpected error while serving a connection")
            connection.close()

    async def _call(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            async with asyncio.timeout(_REQUEST_LIMIT):
                data = await _receive(connection, descriptors)
            if len(descriptors) > 1:
                raise WireError(f"{len(descriptors)} descriptors came along, not one")
            request = decode_request(data, descriptors[0] if descriptors else None)
            async with self._slots:
                answer = await _while_connected(connection, self._respond(request))
            if answer is not None:
                async with asyncio.timeout(_REQUEST_LIMIT):
                    await asyncio.get_running_loop().sock_sendall(connection, answer.encode())
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


async def _readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection.fileno(), arrived)
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())


async def _receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """A whole request; what comes along is added to the descriptors, which are the caller's. Raises WireError."""
    data = bytearray()
    size = HEADER_SIZE
    while len(data) < size:
        try:
            part = _take(connection, min(size - len(data), _CHUNK), descriptors)
        except BlockingIOError:
            await _readable(connection)
            continue
        if not part:
            raise WireError("a request is cut off")
        data += part
        if len(data) == HEADER_SIZE:
            size = request_size(bytes(data))
    return bytes(data)


def _take(connection: socket.socket, size: int, descriptors: list[int]) -> bytes:
    room = socket.CMSG_SPACE(_DESCRIPTORS * array("i").itemsize)
    part, ancillary, _, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            descriptors.extend(numbers)
    return part


async def _while_connected(connection: socket.socket, work: Awaitable[Answer]) -> Answer | None:
    """The answer, or None if the caller is gone before it: the work is cancelled then, and waited for."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_readable(connection))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        return None if task.cancelled() else task.result()
    finally:
        # Both have to be over before the connection is closed.
        watch.cancel()
        task.cancel()
        await asyncio.wait((task, watch))
