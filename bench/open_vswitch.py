"""Ours beside Weave Net 2.8 on Open vSwitch and a VXLAN port that is wired by hand, with and without netfilter and ESP.

    WEAVE_NET_ROUTER=/path/to/weaver WEAVE_GUEST_ACCEL=icount script/test-guest bench open_vswitch [--rounds N]

In that machine the clock counts instructions, of one processor that does everything, so the figures say what a packet
costs and repeat within a percent or two; they say nothing of caches. Without WEAVE_NET_ROUTER it compares with the
hand-wired one alone. Packets are of 64 octets; "netfilter" is the bridge's calls of iptables, with a rule to
masquerade, and one in FORWARD.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import flows
from bench.fastdp import wired
from bench.tunnels import Tunnel, sleeve
from lab.net import inside, require_root, run
from lab.router import Router, wait_until

WHATS = ("64 B kpps", "TCP Mbit/s", "echo us")
_FLOOD, _TCP, _ECHO = 0.2, 1.0, 0.2


def routers(name: str, directory: Path, foreign: str | None, password: str | None) -> Callable[[str], Tunnel]:
    """Two routers whose link is fast; made by a prefix."""

    def make(prefix: str) -> Tunnel:
        tunnel = sleeve(prefix, name, directory, foreign=foreign, password=password, fastdp=True)
        wait_until("fastdp", lambda: all(map(_fast, tunnel.routers)), 120)
        return tunnel

    return make


def _fast(router: Router) -> bool:
    return "established" in (text := router.get("/status/connections")) and "fastdp" in text


def set_netfilter(tunnel: Tunnel, *, on: bool) -> None:
    """Whether what the bridges forward passes iptables; with rules that make it track connections."""
    for host in tunnel.underlay.hosts.values():
        command = inside(host.namespace, "sh", "-c", f"echo {int(on)} > /proc/sys/net/bridge/bridge-nf-call-iptables")
        run(*command)
        change = "-A" if on else "-D"
        for rule in (
            ("-t", "nat", change, "POSTROUTING", "-s", "10.99.77.0/24", "-j", "MASQUERADE"),
            ("-t", "filter", change, "FORWARD", "-s", "10.99.77.0/24", "-j", "DROP"),
        ):
            run(*inside(host.namespace, "iptables", *rule), check=False)


def measure(tunnel: Tunnel) -> dict[str, float]:
    """One round."""
    number, took = flows.flood(tunnel.ends, tunnel.address, _FLOOD)
    *carried, seconds = flows.tcp(tunnel.ends, tunnel.address, _TCP)
    return {
        "64 B kpps": number / max(took, 1e-9) / 1e3,
        "TCP Mbit/s": sum(carried) * 8 / seconds / 1e6,
        "echo us": flows.echo(tunnel.ends, tunnel.address, _ECHO),
    }


def show(name: str, figures: dict[str, list[float]], base: dict[str, list[float]] | None) -> None:
    """Medians, and their ratios to those of Weave Net 2.8 or the hand-wired one."""
    cells = []
    for what in WHATS:
        median = statistics.median(figures[what])
        ratio = f" ({median / statistics.median(base[what]):.3f})" if base else ""
        spread = (max(figures[what]) - min(figures[what])) / median * 100
        cells.append(f"{what} {median:9.2f}{ratio} ±{spread / 2:.1f} %")
    print(f"{name:34}" + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="clear or encrypted")
    options = parser.parse_args()
    require_root()
    real = os.environ.get("WEAVE_NET_ROUTER", "")
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as name:
        directory = Path(name)
        for password in (None, "secret"):
            kind = "encrypted" if password else "clear"
            if options.only not in ("", kind):
                continue
            makers: list[tuple[str, Callable[[str], Tunnel]]] = [] if password else [("wired", wired)]
            if real:
                makers.append(("Weave Net 2.8", routers("real", directory / f"r{kind}", real, password)))
            makers.append(("ours", routers("ours", directory / f"o{kind}", None, password)))
            _compare(kind, makers, options.rounds)


def _compare(kind: str, makers: list[tuple[str, Callable[[str], Tunnel]]], rounds: int) -> None:
    """One after the other, so that none disturbs the next; ratios are to all before it."""
    done: dict[tuple[str, bool], dict[str, list[float]]] = {}
    for number, (name, make) in enumerate(makers):
        tunnel = make(f"ov{os.getpid()}{kind[0]}{number}")
        try:
            for netfilter in (False, True):
                set_netfilter(tunnel, on=netfilter)
                measured = [measure(tunnel) for _ in range(rounds)]
                figures = {what: [one[what] for one in measured] for what in WHATS}
                label = f"{kind}, netfilter {'on' if netfilter else 'off'}: {name}"
                show(label, figures, None)
                for other in [other for other, _ in makers[:number]]:
                    show(f"    beside {other}", figures, done[other, netfilter])
                done[name, netfilter] = figures
        finally:
            tunnel.end()
            sys.stdout.flush()


if __name__ == "__main__":
    main()
