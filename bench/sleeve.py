"""Sleeve: TCP, floods of small datagrams, echoes, processor time; beside others in interleaved rounds.

    python -m bench.sleeve                  ours, encrypted, against raw veth
    python -m bench.sleeve --fallback       and against ours in plain Python
    python -m bench.sleeve --many           8 peers and 64 flows at once instead
    WEAVE_NET_ROUTER=... NEBULA=... WIREGUARD_GO=... python -m bench.sleeve      beside those, by their paths

Hosts, containers, tunnels and the ends share the machine's cores, and the underlay is veth, which passes large
packets whole. CPU is user and system time of the tunnels' processes at both ends. nebula and wireguard-go know hosts
only, so "ours host" has no bridge port and veth more than they have. The table shows medians, then medians and ranges
of the ratios of each round.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import flows, many
from bench.tunnels import Tunnel, nebula, raw, sleeve, wireguard
from lab.net import LabError, Underlay, require_root

_PASSWORD = "bench"
WHATS = ("TCP Mbit/s", "CPU s/GB", "64 B kpps", "CPU us/packet", "echo us")


def measure(tunnel: Tunnel, seconds: float) -> None:
    """One round of one tunnel."""
    before = tunnel.cpu()
    *carried, took = flows.tcp(tunnel.ends, tunnel.address, seconds)
    tunnel.note("TCP Mbit/s", sum(carried) * 8 / took / 1e6)
    if tunnel.works:
        tunnel.note("CPU s/GB", (tunnel.cpu() - before) / max(sum(carried) / 1e9, 1e-9))
    before = tunnel.cpu()
    number, took = flows.flood(tunnel.ends, tunnel.address, seconds / 2)
    tunnel.note("64 B kpps", number / max(took, 1e-9) / 1e3)
    if tunnel.works:
        tunnel.note("CPU us/packet", (tunnel.cpu() - before) / max(number, 1) * 1e6)
    tunnel.note("echo us", flows.echo(tunnel.ends, tunnel.address, seconds / 2))


def show(tunnels: list[Tunnel]) -> None:
    """Medians, and the tunnels of ours against each other one."""
    print(f"\n{'':14}" + "".join(f"{tunnel.name:>14}" for tunnel in tunnels))
    for what in WHATS:
        values = (tunnel.figures.get(what) for tunnel in tunnels)
        print(f"{what:14}" + "".join(f"{statistics.median(got):14.1f}" if got else f"{'-':>14}" for got in values))
    for ours in (tunnel for tunnel in tunnels if tunnel.name.startswith("ours")):
        for other in tunnels:
            if other.name.startswith("ours") or (other.name == "2.8") == (ours.name == "ours host"):
                continue
            print(f"\n{ours.name} / {other.name}")
            for what in WHATS:
                if what in ours.figures and what in other.figures:
                    pairs = zip(ours.figures[what], other.figures[what], strict=True)
                    ratios = [mine / theirs for mine, theirs in pairs if theirs]
                    print(f"  {what:14}{statistics.median(ratios):8.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")


def makers(tag: str, directory: Path, options: argparse.Namespace) -> list[Callable[[], Tunnel]]:
    """What takes part."""
    password = None if options.plain else _PASSWORD
    router, neb, wg = (os.environ.get(name) for name in ("WEAVE_NET_ROUTER", "NEBULA", "WIREGUARD_GO"))
    made: list[Callable[[], Tunnel]] = [
        lambda: sleeve(f"{tag}a", "ours", directory, password=password),
        lambda: raw(f"{tag}b"),
    ]
    if router:
        made.append(lambda: sleeve(f"{tag}c", "2.8", directory, foreign=router, password=password))
    if options.fallback:
        made.append(
            lambda: sleeve(f"{tag}d", "ours plain", directory, password=password, implementation="python")
        )
    if neb or wg:
        made.append(lambda: sleeve(f"{tag}e", "ours host", directory, password=password, from_host=True))
    if neb:
        made.append(lambda: nebula(f"{tag}f", directory, neb))
    if wg:
        made.append(lambda: wireguard(f"{tag}g", directory, wg))
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench sleeve", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each TCP run; floods and echoes take half")
    parser.add_argument("--plain", action="store_true", help="no password")
    parser.add_argument("--fallback", action="store_true", help="also without the core")
    parser.add_argument("--many", action="store_true", help="8 peers and 64 flows")
    options = parser.parse_args()
    require_root()
    tag = f"ws{os.getpid()}"
    tunnels: list[Tunnel] = []
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as name:
        try:
            if options.many:
                many.run(tag, Path(name), options.rounds, options.seconds)
                return
            tunnels += [make() for make in makers(tag, Path(name), options)]
            for number in range(options.rounds):
                for tunnel in tunnels:
                    measure(tunnel, options.seconds)
                load = os.getloadavg()[0]
                print(f"round {number + 1} of {options.rounds} done, load average {load:.1f}", flush=True)
        except LabError as error:
            raise SystemExit(f"bench sleeve: {error}") from error
        finally:
            for tunnel in tunnels:
                tunnel.end()
            for suffix in "abcdefgm":
                Underlay(f"{tag}{suffix}").remove()
    show(tunnels)


if __name__ == "__main__":
    main()
