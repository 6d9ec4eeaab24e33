"""Addresses a second: by the service alone, and by whole routers over their control API, ours and 2.8's beside it.

    python -m bench.ipam                     1 and 8 clients, 5 seconds each
    python -m bench.ipam --directory /var    on another disk

Every address is durable before it is answered, so the disk's synchronous writes are part of it; their rate is shown.
Routers run in network namespaces, hence root; 2.8's path is in WEAVE_NET_ROUTER, else its known figure stands in.
"""

import argparse
import asyncio
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

from ipam.founding import Init
from ipam.ranges import Subnet
from ipam.service import Ipam
from lab.net import Underlay, require_root
from lab.router import RANGE, Router, socket_in, wait_until
from mesh.names import PeerName
from weave_py.store import Store
from weave_py.store_ipam import IpamJournal

_KNOWN = 108.0
_CLIENTS = (1, 8)
# The end of an answer: neither router adds a newline.
_ADDRESS = re.compile(rb"\r\n\r\n[0-9.]+/12$")


class Alone:
    """A mesh of one peer, and its gossip channel that reaches nobody."""

    def knows(self, name: PeerName) -> bool:
        return False

    def nickname(self, name: PeerName) -> str:
        return ""

    def names(self) -> Iterable[PeerName]:
        return ()

    def target_count(self) -> int:
        return 0

    def unicast(self, destination: PeerName, message: bytes) -> None:
        """Nobody to tell."""

    def broadcast(self, message: bytes) -> None:
        """Nobody to tell."""

    def neighbours(self, message: bytes) -> None:
        """Nobody to tell."""


def synced_writes(directory: Path, seconds: float) -> float:
    """Small appends a second that the disk confirms."""
    done, begin = 0, time.monotonic()
    with (directory / "probe").open("ab", buffering=0) as file:
        while time.monotonic() - begin < seconds:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            done += 1
    return done / (time.monotonic() - begin)


async def by_service(directory: Path, clients: int, seconds: float) -> float:
    """Allocations a second of the service with its real journal."""
    store = Store(str(directory / f"service-{clients}"))
    mesh = Alone()
    ipam = Ipam(
        PeerName(1),
        "bench",
        Subnet.parse(RANGE),
        init=Init(quorum=1),
        uid=1,
        mesh=mesh,
        journal=IpamJournal(store),
        rng=Random(1),
        log=logging.getLogger("bench"),
    )
    await ipam.start(mesh)
    await ipam.prime()
    counts = [0] * clients
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < end:
            await ipam.allocate(f"c{number}-{counts[number]}")
            counts[number] += 1

    begin = time.monotonic()
    await asyncio.gather(*map(client, range(clients)))
    rate = sum(counts) / (time.monotonic() - begin)
    await ipam.stop()
    store.close()
    return rate


def by_router(directory: Path, foreign: str | None, seconds: float) -> list[float]:
    """Allocations a second of a whole router over HTTP, for each number of clients."""
    underlay = Underlay(f"wi{os.getpid()}")
    router = Router(underlay.host(1), directory / ("real" if foreign else "ours"), foreign=foreign, ipam=RANGE)
    try:
        router.start([])
        wait_until("the router answers", router.answers, 60)
        router.prime()
        return [in_parallel(clients, seconds, underlay.host(1).namespace) for clients in _CLIENTS]
    finally:
        router.stop(kill=True)
        underlay.remove()


def in_parallel(clients: int, seconds: float, namespace: str) -> float:
    """Allocations a second of as many threads, each with a connection of its own that costs next to nothing."""
    counts = [0] * clients
    connections = [connection_to(namespace) for _ in range(clients)]
    begin = time.monotonic()

    def client(number: int) -> None:
        connection = connections[number]
        while time.monotonic() - begin < seconds:
            path = f"/ip/c{clients}-{number}-{counts[number]}"
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            answer = connection.recv(4096)
            while not _ADDRESS.search(answer):
                more = connection.recv(4096)
                assert more and answer.startswith(b"HTTP/1.1 200 "), answer.decode()
                answer += more
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()
    return sum(counts) / (time.monotonic() - begin)


def connection_to(namespace: str) -> socket.socket:
    """The control API of a namespace's router, for many requests."""
    connection = socket_in(namespace)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", 6784))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench ipam", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each figure is measured")
    parser.add_argument("--directory", default=None, help="where the state lies: on the disk to be measured")
    options = parser.parse_args()
    require_root()
    real = os.environ.get("WEAVE_NET_ROUTER")
    with tempfile.TemporaryDirectory(prefix="weave-bench-", dir=options.directory) as name:
        directory = Path(name)
        print(f"synchronous writes of the disk: {synced_writes(directory, 1.0):.0f}/s")
        service = [asyncio.run(by_service(directory, clients, options.seconds)) for clients in _CLIENTS]
        ours = by_router(directory, None, options.seconds)
        theirs = by_router(directory, real, options.seconds) if real else [_KNOWN] * len(_CLIENTS)
    print(f"allocations/s  {'service':>10} {'ours, HTTP':>12} {'2.8, HTTP':>12} {'ours/2.8':>10}")
    if not real:
        print(f"  WEAVE_NET_ROUTER names no 2.8 router: {_KNOWN:.0f}/s is known of it on another disk")
    for row in zip(_CLIENTS, service, ours, theirs, strict=True):
        clients, alone, whole, reference = row
        print(f"  {clients} clients    {alone:10.0f} {whole:12.0f} {reference:12.0f} {whole / reference:10.1f}")


if __name__ == "__main__":
    main()
