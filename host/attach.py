"""A container's place on the bridge: a veth pair, addresses, rules about multicast, and the way back.

Every step finds what an earlier run did and goes on from there, also after a kill in the middle; an attach that fails
takes back what it did. The container's offloads stay on, because the TAP port is handed finished frames.
Two attaches of one container go one after the other. Source: data plane spec §8.
"""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import multicast, netns
from host.addresses import Address, announce, keep, remove
from host.bridge import error_text
from host.errors import HostError
from host.links import Link, addresses
from host.routes import Route
from host.rtnetlink import Rtnetlink
from host.sysctl import refuse_advertisements
from nft.wire import NftError

INTERFACE = "ethwe"
_ID_SIZE = 7
_NAMES_TRIED = 8
_MIN_MTU = 68
_FORWARDING = 3
_CARRIER_LIMIT = 2.0
_CARRIER_POLL = 0.002


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
    wanted = [*routes, Route(IPv4Network(multicast.GROUPS))] if multicast_route else routes
    with netns.opened(target) as container, netns.locked(container), Rtnetlink() as host:
        join = _Join(host, container, identity or container.identity, bridge, interface, hairpin, alias)
        try:
            most = _mtu(host, bridge, mtu)
            made = netns.inside(container.descriptor, lambda: join.run(most, addresses, wanted))
            if made.created:
                refuse_advertisements(made.host_interface)
            return made
        except (NetlinkError, NftError, OSError) as error:
            raise HostError(f"unable to attach {_named(target)}: {error_text(error)}") from error


def detach(
    target: str | int, addresses: Sequence[Address] | None = None, *, interface: str = INTERFACE
) -> tuple[str, ...]:
    """Take addresses away, all by default; with the last one the interface goes. Returns those taken, `ip/prefix`."""
    with netns.opened(target) as container, netns.locked(container), Rtnetlink() as host:

        def work() -> tuple[str, ...]:
            with Rtnetlink() as there:
                own = _find_port(host, there, container.descriptor, interface) is not None
            return _withdraw(interface, addresses) if own else _gone(interface)

        try:
            return netns.inside(container.descriptor, work)
        except (NetlinkError, NftError, OSError) as error:
            raise HostError(f"unable to detach {_named(target)}: {error_text(error)}") from error


def _named(target: str | int) -> str:
    return target if isinstance(target, str) else "the container"


def _mtu(host: Rtnetlink, bridge: str, wanted: int | None) -> int:
    link = host.link(bridge)
    if link is None:
        raise HostError(f"bridge {bridge} does not exist: is the router running?")
    if wanted is not None and not _MIN_MTU <= wanted <= link.mtu:
        raise HostError(f"MTU {wanted} is out of range: bridge {bridge} takes {_MIN_MTU} to {link.mtu}")
    return link.mtu if wanted is None else wanted


def _find_port(host: Rtnetlink, there: Rtnetlink, descriptor: int, interface: str) -> Link | None:
    """The port on this host that the container's interface leads to; None without such an interface.

    Raises HostError if the interface leads elsewhere: it is not ours to change.
    """
    inner = there.link(interface)
    if inner is None:
        return None
    here = host.namespace_number(descriptor)
    port = None if inner.peer is None or here is None else host.link_at(inner.peer)
    if port is None or (port.peer, port.peer_namespace) != (inner.index, here):
        raise HostError(f"interface {interface} of the container was not made by weave: remove or rename it")
    return port


@dataclass(frozen=True, slots=True)
class _Join:
    """One container's way onto the bridge. It runs in the container's namespace; `host` is a session of ours."""

    host: Rtnetlink
    container: netns.Namespace
    identity: str
    bridge: str
    interface: str
    hairpin: bool
    alias: str

    def run(self, mtu: int, wanted: Sequence[Address], routes: Sequence[Route]) -> Attachment:
        """All of it; an interface that is new and fails is taken away again."""
        with Rtnetlink() as there:
            port, created = self._ensure(there, mtu)
            try:
                made = self._configure(there, port, created, wanted)
                _await_forwarding(self.host, port.index)
                self._finish(there, made, wanted, routes)
            except BaseException:
                if created:
                    _delete(self.host, port.index)
                raise
        return made

    # --- the pair ---

    def _ensure(self, there: Rtnetlink, mtu: int) -> tuple[Link, bool]:
        """The port, on the bridge and up, its other end in the container; whether it is new."""
        existing = _find_port(self.host, there, self.container.descriptor, self.interface)
        if existing is not None:
            self._plug(existing)
            return existing, False
        name = self._free_name(there)
        # Made where it belongs: to move an interface and rename it there costs the kernel many times as long.
        self.host.add_veth(name, mtu, self.interface, self.container.descriptor)
        port = self.host.link(name)
        if port is None:
            raise HostError(f"port {name} was removed meanwhile")
        try:
            self._plug(port)
        except BaseException:
            _delete(self.host, port.index)
            raise
        return port, True

    def _plug(self, port: Link) -> None:
        master = self.host.link(self.bridge)
        if master is None:
            raise HostError(f"bridge {self.bridge} was removed meanwhile")
        if port.master != master.index:
            self.host.set_master(port.index, master.index)
            # A small container must not shrink the bridge for everybody.
            self.host.set_mtu(master.index, master.mtu)
        self.host.set_up(port.index)
        self.host.set_hairpin(port.index, self.hairpin)
        if self.alias and self.alias != port.alias:
            self.host.set_alias(port.index, self.alias)

    def _free_name(self, there: Rtnetlink) -> str:
        """A name that no port has, made from the identity; what a killed attach left under it is removed."""
        for attempt in range(_NAMES_TRIED):
            plain = self.interface == INTERFACE and attempt == 0
            port, guest = host_names(self.identity if plain else f"{self.identity} {self.interface} {attempt}")
            taken = self.host.link(port)
            if taken is not None and self._unfinished(there, taken, guest):
                self.host.delete_link(taken.index)
                taken = None
            if taken is None:
                return port
        raise HostError(f"no free name for a port of {self.identity}: too many links begin with vethwepl")

    def _unfinished(self, there: Rtnetlink, port: Link, guest: str) -> bool:
        """Whether a port's other end still has the name under which Weave Net makes it, before it moves it."""
        if port.peer is None:
            return False
        if port.peer_namespace is None:
            other = self.host.link_at(port.peer)
        elif port.peer_namespace == self.host.namespace_number(self.container.descriptor):
            other = there.link_at(port.peer)
        else:
            return False
        return other is not None and other.name == guest

    # --- in the container ---

    def _configure(self, there: Rtnetlink, port: Link, created: bool, wanted: Sequence[Address]) -> Attachment:
        refuse_advertisements(self.interface)
        link = there.link(self.interface)
        if link is None:
            raise HostError(f"interface {self.interface} of the container was removed meanwhile")
        there.tune_neighbours(link.index)
        had = there.addresses(link.index)
        added: list[Address] = []
        try:
            for address in dict.fromkeys(wanted):
                if str(address) not in had and there.add_address(link.index, address):
                    added.append(address)
            have = there.addresses(link.index)
            multicast.limit(self.interface, have)
            there.set_up(link.index)
        except BaseException:
            _take_back(self.interface, link.index, [str(address) for address in added], had)
            raise
        new = tuple(map(str, added))
        return Attachment(port.name, self.interface, link.mac, link.mtu, tuple(have), new, created)

    def _finish(self, there: Rtnetlink, made: Attachment, wanted: Sequence[Address], routes: Sequence[Route]) -> None:
        """Tell the neighbours; last of all the routes, one of which start-up scripts wait for."""
        link = there.link(self.interface)
        if link is None:
            raise HostError(f"interface {self.interface} of the container was removed meanwhile")
        try:
            for address in wanted:
                if isinstance(address, IPv4Interface):
                    announce(self.interface, made.mac, address)
            for route in routes:
                there.add_route(link.index, route)
        except BaseException:
            had = [text for text in made.addresses if text not in made.added]
            _take_back(self.interface, link.index, made.added, had)
            raise


def _delete(host: Rtnetlink, index: int) -> None:
    with contextlib.suppress(OSError):
        host.delete_link(index)


def _await_forwarding(host: Rtnetlink, port: int) -> None:
    """Wait until the bridge forwards to a port, two seconds at most.

    A veth that was set up counts as down until the kernel's link watcher has run, which a busy host delays by up to a
    second; before that the bridge drops even the announcement of an address.
    """
    deadline = time.monotonic() + _CARRIER_LIMIT
    while time.monotonic() < deadline:
        if host.port_state(port) in (None, _FORWARDING):
            return
        time.sleep(_CARRIER_POLL)


# --- leaving ---


def _take_back(interface: str, index: int, added: Sequence[str], had: Sequence[str]) -> None:
    with IPRoute() as ip:
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
