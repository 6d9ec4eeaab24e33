"""The workflows of operators in meshes with real Weave Net 2.8 routers. Source: CLI spec §12, W1 to W12 without W9.

Each runs with either kind in each role. `all-real` shows that what is asked here is what Weave Net itself does.
"""

import os

import pytest

from lab.router import RANGE
from tests import workflows
from tests.clusters import cluster

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.timeout(600),
]

THREE, FIVE = range(1, 4), range(1, 6)
ALL_OF_THREE = pytest.param(3, list(THREE), id="all-real", marks=pytest.mark.long)
ALL_OF_FIVE = pytest.param(5, list(FIVE), id="all-real", marks=pytest.mark.long)
REAL_FIRST = pytest.param(3, [1], id="three-real-first")
OURS_FIRST = pytest.param(3, [2, 3], id="three-ours-first")
FIVE_REAL_FIRST = pytest.param(5, [1, 3, 4], id="five-real-first")
FIVE_OURS_FIRST = pytest.param(5, [2, 5], id="five-ours-first")
MIXES = [REAL_FIRST, OURS_FIRST, FIVE_REAL_FIRST, FIVE_OURS_FIRST]
# The host with a role is the first: in turn a real one and one of ours.
ROLES = [
    pytest.param([1], id="of-a-real-one"),
    pytest.param([2, 3], id="of-one-of-ours"),
    pytest.param(list(THREE), id="all-real", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("count", "foreign"), [*MIXES, ALL_OF_THREE])
def test_w01_interactive(count: int, foreign: list[int]) -> None:
    """Hosts are launched one after the other, each given those before; prime returns, there is one ring."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w01_interactive(made, count)


@pytest.mark.parametrize(("count", "foreign"), [*MIXES, ALL_OF_FIVE])
def test_w02_uniform_fixed(count: int, foreign: list[int]) -> None:
    """All are started with one list that includes themselves; a majority of the list divides the range."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w02_uniform_fixed(made, count)


@pytest.mark.parametrize(("count", "foreign"), [FIVE_REAL_FIRST, FIVE_OURS_FIRST, ALL_OF_FIVE])
def test_w03_uniform_dynamic(count: int, foreign: list[int]) -> None:
    """With named seeds everybody may start at any time, even while parted; all make the same ring."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w03_uniform_dynamic(made, count)


@pytest.mark.parametrize(
    ("count", "foreign"),
    [
        pytest.param(3, [3], id="three-real-observer"),
        pytest.param(3, [1, 2], id="three-ours-observes"),
        pytest.param(5, [1, 3], id="five-both-observe"),
        ALL_OF_FIVE,
    ],
)
def test_w04_autoscaling(count: int, foreign: list[int]) -> None:
    """Observers wait for the core's ring, are granted space as they ask, and give it back by `reset`."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w04_autoscaling(made, count)


@pytest.mark.parametrize("foreign", ROLES)
def test_w05_remove_peer(foreign: list[int]) -> None:
    """One leaves by `reset`, the others forget it; an heir has its addresses, and nothing is unreachable."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w05_remove_peer(made, 3, leaves=1)


@pytest.mark.parametrize("foreign", ROLES)
def test_w06_dead_peer(foreign: list[int]) -> None:
    """One dies and shows as unreachable, until `rmpeer` on one of the others takes its addresses over."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w06_dead_peer(made, 3, dies=1)


@pytest.mark.parametrize("foreign", ROLES)
def test_w07_stop_and_launch(foreign: list[int]) -> None:
    """Stopped and launched, with a list or with --resume, it has its addresses and every peer it was told of."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w07_stop_and_launch(made, stops=1)


@pytest.mark.parametrize("foreign", ROLES)
def test_w08_crash_and_restart(foreign: list[int]) -> None:
    """Killed and started in place, it takes the stored list of peers and gives no address a second time."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w08_crash_and_restart(made, crashes=1)


@pytest.mark.parametrize(("count", "foreign"), [REAL_FIRST, OURS_FIRST, ALL_OF_THREE])
def test_w10_encryption(count: int, foreign: list[int]) -> None:
    """All have the password; two trust the network between them, and only their frames go in clear."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w10_encryption(made)


@pytest.mark.parametrize("foreign", ROLES)
def test_w11_wrong_password(foreign: list[int]) -> None:
    """With another password, or none, it says so and harms nobody; with the right one it joins."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        workflows.w11_wrong_password(made, wrong=1)


@pytest.mark.parametrize("foreign", ROLES)
def test_w12_partition(foreign: list[int]) -> None:
    """Cut off, it is noticed by heartbeats and its names go; healed, names, ring and traffic are as before."""
    with cluster(foreign, REAL, ipam=RANGE, dns=True) as made:
        workflows.w12_partition(made, alone=1, seconds=90)
