"""The kernel's data path in other shapes and accidents: a star, a router between hosts, jumbo frames, a device that
is removed, another build.
"""

import struct
import time
from pathlib import Path

import pytest

from lab.net import inside, run
from lab.router import wait_until
from lab.traffic import ping, tcp
from tests.clusters import Cluster, cluster, mesh_links
from tests.e2e.test_fastdp import (
    BACK,
    all_fast,
    containers,
    each_once,
    fastdp,
    none_fast,
    paths,
    reason,
    started,
    while_a_flow_lives,
)
from tests.e2e.test_workflows import another_build
from tests.traffic import everything_passes


def pair(made: Cluster, *flags: str) -> dict[int, str]:
    """Two routers, everything fast between their containers."""
    return started(made, 2, *flags, within=15)


@pytest.mark.parametrize("slow", [(), (4,)], ids=["all fast", "a slow spoke"])
def test_a_star(slow: tuple[int, ...]) -> None:
    """Spokes know the hub alone, which relays and floods between them, in the kernel where both ends are fast."""
    with cluster(fastdp=True) as made:
        for number in (1, 2, 3, 4):
            flags = ["--no-fastdp", "--mtu", "1376"] if number in slow else []
            made.start(number, [1] if number > 1 else [], "--no-discovery", *flags)
        made.await_links({1: {2, 3, 4}, 2: {1}, 3: {1}, 4: {1}})
        attached = containers(made)
        made.await_routes()
        wanted = {f"host{number}": "sleeve" if number in slow else "fastdp" for number in (2, 3, 4)}
        wait_until("paths", lambda: paths(made, 1) == wanted, 20)
        everything_passes(attached, 1_000_000)
        each_once(attached)
        counts = fastdp(made, 1)["Counts"]
        assert counts["relayed"] > 100 and counts["flooded-on"] > 0 and (slow or counts.get("to-daemon", 0) < 30)


def through(made: Cluster, mtu: int | None) -> None:
    """Let the first two hosts reach each other by the third alone, whose way on takes packets of this size only."""
    hosts = [made.underlay.host(number) for number in (1, 2, 3)]
    middle = hosts[2]
    for setting in ("all.forwarding=1", "all.send_redirects=0", "eth0.send_redirects=0"):
        run(*inside(middle.namespace, "sysctl", "-q", "-w", f"net.ipv4.conf.{setting}"))
    limit = () if mtu is None else ("mtu", str(mtu))
    for one, other in ((hosts[0], hosts[1]), (hosts[1], hosts[0])):
        way = ("route", "replace", f"{other.address}/32")
        run("ip", "-n", one.namespace, *way, "via", middle.address, "dev", "eth0")
        run("ip", "-n", middle.namespace, *way, "dev", "eth0", *limit)
        run("ip", "-n", middle.namespace, "route", "flush", "cache")


def test_a_router_in_the_middle_says_what_fits() -> None:
    """Its ICMP tells the path's MTU, within seconds; the hosts' own links have room enough."""
    with cluster(fastdp=True) as made:
        through(made, None)
        attached = pair(made)
        through(made, 1400)
        wait_until("both leave", lambda: none_fast(made), BACK)
        wait_until("the figure", lambda: "path MTU 1400 < 1426" in reason(made, 1), BACK)
        for one, other, address in ((1, 2, "10.32.0.2"), (2, 1, "10.32.0.1")):
            tcp(attached[one], attached[other], address, 1_000_000)
        through(made, None)
        wait_until("both return", lambda: all_fast(made), BACK)
        for number, address in ((1, "10.32.0.2"), (2, "10.32.0.1")):
            run(*inside(attached[number], "ip", "route", "flush", "cache"))
            assert ping(attached[number], address, size=1348, df=True)


def test_the_path_shrinks_under_a_flow() -> None:
    """A stream of full segments gets through while its path becomes smaller, and recovers."""
    with cluster(fastdp=True) as made:
        through(made, None)
        attached = pair(made)

        def change() -> None:
            through(made, 1400)
            wait_until("both leave", lambda: none_fast(made), BACK)
            tcp(attached[2], attached[1], "10.32.0.1", 1_000_000)
            through(made, None)
            wait_until("both return", lambda: all_fast(made), BACK)
            tcp(attached[2], attached[1], "10.32.0.1", 1_000_000)

        while_a_flow_lives(made, change)


def test_jumbo_frames() -> None:
    """`--mtu auto` takes what the underlay has; full frames pass unfragmented."""
    with cluster(fastdp=True) as made:
        for number in (1, 2):
            made.underlay.host(number)
            made.underlay.set_mtu(number, 9000)
        run("ip", "-n", made.underlay.switch, "link", "set", "br0", "mtu", "9000")
        attached = pair(made, "--mtu", "auto")
        assert fastdp(made, 1)["MTU"] == 8950 and "mtu 8950" in run("ip", "-n", attached[1], "link", "show", "ethwe")
        assert ping(attached[1], "10.32.0.2", size=8922, df=True)
        assert not ping(attached[1], "10.32.0.2", size=8923, df=True, count=1)
        everything_passes(attached, 10_000_000)
        # An underlay that shrinks afterwards is noticed like any other.
        made.underlay.set_mtu(1, 1500)
        wait_until("both leave", lambda: none_fast(made), BACK)
        assert "path MTU 1500 < 9000" in reason(made, 1)
        tcp(attached[1], attached[2], "10.32.0.2", 1_000_000)


@pytest.mark.parametrize("port", [None, 7000], ids=["the usual port", "another port too"])
def test_a_device_that_is_removed(port: int | None) -> None:
    """It is made again without a restart, and flows go on."""
    with cluster(fastdp=True) as made:
        if port is None:
            pair(made)
        else:
            made.start(1, [], "--no-discovery", "--port", str(port))
            made.start(2, [f"{made.address(1)}:{port}"], "--no-discovery")
            made.await_links(mesh_links(2))
            containers(made)
            made.await_routes()
            wait_until("everything is fast", lambda: all_fast(made), 15)
        host = made.underlay.host(2).namespace
        devices = ["vxlan-6784"] if port is None else [f"vxlan-{port + 1}", "vxlan-6784"]

        def remove() -> None:
            for device in devices:
                run("ip", "-n", host, "link", "del", device)
            wait_until("they are there", lambda: all(one in run("ip", "-n", host, "link") for one in devices), 5)
            time.sleep(1)

        assert while_a_flow_lives(made, remove) < 3.0
        assert all_fast(made) and "is made again" in made.routers[2].log
        assert ping(made.underlay.container(1), "10.32.0.2", count=3)


def another_object(directory: Path) -> Path:
    """A build of ours whose programs and one of whose maps differ from those that run."""
    build = another_build(directory, "9.9.9")
    path = build / "fastdp/fastdp.bpf.o"
    content = path.read_bytes()
    remotes, fewer = (struct.pack("<5I", 9, 8, 16, entries, 0) for entries in (65536, 32768))
    assert content.count(remotes) == 1
    path.write_bytes(content.replace(remotes, fewer))
    return build


def test_flows_outlive_an_upgrade(tmp_path: Path) -> None:
    """Another build, whose maps are not all the same, takes over from the one that runs."""
    with cluster(fastdp=True) as made:
        pair(made)
        build = another_object(tmp_path)

        def upgrade() -> None:
            for number in (1, 2):
                made.routers[number].stop()
                made.start(number, [3 - number], build=build)
                wait_until("everything is fast", lambda: made.neighbours(1) == {2} and all_fast(made), 30)

        assert while_a_flow_lives(made, upgrade) < 2.0
        assert all(fastdp(made, number)["Adopted"] for number in (1, 2))


def test_an_underlay_that_loses_and_reorders() -> None:
    """Three of a hundred packets lost, a quarter late: everything gets through, and the path is not given up."""
    with cluster(fastdp=True) as made:
        attached = pair(made)
        for number in (1, 2):
            host = made.underlay.host(number).namespace
            netem = ("netem", "delay", "5ms", "reorder", "75%", "loss", "3%")
            run("tc", "-n", host, "qdisc", "add", "dev", "eth0", "root", *netem, check=False)
            if "netem" not in run("tc", "-n", host, "qdisc", "show", "dev", "eth0"):
                pytest.skip("this kernel has no netem")
        for one, other, address in ((1, 2, "10.32.0.2"), (2, 1, "10.32.0.1")):
            tcp(attached[one], attached[other], address, 1_000_000)
        time.sleep(30)
        assert all_fast(made)
        assert sum(link["Changes"] for number in (1, 2) for link in fastdp(made, number)["Links"]) == 0
        tcp(attached[1], attached[2], "10.32.0.2", 1_000_000)
