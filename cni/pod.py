"""A pod's interface on this host: made, looked at, taken away. Blocking; the service calls it from threads.

The port on the bridge says whose it is (`host.pod_port`), so that a pod is found also when its namespace cannot be
entered any more. Pods that Weave Net made are found by its name for a port. Source: Kubernetes and CNI spec §1.5, §1.6.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cni.errors import TRY_AGAIN_LATER, CniError
from cni.result import Interface
from host import netns
from host.attach import attach, detach
from host.bridge import error_text
from host.errors import HostError
from host.links import Link, addresses, by_index, by_name, exists, namespace_number, ports
from host.pod_port import FIRST_INTERFACE, PodPort, pod_port
from host.routes import Route, routes_by
from host.rtnetlink import Rtnetlink

_OLD_PORT = "vethwepl"
_OLD_ID = 7


@dataclass(frozen=True, slots=True)
class Place:
    """Where an interface goes: the bridge, the MTU (octets; None for the bridge's), whether frames may turn back."""

    bridge: str
    mtu: int | None
    hairpin: bool


def check_place(descriptor: int, bridge: str) -> None:
    """Refuse what cannot be done before anything is. Raises CniError."""
    try:
        with netns.opened(descriptor), Rtnetlink() as host:
            if host.link(bridge) is None:
                raise CniError(f'Failed to get netdev for "{bridge}" bridge: Link not found')
    except HostError as error:
        if "own network namespace" in str(error):
            text = "can not specify host network namespace as network namespace to which container should be added"
            raise CniError(text) from error
        raise CniError(str(error)) from error


def connect(
    descriptor: int, sandbox: str, port: PodPort, place: Place, routes: Sequence[Route]
) -> tuple[tuple[Interface, ...], bool]:
    """The bridge, the port and the pod's interface, which talks when this returns; whether it is new.

    Raises CniError.
    """
    try:
        made = attach(
            descriptor,
            [IPv4Interface(port.cidr)],
            bridge=place.bridge,
            interface=port.interface,
            multicast_route=False,
            mtu=place.mtu,
            hairpin=place.hairpin,
            identity=port.container,
            alias=port.alias(),
            routes=routes,
        )
        with Rtnetlink() as host:
            master, link = host.link(place.bridge), host.link(made.host_interface)
    except (HostError, OSError) as error:
        raise CniError(str(error)) from error
    if master is None or link is None:
        raise CniError(f"{made.host_interface} was removed meanwhile", TRY_AGAIN_LATER)
    interfaces = (
        Interface(master.name, master.mac, master.mtu),
        Interface(link.name, link.mac, link.mtu),
        Interface(made.interface, made.mac, made.mtu, sandbox),
    )
    return interfaces, made.created


def disconnect(descriptor: int | None, bridge: str, container: str, interface: str) -> tuple[list[str], list[str]]:
    """Take a pod's interface away, by its namespace and by its port: addresses `ip/prefix` it had, and what was odd.

    Nothing is an error: whatever is gone is gone.
    """
    had: list[str] = []
    notes: list[str] = []
    if descriptor is not None:
        try:
            if not netns.inside(descriptor, lambda: exists(interface)):
                notes.append(f'error removing interface "{interface}": Link not found')
            had += detach(descriptor, interface=interface)
        except HostError as error:
            notes.append(f'error removing interface "{interface}": {error}')
    for port in find_ports(bridge, container, interface):
        with contextlib.suppress(NetlinkError), IPRoute() as ip:
            ip.link("del", index=port.index)
    return had, notes


def find_ports(bridge: str, container: str, interface: str) -> list[Link]:
    """The ports that belong to a pod's interface."""
    found = []
    for port in ports(bridge):
        who = pod_port(port.alias)
        if who is not None:
            mine = (who.container, who.interface) == (container, interface)
        else:
            mine = interface == FIRST_INTERFACE and port.name == old_port(container)
        if mine:
            found.append(port)
    return found


def old_port(container: str) -> str:
    """What Weave Net calls the port of a container."""
    return _OLD_PORT + container[:_OLD_ID]


def pods(bridge: str) -> list[tuple[Link, PodPort | None]]:
    """All ports of containers, with whose they say they are."""
    return [(port, pod_port(port.alias)) for port in ports(bridge) if port.name.startswith(_OLD_PORT)]


@dataclass(frozen=True, slots=True)
class Found:
    """What a pod's interface is like."""

    mac: str
    addresses: tuple[str, ...]
    routes: frozenset[Route]
    on_bridge: bool
    up: bool


def inspect(descriptor: int, bridge: str, interface: str) -> Found | None:
    """What there is; None without such an interface. Raises CniError."""

    def look() -> tuple[Link, list[str], set[Route], bool] | None:
        with IPRoute() as ip:
            link = by_name(ip, interface)
            if link is None:
                return None
            up = ip.get_links(link.index)[0].get_attr("IFLA_OPERSTATE") == "UP"
            return link, addresses(ip, link.index), routes_by(ip, link.index), up

    try:
        found = netns.inside(descriptor, look)
        if found is None:
            return None
        link, cidrs, routes, up = found
        with IPRoute() as ip:
            here, master = namespace_number(ip, descriptor), by_name(ip, bridge)
            port = None if link.peer is None else by_index(ip, link.peer)
    except (HostError, NetlinkError) as error:
        raise CniError(error_text(error) if isinstance(error, NetlinkError) else str(error)) from error
    plugged = (
        port is not None
        and master is not None
        and (port.peer, port.peer_namespace, port.master) == (link.index, here, master.index)
    )
    return Found(link.mac, tuple(cidrs), frozenset(routes), plugged, up)
