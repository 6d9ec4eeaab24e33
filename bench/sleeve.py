"""Sleeve between two containers: one TCP stream, and a flood of small datagrams, beside raw veth in the same run.

    python -m bench.sleeve                  ours, encrypted, against raw veth
    python -m bench.sleeve --plain
    WEAVE_NET_ROUTER=... python -m bench.sleeve      beside two 2.8 routers as well

Hosts, containers, routers and iperf3 share the machine's cores. CPU is user and system time of both routers. Rounds
are interleaved; the table shows medians and the median of per-round ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.net import LabError, Underlay, inside, plug, require_root, run
from lab.router import Router, wait_until, weave
from lab.traffic import ping

_PASSWORD = "bench"


@dataclass(slots=True)
class Route:
    """Two containers that reach each other somehow; routers between them, if any."""

    name: str
    underlay: Underlay
    ends: tuple[str, str]
    address: str
    routers: list[Router]
    figures: dict[str, list[float]] = field(default_factory=dict)

    def cpu(self) -> float:
        return sum(router.cpu_seconds() for router in self.routers)

    def note(self, what: str, value: float) -> None:
        self.figures.setdefault(what, []).append(value)


def raw(prefix: str) -> Route:
    """The underlay itself: veth, switch, veth."""
    underlay = Underlay(prefix)
    one, two = underlay.host(1), underlay.host(2)
    return Route("raw veth", underlay, (one.namespace, two.namespace), two.address, [])


def sleeve(prefix: str, name: str, directory: Path, foreign: str | None, password: str | None) -> Route:
    """Two hosts with a router and a container each."""
    underlay = Underlay(prefix)
    routers = []
    for number in (1, 2):
        router = Router(underlay.host(number), directory / f"{prefix}{number}", foreign=foreign, password=password)
        router.start(["10.99.0.1"] if number == 2 else [])
        routers.append(router)
    for router in routers:
        wait_until("the router answers", router.answers, 30)
    wait_until("the connection", lambda: all(router.established() for router in routers), 30)
    ends = []
    for router in routers:
        number = router.host.number
        container = underlay.container(number)
        if foreign:
            plug(router.host.namespace, container, number, [f"10.32.0.{number}/12"])
        else:
            weave(router.host, "attach", f"10.32.0.{number}/12", container)
        ends.append(container)
    wait_until("a ping", lambda: ping(ends[0], "10.32.0.2"), 30)
    return Route(name, underlay, (ends[0], ends[1]), "10.32.0.2", routers)


def iperf(path: Route, *flags: str, seconds: float) -> dict[str, float]:
    """One iperf3 run from the first end to the second; its receiver's summary."""
    server = subprocess.Popen(
        inside(path.ends[1], "iperf3", "-s", "-1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        client = ("iperf3", "-c", path.address, "-J", "-t", str(seconds), *flags)
        end = json.loads(run(*inside(path.ends[0], *client), timeout=seconds + 30))["end"]
    finally:
        server.terminate()
        server.wait()
    return dict(end["sum_received"] if "sum_received" in end else end["sum"])


def measure(path: Route, seconds: float) -> None:
    """One round on one path."""
    before = path.cpu()
    stream = iperf(path, seconds=seconds)
    path.note("TCP Mbit/s", stream["bits_per_second"] / 1e6)
    if path.routers:
        path.note("CPU s/GB", (path.cpu() - before) / max(stream["bytes"] / 1e9, 1e-9))
    before = path.cpu()
    flood = iperf(path, "-u", "-l", "64", "-b", "0", seconds=seconds)
    received = flood["packets"] * (1 - flood["lost_percent"] / 100)
    path.note("64 B UDP kpps", received / flood["seconds"] / 1e3)
    if path.routers:
        path.note("CPU us/packet", (path.cpu() - before) / max(received, 1) * 1e6)


def show(paths: list[Route]) -> None:
    """Medians, and ours against each other path."""
    ours = next(path for path in paths if path.name == "ours")
    whats = ["TCP Mbit/s", "CPU s/GB", "64 B UDP kpps", "CPU us/packet"]
    print(f"{'':16}" + "".join(f"{path.name:>14}" for path in paths) + "".join(
        f"{'ours/' + path.name:>16}" for path in paths if path is not ours
    ))
    for what in whats:
        line = f"{what:16}"
        for path in paths:
            values = path.figures.get(what)
            line += f"{statistics.median(values):14.1f}" if values else f"{'-':>14}"
        for path in paths:
            values = path.figures.get(what)
            if path is not ours and values:
                ratios = [mine / other for mine, other in zip(ours.figures[what], values, strict=True)]
                line += f"{statistics.median(ratios):16.2f}"
            elif path is not ours:
                line += f"{'-':>16}"
        print(line)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench sleeve", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--plain", action="store_true", help="no password")
    options = parser.parse_args()
    require_root()
    password = None if options.plain else _PASSWORD
    real = os.environ.get("WEAVE_NET_ROUTER")
    paths: list[Route] = []
    tag = f"ws{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as name:
        directory = Path(name)
        makers: list[Callable[[], Route]] = [
            lambda: sleeve(f"{tag}a", "ours", directory, None, password),
            lambda: raw(f"{tag}b"),
        ]
        if real:
            makers.append(lambda: sleeve(f"{tag}c", "2.8", directory, real, password))
        try:
            for make in makers:
                paths.append(make())
            for number in range(options.rounds):
                for path in paths:
                    measure(path, options.seconds)
                print(f"round {number + 1} of {options.rounds} done", flush=True)
        except LabError as error:
            raise SystemExit(f"bench sleeve: {error}") from error
        finally:
            for path in paths:
                for router in path.routers:
                    router.stop(kill=True)
            for suffix in "abc":
                Underlay(f"{tag}{suffix}").remove()
    show(paths)


if __name__ == "__main__":
    main()
