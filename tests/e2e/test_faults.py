"""Whole routers whose underlay misbehaves: blocked and lossy UDP, refused sends, a relay that dies."""

from lab.router import wait_until, weave
from lab.traffic import ping, tcp
from tests.clusters import Cluster, chain_links, cluster, mesh_links


def terminations(made: Cluster) -> list[int]:
    """How many connections each router has seen end."""
    return [router.report()["Router"]["TerminationCount"] for router in made.routers.values()]


def test_blocked_udp_is_relayed_around() -> None:
    """Two hosts that only reach each other by TCP stay pending; a third carries their frames until UDP passes."""
    with cluster() as made:
        made.underlay.block(1, 2)
        made.start_all(3, password="secret")
        made.await_links({1: {3}, 2: {3}, 3: {1, 2}})
        one, two = made.container(1), made.container(2)
        made.await_routes()
        assert ping(one, "10.32.0.2", count=10)
        tcp(two, one, "10.32.0.1", 1_000_000)
        shown = weave(made.underlay.host(1), "status", "connections")
        assert "pending     encrypted   sleeve" in shown
        for number in (1, 2):
            made.underlay.clear(number)
        # Heartbeats go out every 10 seconds; the next one establishes the connection.
        made.await_links(mesh_links(3))
        assert ping(one, "10.32.0.2", count=10)


def test_lossy_underlay() -> None:
    with cluster() as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        one, two = made.container(1), made.container(2)
        made.await_routes()
        # Two that dial each other end one of two connections; from here on none may end.
        ended = terminations(made)
        for number in (1, 2):
            made.underlay.lose(number, 5)
        tcp(one, two, "10.32.0.2", 500_000)
        tcp(two, one, "10.32.0.1", 500_000)
        assert made.neighbours(1) == {2}
        assert terminations(made) == ended


def test_refused_sends_cost_frames_only() -> None:
    with cluster() as made:
        made.start_all(2, password="secret")
        made.await_links(mesh_links(2))
        one, _ = made.container(1), made.container(2)
        made.await_routes()
        assert ping(one, "10.32.0.2", count=10)
        ended = terminations(made)
        made.underlay.refuse(1)
        assert not ping(one, "10.32.0.2", count=3)
        made.underlay.clear(1)
        assert ping(one, "10.32.0.2", count=10)
        assert made.neighbours(1) == {2}
        assert terminations(made) == ended


def test_a_relay_is_killed_and_comes_back() -> None:
    with cluster() as made:
        made.start_all(3, chain=True)
        made.await_links(chain_links(3))
        one, three = made.container(1), made.container(3)
        made.await_routes()
        assert ping(one, "10.32.0.3", count=10)
        made.routers[2].stop(kill=True)
        wait_until("the ends are alone", lambda: not made.neighbours(1) and not made.neighbours(3), 10)
        made.start(2, [1, 3], "--no-discovery")
        made.await_links(chain_links(3))
        made.await_routes()
        assert ping(one, "10.32.0.3", count=10)
        tcp(three, one, "10.32.0.1", 1_000_000)
