"""Links as the kernel has them, and who is attached to the bridge.

A container is found by its interface: the veth whose other end is a port of the bridge. So this needs no list of our
own, and finds what a killed router or Weave Net 2.8 attached. Source: data plane spec §10; rtnetlink(7).
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import netns
from host.errors import HostError

_SCOPE_LINK = 253
_FORWARDING = 3
_CARRIER_LIMIT = 2.0
_CARRIER_POLL = 0.002
_NO_NUMBER = 0xFFFFFFFF
_NETNS_DIRECTORY = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `peer` is the index of a veth's other end, `peer_namespace` says which namespace has that.

    Each namespace numbers the others for itself; None is the same one.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    master: int | None
    peer: int | None
    peer_namespace: int | None


@dataclass(frozen=True, slots=True)
class Attached:
    """A container on the bridge. `namespace` is a path that leads to it now; addresses are `ip/prefix`."""

    port: str
    namespace: str
    interface: str
    mac: str
    addresses: tuple[str, ...]


def links(ip: IPRoute) -> tuple[Link, ...]:
    """All interfaces of a namespace."""
    return tuple(_link(found) for found in ip.get_links())


def await_forwarding(port: str) -> None:
    """Wait until the bridge forwards to a port, two seconds at most.

    A veth that was set up counts as down until the kernel's link watcher has run, which a busy host delays by up to a
    second; before that the bridge drops even the announcement of an address.
    """
    deadline = time.monotonic() + _CARRIER_LIMIT
    with IPRoute() as ip:
        while time.monotonic() < deadline:
            found = ip.get_links(ifname=port)
            if not found or _port_state(found[0]) in (None, _FORWARDING):
                return
            time.sleep(_CARRIER_POLL)


def _port_state(found: object) -> int | None:
    """A bridge port's state; None for what is no bridge port."""
    information = found.get_attr("IFLA_LINKINFO")  # type: ignore[attr-defined]
    port = None if information is None else information.get_attr("IFLA_INFO_SLAVE_DATA")
    state = None if port is None else port.get_attr("IFLA_BRPORT_STATE")
    return None if state is None else int(state)


def by_name(ip: IPRoute, name: str) -> Link | None:
    """The interface of this name."""
    found = ip.link_lookup(ifname=name)
    return by_index(ip, int(found[0])) if found else None


def by_index(ip: IPRoute, index: int) -> Link | None:
    """The interface of this index."""
    try:
        found = ip.get_links(index)
    except NetlinkError:
        return None
    return _link(found[0]) if found else None


def _link(found: object) -> Link:
    attribute = found.get_attr  # type: ignore[attr-defined]
    information = attribute("IFLA_LINKINFO")
    kind = "" if information is None else str(information.get_attr("IFLA_INFO_KIND") or "")
    return Link(
        index=int(found["index"]),  # type: ignore[index]
        name=str(attribute("IFLA_IFNAME")),
        kind=kind,
        mac=str(attribute("IFLA_ADDRESS")),
        mtu=int(attribute("IFLA_MTU")),
        master=attribute("IFLA_MASTER"),
        peer=attribute("IFLA_LINK") if kind == "veth" else None,
        peer_namespace=attribute("IFLA_LINK_NETNSID"),
    )


def addresses(ip: IPRoute, index: int) -> list[str]:
    """All addresses of an interface but the link-local ones, `ip/prefix`."""
    return [
        f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
        for address in ip.get_addr(index=index)
        if address["scope"] != _SCOPE_LINK
    ]


def ports(bridge: str) -> tuple[Link, ...]:
    """The ports of a bridge; none if there is no such bridge."""
    with IPRoute() as ip:
        master = by_name(ip, bridge)
        return () if master is None else tuple(link for link in links(ip) if link.master == master.index)


def namespace_number(ip: IPRoute, descriptor: int) -> int | None:
    """The number by which our namespace knows another; None if it has none."""
    number = int(ip.get_netnsid(fd=descriptor)["nsid"])
    return None if number == _NO_NUMBER else number


def attached(bridge: str) -> tuple[Attached, ...]:
    """Who is on the bridge, by port name. Looks into every namespace that a process or a name holds."""
    wanted: dict[int, list[Link]] = {}
    for port in ports(bridge):
        if port.peer_namespace is not None:
            wanted.setdefault(port.peer_namespace, []).append(port)
    found: list[Attached] = []
    for path in _namespaces():
        if not wanted:
            break
        try:
            found += _look(path, wanted)
        except (HostError, OSError, NetlinkError):
            # A process that ended meanwhile took its namespace along.
            continue
    return tuple(sorted(found, key=lambda one: one.port))


def _look(path: str, wanted: dict[int, list[Link]]) -> list[Attached]:
    """The ports, of those, whose other ends are in the namespace at `path`; they are wanted no more."""
    with Path(path).open("rb") as namespace:
        with IPRoute() as ip:
            number = namespace_number(ip, namespace.fileno())
        if number is None or number not in wanted:
            return []
        mine = wanted.pop(number)
        return netns.inside(namespace.fileno(), lambda: [one for port in mine for one in _ends(path, port)])


def _ends(path: str, port: Link) -> Iterator[Attached]:
    """In the container: what the port leads to."""
    with IPRoute() as ip:
        link = by_index(ip, port.peer) if port.peer is not None else None
        if link is not None:
            yield Attached(port.name, path, link.name, link.mac, tuple(addresses(ip, link.index)))


def _namespaces() -> Iterator[str]:
    """A path to each network namespace but our own: names first, for people, then processes."""
    seen = {_inode(f"/proc/self/task/{threading.get_native_id()}/ns/net")}
    named = sorted(_NETNS_DIRECTORY.iterdir()) if _NETNS_DIRECTORY.is_dir() else []
    processes = sorted((name for name in os.listdir("/proc") if name.isdecimal()), key=int)
    for path in (*map(str, named), *(f"/proc/{pid}/ns/net" for pid in processes)):
        inode = _inode(path)
        if inode is not None and inode not in seen:
            seen.add(inode)
            yield path


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
