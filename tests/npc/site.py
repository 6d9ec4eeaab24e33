"""Two hosts with bridges that are one network, pods on them as namespaces, and whoever is outside.

    n1, n2     hosts; their bridges `weave` are joined by `join` (a pair of veths, or whatever the caller makes)
    pods       a namespace for each set of addresses that the table of cases ever gives a pod
    outside    a machine that has every other address, and routes to each pod through the pod's host

Nobody translates addresses, so that every packet arrives as it was sent. Probes need nobody to listen: who is reached
refuses a connection, and that answer comes back. Source: NPC spec §9.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from host.bridge import ensure_bridge
from host.netns import inside
from lab.net import Underlay, run
from lab.net import inside as command_inside

Document = dict[str, Any]
BRIDGE = "weave"
_REFUSED = 0.4
_REACHED = 6.0
_AGAIN = 1.0
_SCTP = 132
_ICMP, _ICMP6 = 1, 58
_IP_RECVERR, _IPV6_RECVERR = 11, 25
# Of a node's addresses, those on its bridge.
_GATEWAYS = frozenset(("10.32.0.1", "10.32.0.2", "fd00:32::1", "fd00:32::2"))
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv6.icmp.ratelimit=0",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """The first packet of a connection, sent in a namespace, and the answer that is waited for."""

    namespace: str
    source: str
    destination: str
    protocol: str
    port: int = 0


@dataclass(slots=True)
class Site:
    """`prefix` names its namespaces; `hosts` maps nodes to their namespaces."""

    underlay: Underlay
    nodes: dict[str, list[str]]
    hosts: dict[str, str] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    outside: str = ""
    mtu: int = 1400
    ports: dict[str, str] = field(default_factory=dict)

    def namespace_of(self, address: str) -> str:
        """Where an address is; outside if it is nobody's."""
        for node, addresses in self.nodes.items():
            if address in addresses:
                return self.hosts[node]
        return self.pods.get(address, self.outside)

    def on_host(self, node: str, work: Callable[[], Any]) -> Any:
        """Call something in a host's namespace."""
        return inside(f"/run/netns/{self.hosts[node]}", work)

    # --- making it ---

    def make(self, foreign: Sequence[str]) -> None:
        """Hosts and the outside, which has the `foreign` addresses."""
        outside = self.underlay.host(9)
        self.outside = outside.namespace
        for number, (node, addresses) in enumerate(self.nodes.items(), 1):
            host = self.underlay.host(number)
            self.hosts[node] = host.namespace
            _sysctl(host.namespace)
            own = [one for one in addresses if one not in _GATEWAYS]
            _batch(host.namespace, [f"addr add {one}/{_whole(one)} dev lo" for one in own])
        _sysctl(self.outside)
        _batch(self.outside, [f"addr add {one}/{_whole(one)} dev lo" for one in foreign])
        for number, (node, addresses) in enumerate(self.nodes.items(), 1):
            # Everything that is nobody's on a host is outside, and a host is known by its address on the underlay.
            via4, via6 = outside.address, outside.address6
            _batch(self.hosts[node], [f"route replace 0.0.0.0/0 via {via4}", f"route replace ::/0 via {via6}"])
            here = self.underlay.host(number)
            ways = [f"route replace {one} via {here.address6 if ':' in one else here.address}" for one in addresses]
            others = [self.outside, *(name for other, name in self.hosts.items() if other != node)]
            for namespace in others:
                _batch(namespace, ways)

    def make_bridges(self) -> None:
        """Bridges without a router, joined by a cable."""
        for number, namespace in enumerate(self.hosts.values(), 1):
            mac = f"0a:00:00:00:00:0{number}"
            inside(f"/run/netns/{namespace}", partial(ensure_bridge, BRIDGE, mac, 1400))
        one, other = self.hosts.values()
        run("ip", "-n", one, "link", "add", "mesh", "type", "veth", "peer", "name", "mesh", "netns", other)
        for namespace in (one, other):
            run("ip", "-n", namespace, "link", "set", "mesh", "master", BRIDGE, "up")
        self.give_addresses()

    def give_addresses(self) -> None:
        """The nodes' addresses on their bridges."""
        for node, addresses in self.nodes.items():
            own = [one for one in addresses if one in _GATEWAYS]
            _batch(
                self.hosts[node], [f"addr add {one}/{_whole(one)} dev {BRIDGE}{' nodad' * (':' in one)}" for one in own]
            )

    def add_pod(self, node: str, addresses: Sequence[str]) -> None:
        """A pod on a node; its gateway is the node's address on the bridge."""
        host, number = self.hosts[node], len(set(self.pods.values())) + 1
        name, port = f"{self.underlay.prefix}-c{number}", f"vethwepl{number}"
        run("ip", "netns", "add", name)
        _sysctl(name)
        run(
            "ip",
            "-n",
            host,
            "link",
            "add",
            port,
            "mtu",
            str(self.mtu),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            name,
        )
        run("ip", "-n", host, "link", "set", port, "master", BRIDGE, "up")
        row = ["link set lo up", f"link set eth0 mtu {self.mtu} up"]
        row += [f"addr add {one}/{16 if ':' not in one else 32} dev eth0 nodad" for one in addresses]
        row += [
            f"route add {'::' if ':' in one else '0.0.0.0'}/0 via {one}" for one in self.nodes[node] if one in _GATEWAYS
        ]
        _batch(name, row)
        here = self.underlay.host(list(self.nodes).index(node) + 1)
        for one in addresses:
            self.pods[one] = name
            self.ports[one] = port
            via = here.address6 if ":" in one else here.address
            _batch(host, [f"route replace {one} dev {BRIDGE}"])
            for namespace in (self.outside, *(other for other in self.hosts.values() if other != host)):
                _batch(namespace, [f"route replace {one} via {via}"])

    def remove(self) -> None:
        self.underlay.remove()

    # --- probes ---

    def reached(self, probes: Sequence[Probe], expected: Sequence[bool]) -> list[bool]:
        """Whether each probe is answered; who is expected to be is waited for longer, and asked again as TCP does."""
        open_probes = {}
        for number, probe in enumerate(probes):
            sock = inside(f"/run/netns/{probe.namespace}", partial(_send, probe))
            open_probes[sock] = number
        found = [False] * len(probes)
        started = again = time.monotonic()
        try:
            while waiting := [sock for sock, number in open_probes.items() if not found[number]]:
                patient = any(expected[open_probes[sock]] for sock in waiting)
                left = started + (_REACHED if patient else _REFUSED) - time.monotonic()
                if left <= 0:
                    break
                if time.monotonic() > again + _AGAIN:
                    again = time.monotonic()
                    for sock in waiting:
                        _first_packet(sock, probes[open_probes[sock]])
                left = min(left, _AGAIN)
                poll = select.poll()
                for sock in waiting:
                    poll.register(sock, select.POLLIN | select.POLLERR | select.POLLOUT * (sock.type & 1))
                by_number = {sock.fileno(): sock for sock in waiting}
                for number, _event in poll.poll(1000 * left):
                    found[open_probes[by_number[number]]] |= _answered(by_number[number])
        finally:
            for sock in open_probes:
                sock.close()
        return found


def _answered(sock: socket.socket) -> bool:
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return True
    if sock.type == socket.SOCK_STREAM:
        return True
    with contextlib.suppress(BlockingIOError):
        try:
            return bool(sock.recv(2048))
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            return True
    return False


def _send(probe: Probe) -> socket.socket:
    """A socket from which a probe was sent."""
    six = ":" in probe.destination
    family = socket.AF_INET6 if six else socket.AF_INET
    numbers = {"ICMP": (_ICMP6 if six else _ICMP), "SCTP": _SCTP}
    if probe.protocol == "TCP":
        sock = socket.socket(family, socket.SOCK_STREAM)
    elif probe.protocol == "UDP":
        sock = socket.socket(family, socket.SOCK_DGRAM)
    else:
        sock = socket.socket(family, socket.SOCK_RAW, numbers[probe.protocol])
    sock.setblocking(False)
    if probe.protocol != "TCP":
        level, option = (socket.IPPROTO_IPV6, _IPV6_RECVERR) if six else (socket.IPPROTO_IP, _IP_RECVERR)
        sock.setsockopt(level, option, 1)
    sock.bind((probe.source, 0))
    with contextlib.suppress(BlockingIOError):
        sock.connect((probe.destination, probe.port if probe.protocol in ("TCP", "UDP") else 0))
    _first_packet(sock, probe)
    return sock


def _first_packet(sock: socket.socket, probe: Probe) -> None:
    """What a protocol without a connection of the kernel's sends."""
    content = {"UDP": lambda: b"probe", "SCTP": lambda: sctp_init(probe.port), "ICMP": _echo}.get(probe.protocol)
    if content is not None:
        with contextlib.suppress(OSError):
            sock.send(content())


def sctp_init(port: int) -> bytes:
    """The first packet of an SCTP association, with its checksum. Source: RFC 9260."""
    source = 32768 + int.from_bytes(os.urandom(2), "big") % 28000
    tag = os.urandom(4)
    chunk = struct.pack(">BBH4sIHHI", 1, 0, 20, tag, 65536, 1, 1, int.from_bytes(tag, "big"))
    header = struct.pack(">HHI", source, port, 0)
    return header + struct.pack("<I", _crc32c(header + bytes(4) + chunk)) + chunk


def _crc32c(content: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _echo() -> bytes:
    packet = struct.pack(">BBHHH", 8, 0, 0, int.from_bytes(os.urandom(2), "big"), 1) + b"probe..."
    total = sum(struct.unpack(f">{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    return packet[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]


def _whole(address: str) -> int:
    return 128 if ":" in address else 32


def _sysctl(namespace: str) -> None:
    run(*command_inside(namespace, "sysctl", "-q", "-w", *_SYSCTLS))


def _batch(namespace: str, lines: Sequence[str]) -> None:
    run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(lines) + "\n")


_number = 0
_guard = threading.Lock()


@contextlib.contextmanager
def site(nodes: dict[str, list[str]], foreign: Sequence[str]) -> Iterator[Site]:
    """Hosts, without bridges and pods yet; gone afterwards."""
    global _number
    with _guard:
        _number += 1
    made = Site(Underlay(f"np{os.getpid()}{_number}"), nodes)
    try:
        made.make([one for one in foreign if ip_address(one)])
        yield made
    finally:
        made.remove()
