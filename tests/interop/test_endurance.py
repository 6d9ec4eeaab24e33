"""Full streams both ways for ten minutes between containers of a real router and of ours, over sleeve: none breaks."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.net import inside, run
from lab.router import wait_until
from tests.clusters import Cluster, cluster, mesh_links

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
SECONDS = int(os.environ.get("WEAVE_INTEROP_STREAM", "600"))
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.long,
    pytest.mark.timeout(SECONDS + 300),
]
# Seconds in which something must arrive: a stream recovers from lost packets within them, not from a lost link.
_STEP = 5


def connections(made: Cluster) -> list[tuple[str, str, str, int]]:
    """Each router's connection: its ends, which a new one would change, how it stands, and how many have ended."""
    found = []
    for router in made.routers.values():
        report = router.report()["Router"]
        [row] = report["Connections"]
        found.append((row["Address"], row["State"], row["Info"], report["TerminationCount"]))
    return found


def listens(namespace: str) -> bool:
    """Whether the other end of the streams is there."""
    return ":5201" in run(*inside(namespace, "ss", "-Hltn"))


@pytest.mark.parametrize("password", [None, "secret"], ids=["plain", "encrypted"])
def test_full_streams_both_ways(password: str | None) -> None:
    with cluster([1], REAL) as made:
        made.start_all(2, password=password)
        made.await_links(mesh_links(2))
        ends = made.container(1), made.container(2)
        made.await_routes()
        before = connections(made)
        assert all(state == "established" and "sleeve" in info for _, state, info, _ in before)
        server = subprocess.Popen(inside(ends[1], "iperf3", "-s", "-1"), stdout=subprocess.DEVNULL)
        try:
            wait_until("the other end listens", lambda: listens(ends[1]), 10)
            client = inside(ends[0], "iperf3", "-c", "10.32.0.2", "--bidir", "-t", str(SECONDS), "-i", str(_STEP), "-J")
            with ThreadPoolExecutor(1) as pool:
                streams = pool.submit(run, *client, timeout=SECONDS + 60)
                while not streams.done():
                    assert connections(made) == before
                    time.sleep(2)
            carried = json.loads(streams.result())
        finally:
            server.kill()
            server.wait()
        assert connections(made) == before
        assert all("heartbeat" not in router.log for router in made.routers.values()), "no link was lost"
        for way in ("sum", "sum_bidir_reverse"):
            steps = [step[way]["bits_per_second"] / 1e6 for step in carried["intervals"] if step[way]["seconds"] > 1]
            print(f"{way}: {sum(steps) / len(steps):.0f} Mbit/s, in the worst {_STEP} s {min(steps):.0f}")
            assert min(steps) > 0
