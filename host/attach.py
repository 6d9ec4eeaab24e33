"""A container's place on the bridge: a veth pair, addresses, rules about multicast, and the way back.

Every step finds what an earlier run did and goes on from there; a first attach that fails leaves nothing behind.
The container's offloads stay on, because the TAP port is handed finished frames. Source: data plane spec §8.
"""

import contextlib
import errno
import hashlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import netns
from host.bridge import bridge_mtu, error_text, tune_interface
from host.errors import HostError
from nft.expressions import accept, drop, in_interface, ip_destination, ip_source
from nft.ruleset import Hook, Transaction
from nft.wire import NftError

Address = IPv4Interface | IPv6Interface
INTERFACE = "ethwe"
MULTICAST = "224.0.0.0/4"
_TABLE = "weave"
_ID_SIZE = 7
_ETH_P_ARP = 0x0806
_PROTO_BOOT = 3


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a container has now: its interface, that one's MAC, all addresses."""

    host_interface: str
    interface: str
    mac: str
    addresses: tuple[str, ...]


def host_names(identity: str) -> tuple[str, str]:
    """The names of the pair on the host: the port, and the other end before it moves."""
    short = identity if len(identity) <= _ID_SIZE else hashlib.sha256(identity.encode()).hexdigest()[:_ID_SIZE]
    return f"vethwepl{short}", f"vethwepg{short}"


def attach(
    target: str,
    addresses: Sequence[Address],
    *,
    bridge: str = "weave",
    interface: str = INTERFACE,
    multicast_route: bool = True,
) -> Attachment:
    """Connect a container and give it addresses. Raises HostError."""
    found = netns.find(target)
    mtu = bridge_mtu(bridge)
    port, guest = host_names(found.identity)
    try:
        created = _ensure_pair(found, bridge, port, guest, interface, mtu)
        try:
            return netns.inside(
                found.path, lambda: _configure(port, interface, addresses, multicast_route=multicast_route)
            )
        except BaseException:
            if created:
                _delete(port)
            raise
    except (NetlinkError, NftError, OSError) as error:
        raise HostError(f"unable to attach {target}: {error_text(error)}") from error


def detach(target: str, addresses: Sequence[Address] | None = None, *, interface: str = INTERFACE) -> tuple[str, ...]:
    """Take addresses away, all by default; with the last one the interface goes. Returns those taken."""
    found = netns.find(target)
    try:
        return netns.inside(found.path, lambda: _withdraw(interface, addresses))
    except (NetlinkError, NftError, OSError) as error:
        raise HostError(f"unable to detach {target}: {error_text(error)}") from error


# --- on the host ---


def _ensure_pair(found: netns.Target, bridge: str, port: str, guest: str, interface: str, mtu: int) -> bool:
    """The veth pair, one end a port of the bridge, the other in the container; whether it is new."""
    if netns.inside(found.path, lambda: _has(interface)):
        return False
    descriptor = -1
    with IPRoute() as ip:
        stale = ip.link_lookup(ifname=port)
        if stale:
            ip.link("del", index=stale[0])
        master = ip.link_lookup(ifname=bridge)[0]
        ip.link("add", ifname=port, kind="veth", mtu=mtu, peer={"ifname": guest, "mtu": mtu})
        try:
            index, other = ip.link_lookup(ifname=port)[0], ip.link_lookup(ifname=guest)[0]
            for name in (port, guest):
                with contextlib.suppress(OSError):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
            ip.link("set", index=index, master=master)
            # A small container must not shrink the bridge for everybody.
            ip.link("set", index=master, mtu=mtu)
            with Path(found.path).open("rb") as namespace:
                descriptor = namespace.fileno()
                ip.link("set", index=other, net_ns_fd=descriptor)
            netns.inside(found.path, lambda: _rename(guest, interface))
            ip.link("set", index=index, state="up")
            ip.brport("set", index=index, mode=1)
        except BaseException:
            _delete(port)
            raise
    return True


def _delete(name: str) -> None:
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=name):
            with contextlib.suppress(NetlinkError):
                ip.link("del", index=index)


# --- in the container ---


def _has(interface: str) -> bool:
    with IPRoute() as ip:
        return bool(ip.link_lookup(ifname=interface))


def _rename(guest: str, interface: str) -> None:
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname=guest)[0], ifname=interface)
    tune_interface(interface)


def _configure(port: str, interface: str, addresses: Sequence[Address], *, multicast_route: bool) -> Attachment:
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=interface)[0]
        have = _addresses(ip, index)
        fresh = [address for address in addresses if str(address) not in have]
        for address in fresh:
            extra = {"flags": 0x02} if address.version == 6 else {}
            ip.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **extra)
        have += [str(address) for address in fresh]
        _limit_multicast(interface, have)
        ip.link("set", index=index, state="up")
        mac = ip.get_links(index)[0].get_attr("IFLA_ADDRESS")
        time.sleep(0.001)
        for address in addresses:
            if isinstance(address, IPv4Interface):
                _announce(interface, mac, address)
        if multicast_route:
            # The last step: start-up scripts wait for this route.
            try:
                ip.route("add", dst=MULTICAST, oif=index, scope=253, proto=_PROTO_BOOT)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
        return Attachment(port, interface, str(mac), tuple(have))


def _withdraw(interface: str, addresses: Sequence[Address] | None) -> tuple[str, ...]:
    with IPRoute() as ip:
        found = ip.link_lookup(ifname=interface)
        if not found:
            return ()
        index = found[0]
        have = _addresses(ip, index)
        leaving = have if addresses is None else [str(address) for address in addresses if str(address) in have]
        for text in leaving:
            host, _, prefix = text.partition("/")
            ip.addr("delete", index=index, address=host, prefixlen=int(prefix))
        staying = [text for text in have if text not in leaving]
        if staying:
            _limit_multicast(interface, staying)
        else:
            with Transaction(_TABLE) as change:
                change.delete_table()
            ip.link("del", index=index)
        return tuple(leaving)


def _addresses(ip: IPRoute, index: int) -> list[str]:
    """All addresses of an interface but the link-local ones, `ip/prefix`."""
    found = ip.get_addr(index=index)
    return [
        f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}" for address in found if address["scope"] != 253
    ]


def _limit_multicast(interface: str, addresses: Sequence[str]) -> None:
    """Multicast comes only from the container's own subnets."""
    subnets = sorted({str(IPv4Interface(text).network) for text in addresses if ":" not in text})
    with Transaction(_TABLE) as change:
        change.replace_table()
        change.add_chain("input", Hook.INPUT)
        for subnet in subnets:
            change.add_rule("input", in_interface(interface), ip_source(subnet), ip_destination(MULTICAST), accept())
        change.add_rule("input", in_interface(interface), ip_destination(MULTICAST), drop())


def _announce(interface: str, mac: str, address: IPv4Interface) -> None:
    """A gratuitous ARP request: whoever knew this address elsewhere learns better (RFC 5227 §3)."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    broadcast = b"\xff" * 6
    arp = b"\0\1\x08\0\6\4\0\1" + hardware + address.ip.packed + broadcast + address.ip.packed
    frame = broadcast + hardware + _ETH_P_ARP.to_bytes(2, "big") + arp
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, _ETH_P_ARP))
        sock.send(frame)
