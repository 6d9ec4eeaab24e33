"""Clusters for tests: hosts in namespaces with routers, ours or foreign, containers attached, gone afterwards."""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.net import LabError, Underlay, plug
from lab.router import Router, peer_name, wait_until, weave

_numbers = itertools.count(1)
# An emulated guest on a busy machine takes its time, and says so.
_START = float(os.environ.get("WEAVE_TEST_START", "60"))


@dataclass(frozen=True, slots=True)
class Attached:
    """A container on the bridge: its namespace, which is its identifier too, and its addresses without prefix."""

    namespace: str
    addresses: list[str]

    @property
    def address(self) -> str:
        return self.addresses[0]


@dataclass(slots=True)
class Cluster:
    """Hosts numbered from 1, each with a router; containers are numbered too, and known by their namespace.

    `ipam` is the range that addresses are given from, if any; `launched` says that ours are started by `weave launch`.
    """

    underlay: Underlay
    directory: Path
    foreign: frozenset[int] = frozenset()
    foreign_path: str = ""
    ipam: str = ""
    dns: bool = False
    launched: bool = False
    fastdp: bool = False
    routers: dict[int, Router] = field(default_factory=dict)

    def start(
        self,
        number: int,
        peers: Sequence[int | str],
        *flags: str,
        password: str | None = None,
        wait: bool = True,
        build: Path | None = None,
        without: Sequence[str] = (),
    ) -> Router:
        """Start host `number`'s router, given other hosts by number, and wait until it answers."""
        router = Router(
            self.underlay.host(number),
            self.directory / f"h{number}",
            foreign=self.foreign_path if number in self.foreign else None,
            password=password,
            ipam=self.ipam,
            dns=self.dns,
            build=build,
            fastdp=self.fastdp,
            without=without,
        )
        addresses = [self.address(peer) if isinstance(peer, int) else peer for peer in peers]
        if self.launched and router.foreign is None:
            router.launch(addresses, *flags)
        else:
            router.start(addresses, *flags)
        self.routers[number] = router
        if wait:
            self._await_answer(number)
        return router

    def _await_answer(self, number: int) -> None:
        router = self.routers[number]
        try:
            wait_until(f"router {number} answers", lambda: router.answers() or router.ended(), _START)
        except LabError as error:
            raise LabError(f"{error}; its log ends: {router.log[-600:]}") from error
        if router.ended():
            raise LabError(f"router {number} ended; its log ends: {router.log[-600:]}")

    def start_all(self, count: int, *flags: str, chain: bool = False, password: str | None = None) -> None:
        """A mesh (everybody is given everybody) or a chain (each is given the one before)."""
        for number in range(1, count + 1):
            peers = [other for other in range(1, count + 1) if other != number]
            more = flags
            if chain:
                peers, more = ([number - 1] if number > 1 else []), ("--no-discovery", *flags)
            self.start(number, peers, *more, password=password, wait=False)
        for number in self.routers:
            self._await_answer(number)

    def address(self, number: int) -> str:
        """A host's address on the underlay."""
        return self.underlay.host(number).address

    def attach(self, number: int, *addresses: str, container: int | None = None) -> Attached:
        """A container on a host, with an address of the router's choice or those given (`net:` or `ip:` forms)."""
        router, which = self.routers[number], container or number
        namespace = self.underlay.container(which)
        if number not in self.foreign:
            return Attached(namespace, router.weave("attach", *addresses, namespace).split())
        cidrs = [_address(router, namespace, form) for form in addresses or ("net:default",)]
        plug(router.host.namespace, namespace, which, cidrs)
        return Attached(namespace, [cidr.partition("/")[0] for cidr in cidrs])

    def reset(self, number: int) -> None:
        """Leave the mesh for good: hand over the addresses, stop, forget everything."""
        router = self.routers.pop(number)
        if router.launched is not None:
            router.weave("reset")
            router.launched = None
            return
        router.demand("DELETE", "/peer")
        # Weave Net's own script waits as long for the news to go out.
        time.sleep(0.5)
        router.stop()
        router.forget()

    def container(self, number: int) -> str:
        """Attach a container to a host; its namespace."""
        name = self.underlay.container(number)
        host = self.underlay.host(number)
        if number in self.foreign:
            plug(host.namespace, name, number, [f"10.32.0.{number}/12"])
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
        """Seconds until every router has a route for frames to every other, and all of them see the same links.

        A link is told to the others up to a second after it is established. Until then somebody may pass on a flood
        that its origin sends there itself.
        """

        def settled() -> bool:
            reports = [router.report()["Router"] for router in self.routers.values()]
            return all(len(report["UnicastRoutes"]) == len(reports) for report in reports) and (
                len({seen_links(report) for report in reports}) == 1
            )

        return wait_until("routes to everybody", settled, timeout)

    def stop(self) -> None:
        for router in self.routers.values():
            with contextlib.suppress(OSError):
                router.stop(kill=True)
        self.underlay.remove()


def _address(router: Router, ident: str, form: str) -> str:
    """An address asked for in the command line's forms, from a router that our command line did not come with."""
    kind, _, rest = form.rpartition(":")
    if kind == "net":
        return router.allocate(ident, "" if rest == "default" else rest)
    router.claim(ident, rest)
    return rest


def seen_links(report: Mapping[str, Any]) -> frozenset[tuple[str, str, bool]]:
    """All links as one router sees them: from, to, and whether the first of the two calls it established."""
    return frozenset(
        (peer["Name"], link["Name"], link["Established"])
        for peer in report["Peers"]
        for link in peer["Connections"] or ()
    )


def mesh_links(count: int) -> dict[int, set[int]]:
    """Everybody with everybody."""
    return {n: {other for other in range(1, count + 1) if other != n} for n in range(1, count + 1)}


def chain_links(count: int) -> dict[int, set[int]]:
    """Each with its neighbours in the row."""
    return {n: {other for other in (n - 1, n + 1) if 1 <= other <= count} for n in range(1, count + 1)}


@contextlib.contextmanager
def cluster(
    foreign: Sequence[int] = (),
    foreign_path: str = "",
    *,
    ipam: str = "",
    dns: bool = False,
    launched: bool = False,
    fastdp: bool = False,
) -> Iterator[Cluster]:
    """An empty cluster with namespaces of its own."""
    with tempfile.TemporaryDirectory(prefix="weave-test-") as directory:
        underlay = Underlay(f"wt{os.getpid()}{next(_numbers)}")
        made = Cluster(underlay, Path(directory), frozenset(foreign), foreign_path, ipam, dns, launched, fastdp)
        try:
            yield made
        finally:
            made.stop()
