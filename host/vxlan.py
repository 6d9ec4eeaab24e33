"""VXLAN devices for the fast data path: external ones, which take every network identifier of one UDP port.

They are ports of the bridge, isolated like sleeve's, and stay when the router ends: the kernel goes on forwarding.
Only the first one gets what the bridge floods. Source: data plane spec §4.2, §14.2.
"""

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import transmit
from host.bridge import error_text
from host.errors import HostError
from host.links import Link, by_name, links
from host.sysctl import refuse_advertisements, silence

PREFIX = "vxlan-"
KIND = "vxlan"


def ensure_vxlan(bridge: str, port: int, mtu: int, *, floods: bool) -> int:
    """The device of a UDP port, up, on the bridge, with this MTU; its index. Raises HostError.

    A device of that name that is none of ours, as a 2.8 router's datapath leaves one, is replaced: two cannot share
    a port.
    """
    name = f"{PREFIX}{port}"
    try:
        with IPRoute() as ip:
            master, device = by_name(ip, bridge), by_name(ip, name)
            if master is None:
                raise HostError(f"bridge {bridge} does not exist")
            if device is not None and not (device.kind == KIND and device.master == master.index):
                ip.link("del", index=device.index)
                device = None
            if device is None:
                ip.link(
                    "add", ifname=name, kind=KIND, mtu=mtu, vxlan_id=0, vxlan_collect_metadata=1, vxlan_port=port,
                    vxlan_learning=0,
                )  # fmt: skip
            index = int(ip.link_lookup(ifname=name)[0])
            silence(name)
            refuse_advertisements(name)
            ip.link("set", index=index, mtu=mtu, master=master.index)
            ip.brport(
                "set", index=index, isolated=1, mode=0, learning=1, unicast_flood=int(floods), mcast_flood=int(floods),
                bcast_flood=int(floods),
            )  # fmt: skip
            ip.link("set", index=index, state="up")
            return index
    except NetlinkError as error:
        raise HostError(f"unable to make {name}: {error_text(error)}") from error


def is_ours(link: Link, bridge_index: int | None) -> bool:
    """Whether a link is such a device of a bridge."""
    return (
        link.kind == KIND
        and link.name.removeprefix(PREFIX).isdecimal()
        and link.master is not None
        and link.master == bridge_index
    )


def remove_vxlan(port: int) -> None:
    """Remove a UDP port's device, whoever made it, so that others can have the port. Raises HostError."""
    try:
        with IPRoute() as ip:
            device = by_name(ip, f"{PREFIX}{port}")
            if device is not None:
                ip.link("del", index=device.index)
    except NetlinkError as error:
        raise HostError(f"unable to remove {PREFIX}{port}: {error_text(error)}") from error


def remove_vxlans(bridge: str) -> list[str]:
    """Remove all such devices of a bridge and transmit devices, so that the kernel forwards nothing more; their names.

    Raises HostError.
    """
    try:
        with IPRoute() as ip:
            master = by_name(ip, bridge)
            found = [link for link in links(ip) if master is not None and is_ours(link, master.index)]
            for link in found:
                ip.link("del", index=link.index)
        return [*(link.name for link in found), *transmit.remove_all()]
    except NetlinkError as error:
        raise HostError(f"unable to remove VXLAN devices of {bridge}: {error_text(error)}") from error
