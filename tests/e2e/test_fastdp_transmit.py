"""Transmit devices of whole routers: there for neighbours, taken over, removed when nobody needs them."""

import re
import time

from lab.net import run
from lab.router import wait_until, weave
from lab.traffic import ping, tcp
from tests.clusters import Cluster, cluster, mesh_links
from tests.e2e.test_fastdp import all_fast, fastdp, started, while_a_flow_lives
from tests.traffic import everything_passes


def devices(made: Cluster, number: int) -> dict[str, int]:
    """Index by name."""
    found = run("ip", "-n", made.underlay.host(number).namespace, "-o", "link", "show", "type", "vxlan")
    return {name: int(index) for index, name in re.findall(r"(\d+): (vethwe-w\d+)", found)}


def used(made: Cluster, number: int) -> dict[str, str]:
    """The transmit device by the neighbour's address."""
    return {peer["Hop"]: peer["Device"] for peer in fastdp(made, number)["Peers"] or () if peer["Device"]}


def sent(made: Cluster, number: int, device: str) -> int:
    """Frames that left by a device."""
    shown = run("ip", "-n", made.underlay.host(number).namespace, "-s", "link", "show", device)
    return int(shown.splitlines()[-1].split()[1])


def test_neighbours_have_one_and_others_none() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 3, chain=True, within=15)
        wait_until("devices", lambda: [len(used(made, number)) for number in (1, 2, 3)] == [1, 2, 1], 15)
        one = used(made, 1)
        assert set(one) == {made.address(2)} and set(used(made, 2)) == {made.address(1), made.address(3)}
        shown = weave(made.underlay.host(1), "status", "fastdp")
        assert f"via {made.address(2)} by vethwe-w0\n" in shown and shown.count(" by ") == 1
        everything_passes(attached, 1_000_000)
        # What goes on to the third is addressed frame by frame.
        before = sent(made, 1, "vethwe-w0")
        assert before > 10
        assert ping(attached[1], "10.32.0.3", count=3)
        assert sent(made, 1, "vethwe-w0") <= before + 2
        made.routers[2].stop()
        made.routers[3].stop()
        wait_until("it is gone", lambda: not devices(made, 1), 60)


def test_they_outlive_the_router_and_nothing_else() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 2, within=15)
        wait_until("devices", lambda: all(used(made, number) for number in (1, 2)), 15)
        before = devices(made, 1)
        sent_before = sent(made, 1, "vethwe-w0")

        def restart() -> None:
            made.routers[1].stop(kill=True)
            time.sleep(2)
            assert devices(made, 1) == before
            # It goes on meanwhile.
            assert sent(made, 1, "vethwe-w0") > sent_before
            made.start(1, [2])
            wait_until("everything is fast again", lambda: made.neighbours(1) == {2} and all_fast(made), 20)

        assert while_a_flow_lives(made, restart) < 2.0
        assert devices(made, 1) == before and list(used(made, 1).values()) == list(before)
        tcp(attached[1], attached[2], "10.32.0.2", 1_000_000)
        made.routers[1].stop()
        made.start(1, [], "--no-fastdp", "--mtu", "1376")
        assert not devices(made, 1)
        made.routers[2].stop()
        assert devices(made, 2)
        weave(made.underlay.host(2), "reset", "--force")
        assert not devices(made, 2)


def test_somebody_removes_one() -> None:
    with cluster(fastdp=True) as made:
        started(made, 2, within=15)
        wait_until("a device", lambda: bool(used(made, 1) and used(made, 2)), 15)
        before = devices(made, 1)

        def remove() -> None:
            run("ip", "-n", made.underlay.host(1).namespace, "link", "del", "vethwe-w0")
            wait_until("another", lambda: bool(used(made, 1)) and devices(made, 1) != before, 5)
            time.sleep(0.5)

        assert while_a_flow_lives(made, remove) < 3.0
        assert sent(made, 1, "vethwe-w0") > 0


def test_an_encrypted_mesh_has_none() -> None:
    with cluster(fastdp=True) as made:
        made.start_all(2, password="secret")
        made.await_links(mesh_links(2))
        time.sleep(3)
        assert not devices(made, 1) and not devices(made, 2)
