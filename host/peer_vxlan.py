"""Plain VXLAN devices, one for a peer: the fast data path of a kernel that takes no program from us.

Such a device takes one network identifier, that of what the peer sends to us, and sends all it is given to one host
under one other. On the bridge it is an isolated port, and the bridge learns which addresses are behind it; what
a device is for stands in its alias. It stays when the router ends: the kernel goes on forwarding.
Source: data plane spec §14.1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.bridge import error_text
from host.errors import HostError
from host.links import Link, by_name, links
from host.sysctl import refuse_advertisements, silence
from host.tap import TAP_NAME

PREFIX = "vxlan-p"
KIND = "vxlan"
_LABEL = "weave "
_ANY = "00:00:00:00:00:00"
_DF_SET = 1
_TTL = 64


@dataclass(frozen=True, slots=True)
class Found:
    """A device that is there: its interface's index, what it is for, whether it is on the bridge."""

    index: int
    label: str
    joined: bool


def is_ours(link: Link) -> bool:
    """Whether a link is such a device."""
    return link.kind == KIND and link.name.startswith(PREFIX) and link.alias.startswith(_LABEL)


def devices(bridge: str) -> Mapping[str, Found]:
    """All that are there, by name. Raises HostError."""
    try:
        with IPRoute() as ip:
            master = by_name(ip, bridge)
            return {
                link.name: Found(
                    link.index, link.alias.removeprefix(_LABEL), master is not None and link.master == master.index
                )
                for link in links(ip)
                if is_ours(link)
            }
    except NetlinkError as error:
        raise HostError(f"unable to list VXLAN devices: {error_text(error)}") from error


def make(name: str, label: str, ends: tuple[str, str], port: int, vnis: tuple[int, int], mtu: int) -> int:
    """A new device of this name, up, off the bridge; its index. Raises HostError.

    `ends` are our address and the peer's, `vnis` the identifiers of what is received and of what is sent.
    """
    local, remote = ends
    v6 = ":" in remote
    # There are no checksums over IPv4, and no IPv6 without.
    source = {"vxlan_local6": local, "vxlan_udp_csum": 1} if v6 else {"vxlan_local": local, "vxlan_udp_csum": 0}
    try:
        with IPRoute() as ip:
            former = by_name(ip, name)
            if former is not None:
                ip.link("del", index=former.index)
            ip.link(
                "add", ifname=name, kind=KIND, mtu=mtu, vxlan_id=vnis[0], vxlan_port=port, vxlan_learning=0,
                vxlan_ttl=_TTL, vxlan_df=_DF_SET, **source,
            )  # fmt: skip
            index = int(ip.link_lookup(ifname=name)[0])
            silence(name)
            refuse_advertisements(name)
            ip.fdb("append", ifindex=index, lladdr=_ANY, dst=remote, vni=vnis[1])
            ip.link("set", index=index, mtu=mtu, ifalias=_LABEL + label, state="up")
            return index
    except NetlinkError as error:
        raise HostError(f"unable to make {name}: {error_text(error)}") from error


def join(bridge: str, name: str) -> None:
    """Let the bridge give frames to a device. What it learned behind sleeve's port, it learns anew. HostError."""
    try:
        with IPRoute() as ip:
            master, device, sleeve = by_name(ip, bridge), by_name(ip, name), by_name(ip, TAP_NAME)
            if master is None or device is None:
                raise HostError(f"{name} or {bridge} is gone")
            ip.link("set", index=device.index, master=master.index)
            ip.brport("set", index=device.index, isolated=1, mode=0, learning=1)
            if sleeve is not None:
                ip.brport("set", index=sleeve.index, flush=None)
    except NetlinkError as error:
        raise HostError(f"unable to put {name} on {bridge}: {error_text(error)}") from error


def leave(name: str) -> None:
    """Take a device from the bridge, which forgets what it learned behind it. Raises HostError."""
    _change(name, lambda ip, index: ip.link("set", index=index, master=0))


def remove(name: str) -> None:
    """Remove a device, if it is there. Raises HostError."""
    _change(name, lambda ip, index: ip.link("del", index=index))


def _change(name: str, change: Callable[[IPRoute, int], object]) -> None:
    try:
        with IPRoute() as ip:
            device = by_name(ip, name)
            if device is not None:
                change(ip, device.index)
    except NetlinkError as error:
        raise HostError(f"unable to change {name}: {error_text(error)}") from error


def remove_all(bridge: str) -> list[str]:
    """Remove all such devices; their names. Raises HostError."""
    found = list(devices(bridge))
    for name in found:
        remove(name)
    return found
