"""The kernel's data path beside a bridge with a VXLAN port that is wired by hand, in interleaved rounds.

    python -m bench.fastdp [--rounds N] [--seconds S] [--netfilter on|off]

Hosts and containers are namespaces, the underlay is veth, everybody shares the machine's cores. "wired" is what
the kernel does without any program: a bridge, a VXLAN device of one identifier, one address to flood to. It has the
packet rules that our router made, or with `--netfilter off` bridged frames pass none on either side. The table shows
medians, then medians and ranges of the ratios of each round. On a busy machine figures of time mean little: in a
virtual machine that counts instructions they repeat.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import flows
from bench.tunnels import Tunnel, sleeve
from lab.net import Underlay, inside, require_root, run
from lab.router import wait_until
from lab.traffic import ping

WHATS = ("TCP Mbit/s", "64 B kpps", "echo us")
_MTU = "1376"


def wired(prefix: str) -> Tunnel:
    """Two hosts, each with a container on a bridge with a VXLAN port."""
    underlay = Underlay(prefix)
    ends = []
    for number in (1, 2):
        host, other = underlay.host(number), underlay.host(3 - number)
        ip = ("ip", "-n", host.namespace)
        run(*ip, "link", "add", "weave", "mtu", _MTU, "type", "bridge", "forward_delay", "0")
        vxlan = ("vxlan", "id", "42", "dstport", "6784", "remote", other.address, "local", host.address)
        run(*ip, "link", "add", "vx0", "mtu", _MTU, "type", *vxlan, "ttl", "64", "df", "set", "noudpcsum")
        container = underlay.container(number)
        peer = ("peer", "name", "ethwe", "mtu", _MTU, "netns", container)
        run(*ip, "link", "add", "port", "mtu", _MTU, "type", "veth", *peer)
        for link in ("vx0", "port"):
            run(*ip, "link", "set", link, "master", "weave", "up")
        run(*ip, "link", "set", "weave", "up")
        run("ip", "-n", container, "addr", "add", f"10.32.0.{number}/12", "dev", "ethwe")
        run("ip", "-n", container, "link", "set", "ethwe", "up")
        ends.append(container)
    tunnel = Tunnel("wired", underlay, (ends[0], ends[1]), "10.32.0.2")
    wait_until("a ping", lambda: ping(ends[0], tunnel.address), 30)
    return tunnel


def ours(prefix: str, directory: Path) -> Tunnel:
    """Two routers that carry frames in the kernel."""
    made = sleeve(prefix, "ours", directory, fastdp=True)
    wait_until("fastdp", lambda: all("fastdp" in router.get("/status/connections") for router in made.routers), 30)
    return made


def measure(tunnel: Tunnel, seconds: float) -> None:
    """One round."""
    *carried, took = flows.tcp(tunnel.ends, tunnel.address, seconds)
    tunnel.note("TCP Mbit/s", sum(carried) * 8 / took / 1e6)
    number, took = flows.flood(tunnel.ends, tunnel.address, seconds / 2)
    tunnel.note("64 B kpps", number / max(took, 1e-9) / 1e3)
    tunnel.note("echo us", flows.echo(tunnel.ends, tunnel.address, seconds / 2))


def even(tunnels: list[Tunnel], *, netfilter: bool) -> None:
    """The same packet rules on the hosts of both, ours first, or none for bridged frames."""
    for number in (1, 2):
        mine, other = (tunnel.underlay.host(number).namespace for tunnel in tunnels)
        rules = run(*inside(mine, "nft", "list", "ruleset"))
        run(*inside(other, "nft", "-f", "-"), stdin=rules)
        for name in (mine, other):
            for what in ("iptables", "ip6tables", "arptables"):
                setting = f"net.bridge.bridge-nf-call-{what}={int(netfilter)}"
                run(*inside(name, "sysctl", "-q", "-w", setting))


def show(tunnels: list[Tunnel]) -> None:
    """Medians, and ratios of the first to the second."""
    print(f"{'':12}" + "".join(f"{tunnel.name:>10}" for tunnel in tunnels) + "     ratio")
    for what in WHATS:
        values = [tunnel.figures[what] for tunnel in tunnels]
        ratios = [mine / theirs for mine, theirs in zip(*values, strict=True) if theirs]
        medians = "".join(f"{statistics.median(got):10.1f}" for got in values)
        print(f"{what:12}{medians}{statistics.median(ratios):10.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--netfilter", choices=("on", "off"), default="on")
    options = parser.parse_args()
    require_root()
    tag = f"bf{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as directory:
        tunnels: list[Tunnel] = []
        makers: list[Callable[[], Tunnel]] = [lambda: ours(f"{tag}a", Path(directory)), lambda: wired(f"{tag}b")]
        try:
            for make in makers:
                tunnels.append(make())
            even(tunnels, netfilter=options.netfilter == "on")
            for _ in range(options.rounds):
                for tunnel in tunnels:
                    measure(tunnel, options.seconds)
            show(tunnels)
        finally:
            for tunnel in tunnels:
                tunnel.end()


if __name__ == "__main__":
    main()
