"""A container's place on the bridge: a veth pair, addresses, rules about multicast, and the way back.

Every step finds what an earlier run did and goes on from there, also after a kill in the middle; an attach that fails
takes back what it did. The container's offloads stay on, because the TAP port is handed finished frames.
Two attaches of one container go one after the other. Source: data plane spec §8.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import multicast, netns
from host.addresses import Address, add, announce, keep, remove
from host.bridge import bridge_mtu, error_text
from host.errors import HostError
from host.links import Link, addresses, await_forwarding, by_index, by_name, namespace_number
from host.routes import Route, add_routes
from host.sysctl import refuse_advertisements, tune_neighbours
from nft.wire import NftError

INTERFACE = "ethwe"
_ID_SIZE = 7
_NAMES_TRIED = 8
_MIN_MTU = 68


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a container has now: its interface, that one's MAC and MTU (octets), all addresses, and those that are new.

    `created` says that the interface is new.
    """

    host_interface: str
    interface: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    added: tuple[str, ...]
    created: bool


def host_names(identity: str) -> tuple[str, str]:
    """The names of the pair on the host: the port, and the other end where it is made here and moved later."""
    short = identity if len(identity) <= _ID_SIZE else hashlib.sha256(identity.encode()).hexdigest()[:_ID_SIZE]
    return f"vethwepl{short}", f"vethwepg{short}"


def attach(
    target: str | int,
    addresses: Sequence[Address],
    *,
    bridge: str = "weave",
    interface: str = INTERFACE,
    multicast_route: bool = True,
    mtu: int | None = None,
    hairpin: bool = True,
    identity: str | None = None,
    alias: str = "",
    routes: Sequence[Route] = (),
) -> Attachment:
    """Connect a container, given as a name or by the descriptor of its namespace. Blocks for milliseconds.

    `mtu` in octets, the bridge's by default; `identity` names the port on the host, by default from the target;
    `alias` is what the port says of itself. Raises HostError.
    """
    with netns.opened(target) as container, netns.locked(container):
        join = _Join(container, identity or container.identity, bridge, interface, hairpin, alias)
        try:
            port, created = join.ensure(_mtu(bridge, mtu))
            try:
                made = netns.inside(container.descriptor, lambda: _configure(port, created, interface, addresses))
                await_forwarding(port)
                netns.inside(container.descriptor, lambda: _finish(made, addresses, multicast_route, routes))
                return made
            except BaseException:
                if created:
                    _delete(port)
                raise
        except (NetlinkError, NftError, OSError) as error:
            raise HostError(f"unable to attach {_named(target)}: {error_text(error)}") from error


def detach(
    target: str | int, addresses: Sequence[Address] | None = None, *, interface: str = INTERFACE
) -> tuple[str, ...]:
    """Take addresses away, all by default; with the last one the interface goes. Returns those taken, `ip/prefix`."""
    with netns.opened(target) as container, netns.locked(container):
        try:
            own = _find_port(container, interface) is not None
            work = (lambda: _withdraw(interface, addresses)) if own else (lambda: _gone(interface))
            return netns.inside(container.descriptor, work)
        except (NetlinkError, NftError, OSError) as error:
            raise HostError(f"unable to detach {_named(target)}: {error_text(error)}") from error


def _named(target: str | int) -> str:
    return target if isinstance(target, str) else "the container"


def _mtu(bridge: str, wanted: int | None) -> int:
    most = bridge_mtu(bridge)
    if wanted is None:
        return most
    if not _MIN_MTU <= wanted <= most:
        raise HostError(f"MTU {wanted} is out of range: bridge {bridge} takes {_MIN_MTU} to {most}")
    return wanted


# --- on the host ---


def _find_port(container: netns.Namespace, interface: str) -> Link | None:
    """The port on this host that the container's interface leads to; None without such an interface.

    Raises HostError if the interface leads elsewhere: it is not ours to change.
    """
    inner = netns.inside(container.descriptor, lambda: _link(interface))
    if inner is None:
        return None
    with IPRoute() as ip:
        here = namespace_number(ip, container.descriptor)
        port = None if inner.peer is None or here is None else by_index(ip, inner.peer)
        if port is None or (port.peer, port.peer_namespace) != (inner.index, here):
            raise HostError(f"interface {interface} of the container was not made by weave: remove or rename it")
    return port


def _link(interface: str) -> Link | None:
    with IPRoute() as ip:
        return by_name(ip, interface)


@dataclass(frozen=True, slots=True)
class _Join:
    """One container's way onto the bridge."""

    container: netns.Namespace
    identity: str
    bridge: str
    interface: str
    hairpin: bool
    alias: str

    def ensure(self, mtu: int) -> tuple[str, bool]:
        """The port, on the bridge and up, its other end in the container; whether it is new."""
        existing = _find_port(self.container, self.interface)
        if existing is not None:
            self._plug(existing.name)
            return existing.name, False
        with IPRoute() as ip:
            port = self._free_name(ip)
            # Made where it belongs: to move an interface and rename it there costs the kernel many times as long.
            other = {"ifname": self.interface, "mtu": mtu, "net_ns_fd": self.container.descriptor}
            ip.link("add", ifname=port, kind="veth", mtu=mtu, peer=other)
            try:
                refuse_advertisements(port)
                self._plug(port)
            except BaseException:
                _delete(port)
                raise
        return port, True

    def _plug(self, port: str) -> None:
        with IPRoute() as ip:
            master, link = by_name(ip, self.bridge), by_name(ip, port)
            if master is None or link is None:
                raise HostError(f"bridge {self.bridge} or its port {port} was removed meanwhile")
            if link.master != master.index:
                ip.link("set", index=link.index, master=master.index)
                # A small container must not shrink the bridge for everybody.
                ip.link("set", index=master.index, mtu=master.mtu)
            ip.link("set", index=link.index, state="up")
            ip.brport("set", index=link.index, mode=int(self.hairpin))
            if self.alias:
                ip.link("set", index=link.index, ifalias=self.alias)

    def _free_name(self, ip: IPRoute) -> str:
        """A name that no port has, made from the identity; what a killed attach left under it is removed."""
        for attempt in range(_NAMES_TRIED):
            plain = self.interface == INTERFACE and attempt == 0
            port, guest = host_names(self.identity if plain else f"{self.identity} {self.interface} {attempt}")
            there = by_name(ip, port)
            if there is not None and self._unfinished(ip, there, guest):
                ip.link("del", index=there.index)
                there = None
            if there is None:
                return port
        raise HostError(f"no free name for a port of {self.identity}: too many links begin with vethwepl")

    def _unfinished(self, ip: IPRoute, port: Link, guest: str) -> bool:
        """Whether a port's other end still has the name under which Weave Net makes it, before it moves it."""
        index = port.peer
        if index is None:
            return False
        if port.peer_namespace is None:
            other = by_index(ip, index)
        elif port.peer_namespace == namespace_number(ip, self.container.descriptor):
            other = netns.inside(self.container.descriptor, lambda: _link_at(index))
        else:
            return False
        return other is not None and other.name == guest


def _link_at(index: int) -> Link | None:
    with IPRoute() as ip:
        return by_index(ip, index)


def _delete(name: str) -> None:
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=name):
            with contextlib.suppress(NetlinkError):
                ip.link("del", index=index)


# --- in the container ---


def _configure(port: str, created: bool, interface: str, wanted: Sequence[Address]) -> Attachment:
    tune_neighbours(interface)
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=interface)[0]
        had = addresses(ip, index)
        added: list[Address] = []
        try:
            for address in dict.fromkeys(wanted):
                if str(address) not in had and add(ip, index, address):
                    added.append(address)
            have = addresses(ip, index)
            multicast.limit(interface, have)
            ip.link("set", index=index, state="up")
            link = by_index(ip, index)
            if link is None:
                raise HostError(f"interface {interface} of the container was removed meanwhile")
        except BaseException:
            _take_back(ip, interface, index, [str(address) for address in added], had)
            raise
    return Attachment(port, interface, link.mac, link.mtu, tuple(have), tuple(map(str, added)), created)


def _finish(made: Attachment, wanted: Sequence[Address], multicast_route: bool, routes: Sequence[Route]) -> None:
    """Tell the neighbours; last of all the route that start-up scripts wait for."""
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=made.interface)[0]
        try:
            for address in wanted:
                if isinstance(address, IPv4Interface):
                    announce(made.interface, made.mac, address)
            add_routes(ip, index, routes)
            if multicast_route:
                multicast.add_route(ip, index)
        except BaseException:
            had = [text for text in made.addresses if text not in made.added]
            _take_back(ip, made.interface, index, made.added, had)
            raise


def _take_back(ip: IPRoute, interface: str, index: int, added: Sequence[str], had: Sequence[str]) -> None:
    for text in added:
        remove(ip, index, text)
    multicast.limit(interface, had)


def _withdraw(interface: str, wanted: Sequence[Address] | None) -> tuple[str, ...]:
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=interface)[0]
        have = addresses(ip, index)
        leaving = have if wanted is None else [str(address) for address in wanted if str(address) in have]
        for text in leaving:
            remove(ip, index, text)
        staying = [text for text in have if text not in leaving]
        keep(ip, index, staying)
        multicast.limit(interface, staying)
        if not staying:
            ip.link("del", index=index)
        return tuple(leaving)


def _gone(interface: str) -> tuple[str, ...]:
    """The interface is not there any more; its rules may be."""
    multicast.limit(interface, ())
    return ()
