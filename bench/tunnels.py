"""The tunnels that the sleeve benchmark compares: ours, real routers', and others that are given by their paths."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.net import Underlay, inside, plug, run
from lab.router import Router, wait_until, weave
from lab.traffic import ping


@dataclass(slots=True)
class Tunnel:
    """Two ends that reach each other somehow; routers or other processes between them, if any."""

    name: str
    underlay: Underlay
    ends: tuple[str, str]
    address: str
    routers: list[Router] = field(default_factory=list)
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether somebody between the ends uses processor time of their own."""
        return bool(self.routers or self.processes)

    def cpu(self) -> float:
        """User and system seconds so far, of both ends."""
        return sum(router.cpu_seconds() for router in self.routers) + sum(_cpu(each.pid) for each in self.processes)

    def note(self, what: str, value: float) -> None:
        self.figures.setdefault(what, []).append(value)

    def end(self) -> None:
        for router in self.routers:
            router.stop(kill=True)
        for process in self.processes:
            process.kill()
            process.wait()
        self.underlay.remove()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def raw(prefix: str) -> Tunnel:
    """The underlay itself: veth, switch, veth."""
    underlay = Underlay(prefix)
    one, two = underlay.host(1), underlay.host(2)
    return Tunnel("raw veth", underlay, (one.namespace, two.namespace), two.address)


def sleeve(
    prefix: str,
    name: str,
    directory: Path,
    *,
    foreign: str | None = None,
    password: str | None = None,
    implementation: str = "",
    from_host: bool = False,
    fastdp: bool = False,
) -> Tunnel:
    """Two hosts with a router each and a container, or none where the ends are the hosts themselves."""
    tunnel = Tunnel(name, Underlay(prefix), ("", ""), "10.32.0.2")
    for number in (1, 2):
        add_router(tunnel, number, directory, foreign, password, implementation, [1] if number == 2 else [], fastdp)
    for router in tunnel.routers:
        wait_until("the router answers", router.answers, 30)
    wait_until("the connection", lambda: all(router.established() for router in tunnel.routers), 30)
    one, two = (attach(router, from_host=from_host) for router in tunnel.routers)
    tunnel.ends = (one, two)
    wait_until("a ping", lambda: ping(one, "10.32.0.2"), 30)
    return tunnel


def add_router(
    tunnel: Tunnel,
    number: int,
    directory: Path,
    foreign: str | None,
    password: str | None,
    implementation: str,
    peers: list[int],
    fastdp: bool = False,
) -> Router:
    """One more host with a router."""
    host = tunnel.underlay.host(number)
    router = Router(host, directory / f"{tunnel.underlay.prefix}{number}", foreign=foreign, password=password)
    router.fastdp = fastdp
    # A router inherits our environment.
    os.environ["WEAVE_SLEEVE"] = implementation
    router.start([tunnel.underlay.host(peer).address for peer in peers])
    del os.environ["WEAVE_SLEEVE"]
    tunnel.routers.append(router)
    return router


def attach(router: Router, *, from_host: bool = False) -> str:
    """The namespace of a router's end."""
    host = router.host
    cidr = f"10.32.0.{host.number}/12"
    if from_host:
        run("ip", "-n", host.namespace, "addr", "add", cidr, "dev", "weave")
        return host.namespace
    container = router.host.namespace.replace("-h", "-c")
    run("ip", "netns", "add", container)
    run("ip", "-n", container, "link", "set", "lo", "up")
    if router.foreign or router.fastdp:
        # Alike for all that the kernel carries, and without the packet rules that attaching makes in a container.
        plug(host.namespace, container, host.number, [cidr], offload=router.fastdp)
    else:
        weave(host, "attach", cidr, container)
    return container


def wireguard(prefix: str, directory: Path, program: str) -> Tunnel:
    """Two hosts with wireguard-go; `wg` configures it."""
    tunnel = Tunnel("wireguard-go", Underlay(prefix), ("", ""), "10.33.0.2")
    hosts = [tunnel.underlay.host(number) for number in (1, 2)]
    keys = []
    for host in hosts:
        file = directory / f"{prefix}{host.number}.key"
        file.write_text(run("wg", "genkey"))
        file.chmod(0o600)
        keys.append((file, run("wg", "pubkey", stdin=file.read_text()).strip()))
    for host, (own, _), (_, theirs), other in zip(hosts, keys, keys[::-1], hosts[::-1], strict=True):
        device = f"{prefix[-8:]}{host.number}"
        environment = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
        tunnel.processes.append(subprocess.Popen(inside(host.namespace, program, "-f", device), env=environment))
        wait_until("wireguard-go", lambda at=device: Path(f"/var/run/wireguard/{at}.sock").exists(), 10)  # type: ignore[misc]
        options = ("listen-port", "7000", "private-key", str(own), "peer", theirs, "allowed-ips", "10.33.0.0/24")
        run(*inside(host.namespace, "wg", "set", device, *options, "endpoint", f"{other.address}:7000"))
        run("ip", "-n", host.namespace, "addr", "add", f"10.33.0.{host.number}/24", "dev", device)
        run("ip", "-n", host.namespace, "link", "set", device, "mtu", "1420", "up")
    tunnel.ends = (hosts[0].namespace, hosts[1].namespace)
    wait_until("a ping", lambda: ping(tunnel.ends[0], tunnel.address), 30)
    return tunnel


_NEBULA = """
pki: {{ca: {d}/ca.crt, cert: {d}/n{n}.crt, key: {d}/n{n}.key}}
static_host_map: {{"10.34.0.{o}": ["{address}:4242"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: 4242, read_buffer: 4194304, write_buffer: 4194304}}
tun: {{dev: neb{n}, mtu: 1414}}
logging: {{level: error}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""


def nebula(prefix: str, directory: Path, program: str) -> Tunnel:
    """Two hosts with nebula; `nebula-cert` beside it makes its certificates."""
    tunnel = Tunnel("nebula", Underlay(prefix), ("", ""), "10.34.0.2")
    certificates = str(Path(program).with_name("nebula-cert"))
    run(certificates, "ca", "-name", "bench", "-out-crt", f"{directory}/ca.crt", "-out-key", f"{directory}/ca.key")
    hosts = [tunnel.underlay.host(number) for number in (1, 2)]
    for host in hosts:
        number, other = host.number, hosts[2 - host.number]
        authority = ("-ca-crt", f"{directory}/ca.crt", "-ca-key", f"{directory}/ca.key")
        out = ("-out-crt", f"{directory}/n{number}.crt", "-out-key", f"{directory}/n{number}.key")
        run(certificates, "sign", "-name", f"n{number}", "-ip", f"10.34.0.{number}/24", *authority, *out)
        file = directory / f"n{number}.yml"
        file.write_text(_NEBULA.format(d=directory, n=number, o=other.number, address=other.address))
        command = inside(host.namespace, program, "-config", str(file))
        tunnel.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    time.sleep(1)
    tunnel.ends = (hosts[0].namespace, hosts[1].namespace)
    wait_until("a ping", lambda: ping(tunnel.ends[0], tunnel.address), 30)
    return tunnel
