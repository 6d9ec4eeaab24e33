"""The bridge `weave`.

It is made so that a second start finds it right or makes it right. MTU 65521 is the most a TAP port takes, so Weave
Net's own 65535 cannot be had. The MTU is always set by us and not derived from the ports, else one container with a
small MTU would shrink the bridge for all. Source: data plane spec §7, CLI spec §11.
"""

import os
from enum import Enum

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.errors import HostError
from host.links import by_name, links
from host.sysctl import tune_neighbours

MAX_TAP_MTU = 65521
MIN_MTU = 576
DATAPATH = "datapath"
# What 2.8 put on the bridge, or beside it, to carry frames: one end of its pair, and what it raises the MTU with.
_OLD_PAIR, _OLD_SPACER = "vethwe-bridge", "vethwedu"
_JOINT = ("vethwebl", "vethwebg")
_NAME_SIZE = 15


class BridgeType(Enum):
    """What a host has, in Weave Net's words."""

    NONE = "none"
    BRIDGE = "bridge"
    FASTDP = "fastdp"
    BRIDGED_FASTDP = "bridged_fastdp"


def classify(bridge_kind: str | None, datapath_kind: str | None) -> BridgeType:
    """The type by the kinds of the two devices, None for one that is not there. Raises HostError on a mixture."""
    match bridge_kind, datapath_kind:
        case None, None:
            return BridgeType.NONE
        case "bridge", None:
            return BridgeType.BRIDGE
        case "openvswitch", None:
            return BridgeType.FASTDP
        case "bridge", "openvswitch":
            return BridgeType.BRIDGED_FASTDP
    raise HostError("Inconsistent bridge state detected. Please do 'weave reset' and try again")


def bridge_type(bridge: str, datapath: str = DATAPATH) -> BridgeType:
    """What is there. Raises HostError on a mixture."""
    with IPRoute() as ip:
        found = [by_name(ip, name) for name in (bridge, datapath)]
    return classify(*(None if link is None else link.kind for link in found))


def bridge_mac(bridge: str) -> str | None:
    """The MAC of an existing bridge, as text; None if there is none."""
    with IPRoute() as ip:
        link = by_name(ip, bridge)
        return None if link is None else link.mac


def ensure_bridge(name: str, mac: str, mtu: int) -> None:
    """The bridge, up, with this MAC and MTU (octets); whatever was wrong is put right. Raises HostError."""
    if not MIN_MTU <= mtu <= MAX_TAP_MTU:
        raise HostError(f"MTU {mtu} is out of range: choose one from {MIN_MTU} to {MAX_TAP_MTU}")
    if bridge_type(name) is BridgeType.FASTDP:
        raise HostError(
            'Existing bridge type "fastdp" is different than requested "bridge". '
            "Please do 'weave reset' and try again"
        )
    try:
        with IPRoute() as ip:
            _unplug_old(ip)
            if by_name(ip, name) is None:
                ip.link("add", ifname=name, kind="bridge")
            index = ip.link_lookup(ifname=name)[0]
            ip.link("set", index=index, address=mac)
            # While the spanning tree is on, no delay of 0 is taken.
            ip.link("set", index=index, kind="bridge", br_stp_state=0)
            # Floods must reach every host, whether or not a group's members were heard of here.
            ip.link("set", index=index, kind="bridge", br_forward_delay=0, br_mcast_snooping=0)
            _fix_mtu(ip, index, mtu)
            tune_neighbours(name)
            ip.link("set", index=index, state="up")
    except NetlinkError as error:
        raise HostError(f"unable to make bridge {name}: {error_text(error)}") from error


def _fix_mtu(ip: IPRoute, index: int, mtu: int) -> None:
    """Only a change tells the kernel that this MTU is wanted and not derived, so make one even if it is right."""
    if int(ip.get_links(index)[0].get_attr("IFLA_MTU")) == mtu:
        ip.link("set", index=index, mtu=mtu - 1)
    ip.link("set", index=index, mtu=mtu)


def _unplug_old(ip: IPRoute) -> None:
    """A 2.8 router's pair to its capture or its datapath: with it and our port every frame would be seen twice.

    The datapath stays, empty: without it 2.8 would refuse the bridge, should it come back. Its VXLAN ports hold the
    UDP ports that we need.
    """
    datapath = by_name(ip, DATAPATH)
    for link in links(ip):
        vxlan = link.kind == "vxlan" and datapath is not None and link.master == datapath.index
        if vxlan or link.name in (_OLD_PAIR, _OLD_SPACER):
            ip.link("del", index=link.index)


def bridge_mtu(bridge: str) -> int:
    """The bridge's MTU. Raises HostError if there is no bridge."""
    with IPRoute() as ip:
        link = by_name(ip, bridge)
    if link is None:
        raise HostError(f"bridge {bridge} does not exist: is the router running?")
    return link.mtu


def pin_mac(bridge: str) -> None:
    """Keep a bridge's MAC as it is now; else it follows its ports and is lost to who learned it. Raises HostError."""
    try:
        with IPRoute() as ip:
            link = by_name(ip, bridge)
            if link is not None and link.kind == "bridge":
                ip.link("set", index=link.index, address=link.mac)
    except NetlinkError as error:
        raise HostError(f"unable to keep the MAC of {bridge}: {error_text(error)}") from error


def join_bridges(bridge: str, other: str) -> None:
    """Another bridge's containers on the same layer 2, by a pair of veths. Idempotent. Raises HostError."""
    ours, theirs = (f"{prefix}{other}"[:_NAME_SIZE] for prefix in _JOINT)
    try:
        with IPRoute() as ip:
            mine, foreign = by_name(ip, bridge), by_name(ip, other)
            for name, link in ((bridge, mine), (other, foreign)):
                if link is None or link.kind != "bridge":
                    raise HostError(f"{name} is no bridge of this host")
            assert mine is not None and foreign is not None, "looked at above"
            if by_name(ip, ours) is None:
                mtu = min(mine.mtu, foreign.mtu)
                ip.link("add", ifname=ours, kind="veth", mtu=mtu, peer={"ifname": theirs, "mtu": mtu})
            for name, master in ((ours, mine), (theirs, foreign)):
                index = ip.link_lookup(ifname=name)[0]
                ip.link("set", index=index, master=master.index, state="up")
            # A smaller port must not shrink ours.
            ip.link("set", index=mine.index, mtu=mine.mtu)
    except NetlinkError as error:
        raise HostError(f"unable to join {bridge} and {other}: {error_text(error)}") from error


def error_text(error: Exception) -> str:
    """The kernel's word."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return os.strerror(code) if isinstance(code, int) else str(error)
