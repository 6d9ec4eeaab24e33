"""Fast links with real Weave Net 2.8 routers on Open vSwitch, in clear and encrypted, and the change to ours and back.

Needs a kernel with Open vSwitch and ESP besides the router: `WEAVE_NET_ROUTER=... script/test-guest tests/interop/...`.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fastdp.table import GRACE
from lab.capture import Wire, captured
from lab.net import inside, run
from lab.router import wait_until
from lab.traffic import ping, talking
from tests.clusters import Cluster, chain_links, cluster, mesh_links
from tests.e2e.test_esp import MARK, NO_ESP, policies, say, states
from tests.e2e.test_fastdp import all_fast, fastdp, paths
from tests.traffic import arp_is_answered_anew, everything_passes

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
STAY = float(os.environ.get("WEAVE_INTEROP_STAY", "180"))
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.skipif(not Path("/sys/module/openvswitch").exists(), reason="this kernel has no Open vSwitch"),
    pytest.mark.timeout(1200),
]
PASSWORDS = pytest.mark.parametrize(
    "password",
    [None, pytest.param("secret", marks=pytest.mark.skipif(bool(NO_ESP), reason=f"no ESP: {NO_ESP}"))],
    ids=["plain", "encrypted"],
)
SIZE = 300_000


@contextlib.contextmanager
def watched(made: Cluster, number: int, password: str | None) -> Iterator[Wire]:
    """With a password nothing passes a host's port in clear; without one nothing else does."""
    made.underlay.host(number)
    with captured(made.underlay, number, MARK) as wire:
        yield wire
    if password:
        assert wire.clear == 0 and wire.marked == 0 and wire.esp > 100, wire.first
    else:
        assert wire.esp == 0 and wire.clear > 100 and wire.marked > 0


def attach_all(made: Cluster) -> dict[int, str]:
    attached = {number: made.container(number) for number in made.routers}
    made.await_routes()
    return attached


def stays_fast(made: Cluster, links: dict[int, set[int]]) -> None:
    """Everything is established over fastdp, on both sides of every link, for the whole time."""
    wait_until("everything is fast", lambda: all_fast(made), 60)
    until = time.monotonic() + STAY
    while time.monotonic() < until:
        assert {number: set(paths(made, number)) for number in made.routers} == {
            number: {f"host{other}" for other in others} for number, others in links.items()
        }
        assert all_fast(made)
        time.sleep(5)


@PASSWORDS
def test_each_kind_relays_for_the_other(password: str | None) -> None:
    """A chain: real, ours, real, ours."""
    with cluster([1, 3], REAL, fastdp=True) as made, watched(made, 2, password):
        made.start_all(4, chain=True, password=password)
        made.await_links(chain_links(4))
        attached = attach_all(made)
        wait_until("everything is fast", lambda: all_fast(made), 60)
        everything_passes(attached, SIZE)
        for one, source in attached.items():
            for other in set(attached) - {one}:
                assert ping(source, f"10.32.0.{other}", size=1348, df=True), f"full size, {one} -> {other}"
        say(attached[1], attached[4], "10.32.0.4")
        stays_fast(made, chain_links(4))
        arp_is_answered_anew(attached)
        assert fastdp(made, 2)["Counts"]["relayed"] > 100


@PASSWORDS
@pytest.mark.parametrize("victim", [1, 2], ids=["real-restarts", "ours-restarts"])
def test_killed_and_restarted(victim: int, password: str | None) -> None:
    with cluster([1], REAL, fastdp=True) as made, watched(made, 2, password):
        made.start_all(2, password=password)
        made.await_links(mesh_links(2))
        attached = attach_all(made)
        for _ in range(2):
            wait_until("both are fast", lambda: all_fast(made), 60)
            everything_passes(attached, SIZE)
            say(attached[1], attached[2], "10.32.0.2")
            made.routers[victim].stop(kill=True)
            time.sleep(2)
            made.start(victim, [3 - victim], password=password)
            made.await_links(mesh_links(2))
            made.await_routes()
        wait_until("both are fast", lambda: all_fast(made), 60)
        everything_passes(attached, SIZE)
        if password:
            wait_until("our old keys are gone", lambda: states(made, 2) == 2, 60)
            assert policies(made, 2) == 2


@pytest.mark.parametrize("victim", [1, 2], ids=["real-dies", "ours-dies"])
def test_what_a_connection_outlives(victim: int) -> None:
    """Through a death ours go on among themselves; with 2.8, which forgets a peer with its connection, they wait.

    What waits is not lost: TCP goes on when the router is back and both sides have found each other.
    """
    with cluster([1], REAL, fastdp=True) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = attach_all(made)
        wait_until("everything is fast", lambda: all_fast(made), 60)
        with (
            talking(attached[1], attached[2], "10.32.0.2") as mixed,
            talking(attached[2], attached[3], "10.32.0.3") as own,
        ):
            wait_until("both talk", lambda: mixed.has(50) and own.has(50), 60)
            made.routers[victim].stop(kill=True)
            died = time.monotonic()
            time.sleep(2)
            made.start(victim, [other for other in (1, 2, 3) if other != victim])
            made.await_links(mesh_links(3), 120)
            away = time.monotonic() - died
            wait_until("everything is fast", lambda: all_fast(made), 120)
            wanted = (mixed.exchanges + 50, own.exchanges + 50)
            wait_until("both go on", lambda: mixed.has(wanted[0]) and own.has(wanted[1]), 120)
        print(f"away {away:.1f} s; longest waits: with 2.8 {mixed.silence:.1f} s, between ours {own.silence:.1f} s")
        assert own.silence < 5 or away > GRACE, "among ours nobody waits for a router"


@PASSWORDS
def test_taken_over_from_open_vswitch_and_given_back(password: str | None) -> None:
    """The host of a real router, killed with its datapath in place, goes over to ours, and back."""
    with cluster([1, 2], REAL, fastdp=True, launched=True) as made:
        made.start_all(2, password=password)
        made.await_links(mesh_links(2))
        attached = attach_all(made)
        wait_until("both are fast", lambda: all_fast(made), 60)
        host = made.underlay.host(1).namespace
        reach = partial(ping, attached[1], "10.32.0.2")
        with talking(attached[1], attached[2], "10.32.0.2") as talk:
            made.routers[1].stop(kill=True)
            made.foreign = frozenset({2})
            made.start(1, [2], password=password)
            made.await_links(mesh_links(2))
            wait_until("both are fast", lambda: all_fast(made), 90)
            wait_until("they reach each other", reach, 60)
            assert fastdp(made, 1)["Counts"]["out-unicast"] > 0
            if password:
                assert states(made, 1) == 2 and "0x20000" not in run("ip", "-n", host, "xfrm", "policy")
            wait_until("2.8's rules are gone", lambda: "WEAVE" not in _rules(host), 60)
            everything_passes(attached, SIZE)

            said = made.routers[1].weave("stop", "--hand-back", "--db-prefix", str(made.routers[1].directory / "weave"))
            assert "removed vxlan-6784" in said and "--no-fastdp" not in said
            made.routers[1].launched = None
            if password:
                assert states(made, 1) == 0 and "weave_esp" not in run(*inside(host, "nft", "list", "tables"))
            made.foreign = frozenset({1, 2})
            made.start(1, [2], password=password)
            made.await_links(mesh_links(2))
            wait_until("both are fast", lambda: all_fast(made), 90)
            wait_until("they reach each other", reach, 60)
            more = talk.exchanges + 20
            wait_until("the connection goes on", lambda: talk.has(more), 90)
        everything_passes(attached, SIZE)


def _rules(host: str) -> str:
    return run(*inside(host, "iptables-save"), check=False)
