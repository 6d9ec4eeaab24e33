"""weave-npc's work on the nodes of a site, without its loop; and traffic that goes on meanwhile."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from host.netns import inside
from npc import bridge
from npc.base import Options
from npc.kernel import Table
from npc.model import Model, Touched
from npc.planner import Planner
from tests.npc.site import BRIDGE, Site

_PAUSE = 0.002


class Node:
    """A node's planner and table."""

    def __init__(self, made: Site, name: str, model: Model, options: Options = Options()) -> None:  # noqa: B008
        self._made, self.name = made, name
        self._planner = Planner(model, name, options)
        self.table: Table = made.on_host(name, Table)
        made.on_host(name, lambda: bridge.ensure(BRIDGE))

    def start(self, touched: Touched) -> None:
        """The first plan, as a whole."""
        self._planner.update(touched)
        self.rewrite()

    def rewrite(self) -> None:
        """The same table anew."""
        self.table.replace(self._planner.plan)

    def follow(self, touched: Touched) -> None:
        """The change from what was there."""
        change = self._planner.update(touched)
        self.table.apply(change, self._planner.plan)

    def check(self) -> None:
        assert self.table.refused == {}
        assert self.table.audit(self._planner.plan) == []

    def close(self) -> None:
        self.table.remove()
        self.table.close()


@dataclass(slots=True)
class Traffic:
    """What was asked and what came: `echoed` rounds of connections that last, `opened` new connections,
    `leaked` datagrams of whom is denied, `tried` of them, and what went wrong."""

    echoed: int = 0
    opened: int = 0
    tried: int = 0
    leaked: int = 0
    faults: list[str] = field(default_factory=list)


@contextlib.contextmanager
def traffic(allowed: str, denied: list[tuple[str, str]], server: tuple[str, str], port: int) -> Iterator[Traffic]:
    """An echo server in a namespace, one who may reach it and some who may not, until the block ends.

    `denied` and `server` are namespaces with their address; `allowed` is a namespace.
    """
    seen, over = Traffic(), threading.Event()
    listener = inside(f"/run/netns/{server[0]}", lambda: _listener(server[1], port))
    catcher = inside(f"/run/netns/{server[0]}", lambda: _catcher(server[1], port))
    jobs = [
        threading.Thread(target=_serve, args=(listener, over)),
        threading.Thread(target=_catch, args=(catcher, {address for _, address in denied}, seen, over)),
        threading.Thread(target=inside, args=(f"/run/netns/{allowed}", lambda: _hold(server[1], port, seen, over))),
        threading.Thread(target=inside, args=(f"/run/netns/{allowed}", lambda: _open(server[1], port, seen, over))),
    ]
    for namespace, address in denied:
        work = partial(_attempt, address, server[1], port, seen, over)
        jobs.append(threading.Thread(target=inside, args=(f"/run/netns/{namespace}", work)))
    for job in jobs:
        job.start()
    try:
        yield seen
    finally:
        over.set()
        for job in jobs:
            job.join()
        listener.close()
        catcher.close()


def _listener(address: str, port: int) -> socket.socket:
    sock = socket.create_server((address, port), backlog=1000)
    sock.settimeout(0.2)
    return sock


def _catcher(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(0.2)
    return sock


def _serve(listener: socket.socket, over: threading.Event) -> None:
    open_ones: list[socket.socket] = []
    listener.setblocking(False)
    while not over.is_set():
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                connection.setblocking(False)
                open_ones.append(connection)
        for connection in list(open_ones):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                content = connection.recv(4096)
                if content:
                    connection.sendall(content)
                else:
                    connection.close()
                    open_ones.remove(connection)
        time.sleep(_PAUSE / 4)
    for connection in open_ones:
        connection.close()


def _catch(catcher: socket.socket, denied: set[str], seen: Traffic, over: threading.Event) -> None:
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            _, (source, _port) = catcher.recvfrom(100)
            seen.leaked += source in denied


def _hold(address: str, port: int, seen: Traffic, over: threading.Event) -> None:
    """One connection that must not break."""
    try:
        with socket.create_connection((address, port), timeout=20) as sock:
            sock.settimeout(20)
            while not over.is_set():
                sock.sendall(b"echo")
                if not sock.recv(100) and not over.is_set():
                    seen.faults.append("the held connection ended")
                    return
                seen.echoed += 1
                time.sleep(_PAUSE)
    except OSError as error:
        # The server's end closes first when all is over.
        if not over.is_set():
            seen.faults.append(f"the held connection: {error}")


def _open(address: str, port: int, seen: Traffic, over: threading.Event) -> None:
    """New connections, one after the other, none of which may fail or wait for a second attempt."""
    while not over.is_set():
        started = time.monotonic()
        try:
            with socket.create_connection((address, port), timeout=20):
                seen.opened += 1
        except OSError as error:
            seen.faults.append(f"a new connection: {error}")
        # The kernel sends a second SYN after a second: the first one was lost.
        if time.monotonic() - started > 0.95:
            seen.faults.append(f"a new connection took {time.monotonic() - started:.2f} s")
        time.sleep(_PAUSE)


def _attempt(source: str, address: str, port: int, seen: Traffic, over: threading.Event) -> None:
    """Datagrams of many connections: each from a port of its own."""
    while not over.is_set():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(b"denied", (address, port))
            seen.tried += 1
        time.sleep(_PAUSE)
