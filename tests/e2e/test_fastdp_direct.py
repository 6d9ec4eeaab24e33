"""Routers whose kernel takes no program from them: a VXLAN device for every direct peer, sleeve for the rest."""

import time
from collections.abc import Sequence

import pytest

from lab.net import run
from lab.router import wait_until, weave
from lab.traffic import ping
from tests.clusters import Cluster, chain_links, cluster, mesh_links
from tests.e2e.test_fastdp import (
    BACK,
    all_fast,
    containers,
    each_once,
    fastdp,
    filter_vxlan,
    none_fast,
    paths,
    reason,
    while_a_flow_lives,
)
from tests.traffic import everything_passes

NO_BPF = ("bpf", "sys_admin")


def start(made: Cluster, number: int, peers: Sequence[int], *flags: str, bpf: bool = False) -> None:
    made.start(number, list(peers), *flags, without=() if bpf else NO_BPF)


@pytest.mark.parametrize("programs", [(), (2, 3)], ids=["none has programs", "the others have programs"])
def test_a_mesh(programs: tuple[int, ...]) -> None:
    with cluster(fastdp=True) as made:
        for number in (1, 2, 3):
            start(made, number, range(1, number), bpf=number in programs)
        made.await_links(mesh_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 15)
        everything_passes(attached, 10_000_000)
        assert ping(attached[1], "10.32.0.2", size=1348, df=True)
        each_once(attached)
        assert fastdp(made, 1)["Mode"] == "a device per peer"
        shown = weave(made.underlay.host(1), "status", "fastdp")
        assert "a device per peer: no BPF" in shown and shown.count("works") == 2
        assert all_fast(made)


def test_the_end_of_a_chain() -> None:
    """What goes further than the neighbour goes over sleeve as far as him, and back."""
    with cluster(fastdp=True) as made:
        for number in (1, 2, 3):
            start(made, number, range(max(1, number - 1), number), "--no-discovery", bpf=number > 1)
        made.await_links(chain_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 15)
        everything_passes(attached, 1_000_000)
        each_once(attached)
        assert all_fast(made)


def test_the_middle_of_a_chain() -> None:
    """Who relays for others is reached over sleeve, for as long as he does."""
    with cluster(fastdp=True) as made:
        for number in (1, 2, 3):
            start(made, number, range(max(1, number - 1), number), "--no-discovery", bpf=number != 2)
        made.await_links(chain_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until("sleeve", lambda: none_fast(made), 15)
        assert "have to be relayed here" in reason(made, 2) and "the peer has to relay" in reason(made, 1)
        everything_passes(attached, 1_000_000)
        each_once(attached)
        made.routers[3].stop()
        wait_until("fastdp, without the third", lambda: paths(made, 1) == {"host2": "fastdp"}, 60)
        assert ping(attached[1], "10.32.0.2")


def test_a_blocked_port() -> None:
    with cluster(fastdp=True) as made:
        for number in (1, 2):
            start(made, number, range(1, number))
        made.await_links(mesh_links(2))
        attached = containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 15)
        for number in (1, 2):
            filter_vxlan(made, number, "drop")
        wait_until("both leave", lambda: none_fast(made), BACK)
        everything_passes(attached, 1_000_000)
        for number in (1, 2):
            filter_vxlan(made, number)
        wait_until("both return", lambda: all_fast(made), BACK)
        everything_passes(attached, 1_000_000)
        each_once(attached)


def test_flows_outlive_the_router() -> None:
    with cluster(fastdp=True) as made:
        for number in (1, 2):
            start(made, number, range(1, number))
        made.await_links(mesh_links(2))
        containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 15)

        def restart() -> None:
            made.routers[1].stop(kill=True)
            time.sleep(2)
            start(made, 1, [2])
            wait_until("everything is fast again", lambda: made.neighbours(1) == {2} and all_fast(made), 20)

        assert while_a_flow_lives(made, restart) < 5.0
        assert fastdp(made, 1)["Adopted"]


def test_programs_after_devices() -> None:
    """The same host with the right to load programs, without it, and told to use sleeve alone: nothing is left over."""
    with cluster(fastdp=True) as made:
        attached: dict[int, str] = {}
        for bpf in (True, False, True):
            for number in (1, 2):
                start(made, number, [3 - number], bpf=bpf)
            made.await_links(mesh_links(2))
            attached = attached or containers(made)
            made.await_routes()
            wait_until("everything is fast", lambda: all_fast(made), 15)
            everything_passes(attached, 100_000)
            if not bpf:
                # The device's own counters, which see runs of segments and not what becomes of them.
                counters = made.routers[1].report()["Router"]["Connections"][0]["Counters"]
                assert counters["BytesOut"] > 100_000 < counters["BytesIn"] and counters["FramesIn"] > 20
            for number in (1, 2):
                links = run("ip", "-n", made.underlay.host(number).namespace, "link")
                assert ("vxlan-6784" in links) == bpf and ("vxlan-p" in links) != bpf
                made.routers[number].stop()
        start(made, 1, [])
        made.routers[1].stop()
        made.start(1, [], "--no-fastdp")
        assert "vxlan" not in run("ip", "-n", made.underlay.host(1).namespace, "link")


def test_a_device_that_is_removed() -> None:
    with cluster(fastdp=True) as made:
        for number in (1, 2):
            start(made, number, range(1, number))
        made.await_links(mesh_links(2))
        containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 15)
        host = made.underlay.host(2).namespace
        device = next(word for word in run("ip", "-n", host, "link").split() if word.startswith("vxlan-p")).rstrip(":")

        def remove() -> None:
            run("ip", "-n", host, "link", "del", device)
            wait_until("it is there", lambda: device in run("ip", "-n", host, "link"), 5)
            time.sleep(1)

        assert while_a_flow_lives(made, remove) < 5.0
        assert all_fast(made)
