"""Plain VXLAN devices, one for a peer: the fast data path of a kernel that takes no program from us.

Such a device takes one network identifier, that of what the peer sends to us, and sends all it is given to one host
under one other. On the bridge it is an isolated port, and the bridge learns which addresses are behind it; what
a device is for stands in its alias. It stays when the router ends: the kernel goes on forwarding.
Source: data plane spec §14.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import plain_vxlan
from host.bridge import error_text
from host.errors import HostError
from host.links import Link, by_name, links
from host.tap import TAP_NAME

PREFIX = "vxlan-p"
_LABEL = "weave "


@dataclass(frozen=True, slots=True)
class Found:
    """A device that is there: its interface's index, what it is for, whether it is on the bridge."""

    index: int
    label: str
    joined: bool


def is_ours(link: Link) -> bool:
    """Whether a link is such a device."""
    return link.kind == plain_vxlan.KIND and link.name.startswith(PREFIX) and link.alias.startswith(_LABEL)


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
    taken, sent = vnis
    whole = plain_vxlan.Ends(local, port, taken, remote, port, sent)
    return plain_vxlan.make(name, _LABEL + label, whole, mtu, up=True)


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
    plain_vxlan.change(name, lambda ip, index: ip.link("set", index=index, master=0))


def remove_all(bridge: str) -> list[str]:
    """Remove all such devices; their names. Raises HostError."""
    found = list(devices(bridge))
    for name in found:
        plain_vxlan.remove(name)
    return found
