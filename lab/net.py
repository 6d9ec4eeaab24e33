"""Hosts as network namespaces on one underlay, with containers as further namespaces: a cluster on one machine.

Everything is named by a prefix and made inside namespaces of that prefix; nothing else on the machine is touched.
Names: `<prefix>-sw` is the underlay's switch, `<prefix>-h1` a host, `<prefix>-c1` its container.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 60
NETNS = Path("/run/netns")


class LabError(Exception):
    """A command of the lab failed; the text is what it said."""


def run(*command: str, check: bool = True, timeout: float = _TIMEOUT, stdin: str | None = None) -> str:
    """A command's output. Raises LabError where it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, input=stdin)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)}: took more than {timeout:.0f} s") from error
    if check and done.returncode:
        raise LabError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def inside(namespace: str, *command: str) -> tuple[str, ...]:
    """A command that runs in a namespace, with its own /sys."""
    return ("ip", "netns", "exec", namespace, *command)


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the lab. `address` is on the underlay, without prefix."""

    number: int
    namespace: str
    address: str
    address6: str


class Underlay:
    """A switch and hosts on it. `mtu` of every underlay link."""

    def __init__(self, prefix: str, *, subnet: str = "10.99.0", mtu: int = 1500) -> None:
        self.prefix = prefix
        self.switch = f"{prefix}-sw"
        self._subnet = subnet
        self._mtu = mtu
        self.hosts: dict[int, Host] = {}

    def host(self, number: int) -> Host:
        """The host of this number, made if it is not there."""
        if number in self.hosts:
            return self.hosts[number]
        name = f"{self.prefix}-h{number}"
        made = Host(number, name, f"{self._subnet}.{number}", f"fd99::{number:x}")
        if not (NETNS / self.switch).exists():
            run("ip", "netns", "add", self.switch)
            run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            run("ip", "-n", self.switch, "link", "set", "br0", "mtu", str(self._mtu), "up")
        if not (NETNS / name).exists():
            self._add(made)
        self.hosts[number] = made
        return made

    def _add(self, host: Host) -> None:
        name, port, mtu = host.namespace, f"p{host.number}", str(self._mtu)
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        peer = ("peer", "name", "eth0", "netns", name, "mtu", mtu)
        run("ip", "-n", self.switch, "link", "add", port, "mtu", mtu, "type", "veth", *peer)
        run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        run("ip", "-n", name, "addr", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "route", "add", "default", "via", f"{self._subnet}.254")

    def container(self, number: int) -> str:
        """The namespace of host `number`'s container, made if it is not there; not attached to anything."""
        name = f"{self.prefix}-c{number}"
        if not (NETNS / name).exists():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def know_each_other(self) -> None:
        """Give all hosts each other's hardware addresses: the kernel's table of neighbours is shared by namespaces.

        It holds 1,024 learned entries on the whole machine, fewer than 40 hosts need; given ones do not count.
        """
        macs = {}
        for host in self.hosts.values():
            listing = run("ip", "-n", host.namespace, "-o", "link", "show", "eth0")
            macs[host.address] = listing.split("link/ether ")[1].split()[0]
        for host in self.hosts.values():
            lines = [
                f"neigh replace {address} lladdr {mac} dev eth0 nud permanent"
                for address, mac in macs.items()
                if address != host.address
            ]
            run("ip", "-n", host.namespace, "-batch", "-", stdin="\n".join(lines))

    def separate(self, here: Sequence[int], there: Sequence[int]) -> None:
        """Nothing passes any more between the hosts of two groups: their packets are dropped as they arrive."""
        for one in here:
            for other in there:
                for receiver, sender in ((one, other), (other, one)):
                    self._filter(receiver, "input", f"ip saddr {self.host(sender).address} drop")

    def shield(self, number: int) -> None:
        """A host behind a firewall: nobody reaches it who was not called by it."""
        self._filter(number, "input", "iifname eth0 meta l4proto { tcp, udp } ct state new drop")

    def cut(self, number: int, *, down: bool = True) -> None:
        """Pull a host's cable, or plug it in again."""
        run("ip", "-n", self.switch, "link", "set", f"p{number}", "down" if down else "up")

    def set_mtu(self, number: int, mtu: int) -> None:
        """Another MTU on a host's underlay link, both ends."""
        run("ip", "-n", self.switch, "link", "set", f"p{number}", "mtu", str(mtu))
        run("ip", "-n", f"{self.prefix}-h{number}", "link", "set", "eth0", "mtu", str(mtu))

    def block(self, number: int, other: int, protocol: str = "udp") -> None:
        """Two hosts no longer receive each other's packets of one protocol; the sender notices nothing."""
        for here, there in ((number, other), (other, number)):
            self._filter(here, "input", f"ip saddr {self.host(there).address} meta l4proto {protocol} drop")

    def refuse(self, number: int, protocol: str = "udp") -> None:
        """A host's packets of one protocol are refused as they are sent: the sender gets EPERM."""
        self._filter(number, "output", f"oifname eth0 meta l4proto {protocol} drop")

    def lose(self, number: int, percent: int) -> None:
        """Lose that share of the UDP packets a host receives, at random."""
        self._filter(number, "input", f"meta l4proto udp numgen random mod 100 < {percent} drop")

    def clear(self, number: int) -> None:
        """No longer block, refuse or lose anything at a host."""
        run(*inside(self.host(number).namespace, "nft", "delete table inet lab"), check=False)

    def _filter(self, number: int, hook: str, rule: str) -> None:
        script = [
            "add table inet lab",
            f"add chain inet lab {hook} {{ type filter hook {hook} priority 0 ; }}",
            f"add rule inet lab {hook} {rule}",
        ]
        run(*inside(self.host(number).namespace, "nft", "-f", "-"), stdin="\n".join(script) + "\n")

    def remove(self) -> list[str]:
        """Delete every namespace of this prefix; returns their names."""
        names = [entry.name for entry in NETNS.iterdir()] if NETNS.exists() else []
        ours = sorted(name for name in names if _is_ours(name, self.prefix))
        for name in ours:
            run("ip", "netns", "del", name, check=False)
        self.hosts.clear()
        return ours


def _is_ours(name: str, prefix: str) -> bool:
    rest = name.removeprefix(f"{prefix}-")
    return rest != name and (rest == "sw" or (rest[:1] in ("h", "c") and rest[1:].isdecimal()))


def require_root() -> None:
    """Raises LabError for anybody but root."""
    if os.geteuid() != 0:
        raise LabError("this makes network namespaces: run it as root (sudo)")


def plug(host: str, container: str, number: int, cidrs: Sequence[str], *, offload: bool = False) -> None:
    """Attach a container by hand, as an operator of a foreign router would: a veth, addresses.

    `offload`: its frames may be unfinished, which only a router whose frames the kernel carries can take.
    """
    port, guest = f"vethwepl{number}", f"vethwepg{number}"
    mtu = run(*inside(host, "cat", "/sys/class/net/weave/mtu")).strip()
    run("ip", "-n", host, "link", "add", port, "mtu", mtu, "type", "veth", "peer", "name", guest, "mtu", mtu)
    run("ip", "-n", host, "link", "set", port, "master", "weave")
    if not offload:
        run(*inside(host, "ethtool", "-K", guest, "tx", "off"), check=False)
    run("ip", "-n", host, "link", "set", guest, "netns", container)
    run("ip", "-n", container, "link", "set", guest, "name", "ethwe")
    run("ip", "-n", host, "link", "set", port, "up")
    run("ip", "-n", host, "link", "set", port, "type", "bridge_slave", "hairpin", "on")
    for cidr in cidrs:
        run("ip", "-n", container, "addr", "add", cidr, "dev", "ethwe")
    run("ip", "-n", container, "link", "set", "ethwe", "up")
    run("ip", "-n", container, "route", "add", "224.0.0.0/4", "dev", "ethwe", "scope", "link")
