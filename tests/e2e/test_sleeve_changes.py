"""Sleeve while streams run: the path shrinks, the key changes, a relay carries; the bytes arrive all the same."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.router import wait_until
from lab.traffic import tcp
from tests.clusters import Cluster, cluster, mesh_links

SIZE = 150_000_000


def while_streams_run(made: Cluster, change: Callable[[], None]) -> None:
    """Streams in both directions between the first two containers, during which something changes."""
    one, two = (router.host.namespace.replace("-h", "-c") for router in (made.routers[1], made.routers[2]))
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(tcp, one, two, "10.32.0.2", SIZE), pool.submit(tcp, two, one, "10.32.0.1", SIZE)]
        wait_until("frames flow", lambda: frames_out(made, 1) > 2000, 30, 0.05)
        change()
        for done in runs:
            done.result()


def frames_out(made: Cluster, number: int) -> int:
    """Frames that a router has sent to its neighbours."""
    links = made.routers[number].report()["Router"]["Sleeve"]["Links"] or ()
    return sum(link["Counts"].get("frames-out", 0) for link in links)


def mtus(made: Cluster) -> set[int]:
    """What the links take, once verified."""
    links = [link for number in (1, 2) for link in made.routers[number].report()["Router"]["Sleeve"]["Links"]]
    return {link["MTU"] for link in links if link["MTUVerified"]}


@pytest.mark.parametrize("implementation", ["native", "python"])
def test_the_path_shrinks(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVE_SLEEVE", implementation)
    with cluster() as made:
        made.start_all(2, password="secret")
        made.await_links(mesh_links(2))
        for number in (1, 2):
            made.container(number)
        made.await_routes()
        wait_until("path MTUs are verified", lambda: mtus(made) == {1414}, 20)

        def shrink() -> None:
            for number in (1, 2):
                made.underlay.set_mtu(number, 1400)

        while_streams_run(made, shrink)
        wait_until("the smaller MTU is verified", lambda: mtus(made) == {1314}, 20)
        assert all(router.report()["Router"]["TerminationCount"] == 0 for router in made.routers.values())
        implementations = {r.report()["Router"]["Sleeve"]["Implementation"] for r in made.routers.values()}
        assert implementations == {implementation}


def test_the_key_changes() -> None:
    with cluster() as made:
        made.start_all(2, password="secret")
        made.await_links(mesh_links(2))
        for number in (1, 2):
            made.container(number)
        made.await_routes()

        def reconnect() -> None:
            for _ in range(2):
                made.routers[2].stop(kill=True)
                wait_until("the other notices", lambda: not made.neighbours(1), 15)
                made.start(2, [1], password="secret")
                made.await_links(mesh_links(2))

        while_streams_run(made, reconnect)


def test_a_relay_carries_streams() -> None:
    with cluster() as made:
        made.start_all(3, chain=True, password="secret")
        for number in (1, 2, 3):
            made.container(number)
        made.await_routes()
        one, three = (made.routers[number].host.namespace.replace("-h", "-c") for number in (1, 3))
        tcp(one, three, "10.32.0.3", 20_000_000)
        counts = made.routers[2].report()["Router"]["Sleeve"]["Counts"]
        assert counts["core-relayed"] > 10_000
        assert counts["core-to-python"] < 1000, "the core relays by itself"
