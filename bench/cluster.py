"""Real router processes in a full mesh: CPU and wire from start to agreement, idle, and after one restart.

    python -m bench.cluster --nodes 20                          ours alone
    WEAVE_NET_ROUTER=... python -m bench.cluster --nodes 20     beside as many 2.8 routers, one after the other

Every router is a process in a network namespace of its own, over sleeve, without names and addresses. Process start
is left out: routers start without peers and are then told of the first one. Wire is what the underlay's switch
received, all protocols. CPU is user and system time of all routers.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.net import Underlay, require_root, run
from lab.router import Router, wait_until


@dataclass(slots=True)
class Sample:
    """Totals at one moment."""

    at: float
    cpu: float
    wire: int


@dataclass(slots=True)
class Result:
    """What one kind of router cost: seconds, CPU seconds and bytes a phase."""

    kind: str
    phases: dict[str, tuple[float, float, int]]
    resident: float


@contextmanager
def routers(count: int, foreign: str | None) -> Iterator[list[Router]]:
    """Routers that run and know nobody."""
    underlay = Underlay(f"wb{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as directory:
        made: list[Router] = []
        try:
            for number in range(1, count + 1):
                underlay.host(number)
            underlay.know_each_other()
            for number in range(1, count + 1):
                router = Router(underlay.host(number), Path(directory) / f"h{number}", foreign=foreign)
                router.start([], "--conn-limit", "0")
                made.append(router)
            for router in made:
                wait_until(f"router {router.host.number} answers", router.answers, 60)
            yield made
        finally:
            for router in made:
                router.stop(kill=True)
            underlay.remove()


def sample(made: list[Router]) -> Sample:
    """CPU of all routers and bytes on the wire so far."""
    switch = made[0].host.namespace.rpartition("-")[0] + "-sw"
    listing = run("ip", "-n", switch, "-s", "-o", "link")
    wire = 0
    for line in listing.splitlines():
        if line.split(": ")[1].startswith("p"):
            wire += int(line.split("RX:")[1].split("\\")[1].split()[0])
    return Sample(time.monotonic(), sum(router.cpu_seconds() for router in made), wire)


def agree(made: list[Router]) -> bool:
    """Every router has a route for frames to every other."""
    expected = f"Peers: {len(made)} (with {len(made) * (len(made) - 1)} established connections)"
    return all(expected in router.get("/status") for router in made)


def measure(kind: str, count: int, foreign: str | None, idle: float) -> Result:
    """The phases of one kind of router."""
    phases: dict[str, tuple[float, float, int]] = {}
    with routers(count, foreign) as made:

        def phase(name: str, before: Sample) -> None:
            after = sample(made)
            phases[name] = (after.at - before.at, after.cpu - before.cpu, after.wire - before.wire)

        first = made[0].host.address
        before = sample(made)
        for router in made[1:]:
            router.post("/connect", f"peer={first}")
        wait_until(f"{count} routers agree", lambda: agree(made), 300, interval=2.0)
        phase("start to agreement", before)
        time.sleep(15)
        before = sample(made)
        time.sleep(idle)
        phase(f"idle, {idle:.0f} s", before)
        resident = sum(router.resident_bytes() for router in made) / count / 1e6
        victim = made[count // 2]
        victim.stop(kill=True)
        victim.start([first], "--conn-limit", "0")
        wait_until("the restarted router answers", victim.answers, 60)
        before = sample(made)
        wait_until(f"{count} routers agree again", lambda: agree(made), 120, interval=1.0)
        phase("one restart", before)
    return Result(kind, phases, resident)


def show(results: list[Result], count: int) -> None:
    """A table, and ours over theirs."""
    print(f"N = {count}, full mesh of processes, sleeve")
    kinds = "".join(f"{result.kind:>32}" for result in results)
    print(f"  {'':22}{kinds}{'         ours/2.8' if len(results) > 1 else ''}")
    for name in results[0].phases:
        line = f"  {name:22}"
        for result in results:
            seconds, cpu, wire = result.phases[name]
            line += f"{seconds:8.1f} s {cpu:7.2f} CPU {wire / 1e6:9.2f} MB"
        if len(results) > 1:
            (_, cpu, wire), (_, cpu2, wire2) = results[0].phases[name], results[1].phases[name]
            line += f"   CPU {cpu / max(cpu2, 1e-9):5.2f}  wire {wire / max(wire2, 1):5.2f}"
        print(line)
    print("  resident               " + "".join(f"{result.resident:29.1f} MB" for result in results))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench cluster", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of idling to measure")
    options = parser.parse_args()
    require_root()
    results = [measure("ours", options.nodes, None, options.idle)]
    real = os.environ.get("WEAVE_NET_ROUTER")
    if real:
        results.append(measure("2.8", options.nodes, real, options.idle))
    else:
        print("WEAVE_NET_ROUTER names no 2.8 router: no ratios")
    show(results, options.nodes)


if __name__ == "__main__":
    main()
