"""Clusters for tests: hosts in namespaces with routers, ours or foreign, containers attached, gone afterwards."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.net import Underlay, plug
from lab.router import Router, peer_name, wait_until, weave

_numbers = itertools.count(1)
_START = 60.0


@dataclass(slots=True)
class Cluster:
    """Hosts numbered from 1, each with a router and at most one container, 10.32.0.N."""

    underlay: Underlay
    directory: Path
    foreign: frozenset[int] = frozenset()
    foreign_path: str = ""
    routers: dict[int, Router] = field(default_factory=dict)

    def start(
        self, number: int, peers: Sequence[int | str], *flags: str, password: str | None = None, wait: bool = True
    ) -> Router:
        """Start host `number`'s router, given other hosts by number, and wait until it answers."""
        router = Router(
            self.underlay.host(number),
            self.directory / f"h{number}",
            foreign=self.foreign_path if number in self.foreign else None,
            password=password,
        )
        addresses = [self.address(peer) if isinstance(peer, int) else peer for peer in peers]
        router.start(addresses, *flags)
        self.routers[number] = router
        if wait:
            wait_until(f"router {number} answers; its log ends: {router.log[-300:]}", router.answers, _START)
        return router

    def start_all(self, count: int, *flags: str, chain: bool = False, password: str | None = None) -> None:
        """A mesh (everybody is given everybody) or a chain (each is given the one before)."""
        for number in range(1, count + 1):
            peers = [other for other in range(1, count + 1) if other != number]
            more = flags
            if chain:
                peers, more = ([number - 1] if number > 1 else []), ("--no-discovery", *flags)
            self.start(number, peers, *more, password=password, wait=False)
        for number, router in self.routers.items():
            wait_until(f"router {number} answers", router.answers, _START)

    def address(self, number: int) -> str:
        """A host's address on the underlay."""
        return self.underlay.host(number).address

    def container(self, number: int) -> str:
        """Attach a container to a host; its namespace."""
        name = self.underlay.container(number)
        host = self.underlay.host(number)
        if number in self.foreign:
            plug(host.namespace, name, number, f"10.32.0.{number}/12")
        else:
            weave(host, "attach", f"10.32.0.{number}/12", name)
        return name

    def neighbours(self, number: int) -> set[int]:
        """Hosts to which a host has an established connection."""
        names = {peer_name(other): other for other in self.routers}
        return {names[name] for name in self.routers[number].established() if name in names}

    def await_links(self, links: dict[int, set[int]], timeout: float = 60.0) -> float:
        """Seconds until every host has exactly these established connections."""
        return wait_until(
            f"connections {links}", lambda: all(self.neighbours(n) == others for n, others in links.items()), timeout
        )

    def await_routes(self, timeout: float = 40.0) -> float:
        """Seconds until every router has a route for frames to every other."""
        count = len(self.routers)
        return wait_until(
            "routes to everybody",
            lambda: all(len(r.report()["Router"]["UnicastRoutes"]) == count for r in self.routers.values()),
            timeout,
        )

    def stop(self) -> None:
        for router in self.routers.values():
            with contextlib.suppress(OSError):
                router.stop(kill=True)
        self.underlay.remove()


def mesh_links(count: int) -> dict[int, set[int]]:
    """Everybody with everybody."""
    return {n: {other for other in range(1, count + 1) if other != n} for n in range(1, count + 1)}


def chain_links(count: int) -> dict[int, set[int]]:
    """Each with its neighbours in the row."""
    return {n: {other for other in (n - 1, n + 1) if 1 <= other <= count} for n in range(1, count + 1)}


@contextlib.contextmanager
def cluster(foreign: Sequence[int] = (), foreign_path: str = "") -> Iterator[Cluster]:
    """An empty cluster with namespaces of its own."""
    with tempfile.TemporaryDirectory(prefix="weave-test-") as directory:
        underlay = Underlay(f"wt{os.getpid()}{next(_numbers)}")
        made = Cluster(underlay, Path(directory), frozenset(foreign), foreign_path)
        try:
            yield made
        finally:
            made.stop()
