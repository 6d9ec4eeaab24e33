"""Sleeve with 8 peers and 64 flows at once, beside one flow in the same round: how much is left, and how fair it is."""

import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import flows
from bench.tunnels import Tunnel, add_router, attach
from lab.net import Underlay
from lab.router import wait_until
from lab.traffic import ping

PEERS, STREAMS = 8, 8


def run(tag: str, directory: Path, rounds: int, seconds: float) -> None:
    """One host that sends to eight; the table is printed."""
    tunnel = Tunnel("ours", Underlay(f"{tag}m"), ("", ""), "")
    try:
        for number in range(1, PEERS + 2):
            add_router(tunnel, number, directory, None, "bench", "", [1] if number > 1 else [])
        for router in tunnel.routers:
            wait_until("the router answers", router.answers, 60)
        ready = "connections of the first host"
        wait_until(ready, lambda: len(tunnel.routers[0].established()) == PEERS, 60)
        ends = [attach(router) for router in tunnel.routers]
        for number in range(2, PEERS + 2):
            address = f"10.32.0.{number}"
            wait_until("a ping", lambda to=address: ping(ends[0], to), 60)  # type: ignore[misc]
        shares, least = [], []
        for number in range(rounds):
            share, fairness = _round(ends, seconds)
            shares.append(share)
            least.append(fairness)
            load = os.getloadavg()[0]
            print(f"round {number + 1}: {share:.2f} of one flow, least flow {fairness:.2f} of its fair share, "
                  f"load average {load:.1f}", flush=True)  # fmt: skip
        print(f"\nmedians: {statistics.median(shares):.2f} and {statistics.median(least):.2f}")
    finally:
        tunnel.end()


def _round(ends: list[str], seconds: float) -> tuple[float, float]:
    """The rate of 64 flows as a share of one flow's, and the least flow as a share of what is fair.

    Flows that begin at once need seconds to find their shares, so they get four times as long as the single one.
    """
    *carried, took = flows.tcp((ends[0], ends[1]), "10.32.0.2", seconds)
    single = sum(carried) / took
    with ThreadPoolExecutor(PEERS) as pool:
        runs = [
            pool.submit(flows.tcp, (ends[0], end), f"10.32.0.{number}", 4 * seconds, STREAMS, 5300 + number)
            for number, end in enumerate(ends[1:], 2)
        ]
        results = [done.result() for done in runs]
    each = [stream for *streams, _ in results for stream in streams]
    rate = sum(sum(streams) / took for *streams, took in results)
    return rate / single, min(each) / (sum(each) / len(each))
