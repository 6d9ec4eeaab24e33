"""Whatever took the fast path away from a peer, and for how long: it is back within 15 s of the end of that."""

import time
from collections.abc import Callable

import pytest

from lab.router import wait_until
from lab.traffic import ping
from tests.clusters import Cluster, cluster, mesh_links
from tests.e2e.test_fastdp import BACK, all_fast, filter_vxlan, started


def pull_the_cable(made: Cluster) -> Callable[[], None]:
    made.underlay.cut(2)
    return lambda: made.underlay.cut(2, down=False)


def lose_everything(made: Cluster) -> Callable[[], None]:
    """Somewhere between the hosts, so that neither hears a word of it."""
    made.underlay.separate([2], [1, 3])

    def end() -> None:
        for number in made.routers:
            made.underlay.clear(number)

    return end


def lose_most(made: Cluster) -> Callable[[], None]:
    for number in made.routers:
        filter_vxlan(made, number, "numgen random mod 100 < 90 drop")

    def end() -> None:
        for number in made.routers:
            filter_vxlan(made, number)

    return end


def kill_it(made: Cluster) -> Callable[[], None]:
    """It comes back knowing nobody: the others have to find it."""
    made.routers[2].stop(kill=True)

    def end() -> None:
        made.start(2, [])

    return end


def fast(made: Cluster) -> bool:
    links = mesh_links(len(made.routers))
    return all(made.neighbours(number) == others for number, others in links.items()) and all_fast(made)


_LONG = (pytest.mark.long, pytest.mark.timeout(600))


@pytest.mark.parametrize(
    ("cause", "seconds"),
    [
        (pull_the_cable, 20),
        # As long as a control connection may stay silent afterwards, whose next packet is then far away.
        (lose_everything, 30),
        (lose_everything, 45),
        (lose_most, 30),
        (kill_it, 5),
        # Longer than control connections live.
        (pull_the_cable, 75),
        pytest.param(kill_it, 120, marks=_LONG),
        pytest.param(pull_the_cable, 180, marks=_LONG),
        pytest.param(lose_everything, 180, marks=_LONG),
        pytest.param(pull_the_cable, 420, marks=(pytest.mark.long, pytest.mark.timeout(900))),
    ],
    ids=lambda value: getattr(value, "__name__", f"{value} s"),
)
def test_back_in_time(cause: Callable[[Cluster], Callable[[], None]], seconds: int) -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 3, within=20)
        end = cause(made)
        time.sleep(seconds)
        if cause is not kill_it:
            assert not all_fast(made)
        end()
        wait_until("everything is fast again", lambda: fast(made), BACK)
        for number in (1, 3):
            assert ping(attached[number], "10.32.0.2")
