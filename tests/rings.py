"""What the routers of a cluster say of addresses and names, and waiting until they all say the same."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from lab.router import Router, peer_name, wait_until
from tests.clusters import Cluster

# Rings travel with broadcasts, at the latest with the gossip of every 30 seconds; the machine may be busy.
GOSSIP = 90.0
T = TypeVar("T")

_waiting = ThreadPoolExecutor(max_workers=16, thread_name_prefix="waiting")


def meanwhile(work: Callable[[], T]) -> "Future[T]":
    """Something that waits, in the background: it must have a time limit of its own."""
    return _waiting.submit(work)


def ring(router: Router) -> tuple[tuple[str, str, int], ...]:
    """The ranges of a router's ring in order: first address, owner's name, count."""
    rows = (router.report().get("IPAM") or {}).get("Entries") or []
    return tuple(sorted((row["Token"], row["Peer"], row["Size"]) for row in rows))


def owners(router: Router) -> dict[int, int]:
    """How many addresses each host has, by a router's ring."""
    counts: dict[str, int] = {}
    for _, owner, size in ring(router):
        counts[owner] = counts.get(owner, 0) + size
    return {int(owner.rpartition(":")[2], 16): count for owner, count in counts.items()}


def await_one_ring(made: Cluster, *, among: Iterable[int] = ()) -> None:
    """Wait until these hosts (all, unless told) hold the same ring, which covers its range."""
    routers = [made.routers[number] for number in (among or made.routers)]
    wait_until("one ring everywhere", lambda: _agree(routers), GOSSIP)


def _agree(routers: list[Router]) -> bool:
    reports = [router.report()["IPAM"] for router in routers]
    rings = {ring(router) for router in routers}
    return len(rings) == 1 and sum(size for *_, size in next(iter(rings))) == reports[0]["RangeNumIPs"]


def section(router: Router, service: str) -> dict[str, str]:
    """One service's lines of the router's status."""
    part = router.get("/status").partition(f"Service: {service}\n")[2].partition("\n\n")[0]
    lines = (line.strip().partition(": ") for line in part.splitlines())
    return {label: value for label, _, value in lines}


def ipam_status(router: Router) -> str:
    """How a router's allocator is doing."""
    return section(router, "ipam").get("Status", "")


def await_each(
    made: Cluster, what: str, holds: Callable[[Router], bool], *, among: Iterable[int] = (), timeout: float = GOSSIP
) -> None:
    """Wait until something holds of each of these hosts' routers (all, unless told)."""
    routers = [made.routers[number] for number in (among or made.routers)]
    wait_until(what, lambda: all(holds(router) for router in routers), timeout)


def await_ready(made: Cluster) -> None:
    """Wait until every host's allocator is ready."""
    await_each(made, "addresses are ready", lambda router: ipam_status(router) == "ready")


def everything_owned(made: Cluster) -> list[str]:
    """Every address in use anywhere, without prefix; twice if two use it."""
    owned = [cidr for router in made.routers.values() for cidrs in router.owned().values() for cidr in cidrs]
    return sorted(cidr.partition("/")[0] for cidr in owned)


def no_address_twice(made: Cluster) -> None:
    """Fails where two have the same address, on whichever hosts."""
    used = everything_owned(made)
    assert len(used) == len(set(used)), f"in use twice: {[one for one in set(used) if used.count(one) > 1]}"


def names(router: Router) -> list[str]:
    """The lines of a router's table of names."""
    return router.get("/status/dns").splitlines()


def await_names(made: Cluster, expected: set[str], *, among: Iterable[int] = ()) -> None:
    """Wait until these hosts (all, unless told) list exactly these names."""
    what = f"the names are {sorted(expected)}"
    await_each(made, what, lambda router: {line.split()[0] for line in names(router)} == expected, among=among)


def peers_known(router: Router) -> set[str]:
    """Names of the peers in a router's topology."""
    return {peer["Name"] for peer in router.report()["Router"]["Peers"]}


def await_gone(made: Cluster, gone: int, *, timeout: float = GOSSIP) -> None:
    """Wait until a host is in nobody else's topology."""
    others = [number for number in made.routers if number != gone]
    await_each(
        made,
        f"host {gone} is gone",
        lambda router: peer_name(gone) not in peers_known(router),
        among=others,
        timeout=timeout,
    )


def connection_rows(router: Router) -> list[dict[str, Any]]:
    """The report's connections."""
    return list(router.report()["Router"]["Connections"] or [])


def await_direct_routes(made: Cluster) -> None:
    """Wait until frames between any two hosts go straight, by no relay that could end."""
    count = len(made.routers)
    await_each(made, "frames go straight to every peer", lambda router: _direct(router) == count - 1)


def _direct(router: Router) -> int:
    return sum(route["Via"] == route["Dest"] for route in router.report()["Router"]["UnicastRoutes"])
