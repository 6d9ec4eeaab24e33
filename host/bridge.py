"""The bridge `weave` and its TAP port.

Both are made so that a second start finds them right or makes them right. The TAP is not persistent: it goes with
the process that holds it, so a killed router leaves nothing in the way of the next one. MTU 65521 is the most
a TAP takes; Weave Net's own 65535 cannot be had. Source: data plane spec §7; DESIGN of the sleeve core.
"""

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.errors import HostError

MAX_TAP_MTU = 65521
TAP_NAME = "vethwe-sleeve"
_OLD_CAPTURE = ("vethwe-bridge", "vethwe-pcap")
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")
_TX_QUEUE = 1000
_NEIGHBOUR = {"base_reachable_time": "5", "delay_first_probe_time": "2", "ucast_solicit": "1"}
INCONSISTENT = "Inconsistent bridge state detected. Please do 'weave reset' and try again"


def bridge_type(bridge: str, datapath: str = "datapath") -> str:
    """What is there: `none`, `bridge`, `fastdp` or `bridged_fastdp`. Raises HostError on a mixture."""
    with IPRoute() as ip:
        kind = _kind(ip, bridge)
        has_datapath = bool(datapath) and _index(ip, datapath) is not None
    if kind is None and not has_datapath:
        return "none"
    if kind == "bridge":
        return "bridged_fastdp" if has_datapath else "bridge"
    if kind is not None and not has_datapath:
        return "fastdp"
    raise HostError(INCONSISTENT)


def bridge_mac(bridge: str) -> str | None:
    """The MAC of an existing bridge, as text; None if there is none."""
    with IPRoute() as ip:
        index = _index(ip, bridge)
        return None if index is None else str(ip.get_links(index)[0].get_attr("IFLA_ADDRESS"))


def ensure_bridge(name: str, mac: str, mtu: int) -> None:
    """The bridge, up, with this MAC and MTU; whatever was wrong is put right. Raises HostError."""
    if not 576 <= mtu <= MAX_TAP_MTU:
        raise HostError(f"MTU {mtu} is out of range: choose one from 576 to {MAX_TAP_MTU}")
    try:
        with IPRoute() as ip:
            _remove_old_capture(ip)
            index = _index(ip, name)
            if index is None:
                ip.link("add", ifname=name, kind="bridge")
                index = _index(ip, name)
            elif _kind(ip, name) != "bridge":
                raise HostError(f"{name} exists and is no Linux bridge. Please do 'weave reset' and try again")
            ip.link("set", index=index, address=mac)
            # Floods must reach every host, whether or not a group's members were heard of here.
            ip.link("set", index=index, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
            ip.link("set", index=index, mtu=mtu)
            tune_interface(name)
            ip.link("set", index=index, state="up")
    except NetlinkError as error:
        raise HostError(f"unable to make bridge {name}: {error_text(error)}") from error


def _remove_old_capture(ip: IPRoute) -> None:
    """A 2.8 router's capture pair: with it and our port every frame would be seen twice."""
    for name in _OLD_CAPTURE:
        index = _index(ip, name)
        if index is not None:
            ip.link("del", index=index)


def open_tap(bridge: str, mtu: int, name: str = TAP_NAME) -> int:
    """A TAP port on the bridge, up, isolated from other overlay ports; its descriptor. Raises HostError."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"unable to open /dev/net/tun: {error.strerror}; load the tun module") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
        _attach_tap(bridge, mtu, name)
    except (OSError, NetlinkError, HostError) as error:
        os.close(descriptor)
        if isinstance(error, HostError):
            raise
        if isinstance(error, OSError) and error.errno == errno.EBUSY:
            raise HostError(f"{name} is in use: another router runs here") from error
        raise HostError(f"unable to make {name}: {error_text(error)}") from error
    return descriptor


def _attach_tap(bridge: str, mtu: int, name: str) -> None:
    with IPRoute() as ip:
        index, master = _index(ip, name), _index(ip, bridge)
        if master is None:
            raise HostError(f"bridge {bridge} does not exist")
        # The port is a wire: the host itself says nothing on it.
        _write(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1")
        ip.link("set", index=index, mtu=mtu, txqlen=_TX_QUEUE, master=master)
        ip.brport("set", index=index, isolated=1)
        ip.link("set", index=index, state="up")


def tune_interface(name: str) -> None:
    """Neighbours that moved are found quickly; router advertisements are not for us."""
    for family in ("ipv4",):
        for setting, value in _NEIGHBOUR.items():
            _write(f"/proc/sys/net/{family}/neigh/{name}/{setting}", value)
    _write(f"/proc/sys/net/ipv6/conf/{name}/accept_ra", "0")


def bridge_mtu(bridge: str) -> int:
    """The bridge's MTU. Raises HostError if there is no bridge."""
    with IPRoute() as ip:
        index = _index(ip, bridge)
        if index is None:
            raise HostError(f"bridge {bridge} does not exist: is the router running?")
        return int(ip.get_links(index)[0].get_attr("IFLA_MTU"))


def reset(bridge: str) -> list[str]:
    """Remove the bridge and everything of ours on this host; returns what was removed."""
    removed = []
    with IPRoute() as ip:
        for link in ip.get_links():
            name = link.get_attr("IFLA_IFNAME")
            if name == bridge or name.startswith("vethwe"):
                with contextlib.suppress(NetlinkError):
                    ip.link("del", index=link["index"])
                    removed.append(name)
    return removed


def _index(ip: IPRoute, name: str) -> int | None:
    found = ip.link_lookup(ifname=name)
    return int(found[0]) if found else None


def _kind(ip: IPRoute, name: str) -> str | None:
    """What a link is (`bridge`, `openvswitch`, or nothing known as empty); None if there is none."""
    index = _index(ip, name)
    if index is None:
        return None
    info = ip.get_links(index)[0].get_attr("IFLA_LINKINFO")
    return "" if info is None else str(info.get_attr("IFLA_INFO_KIND"))


def _write(path: str, value: str) -> None:
    """Set a sysctl where the kernel has it."""
    with contextlib.suppress(OSError):
        Path(path).write_text(value)


def error_text(error: Exception) -> str:
    """The kernel's word."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return os.strerror(code) if isinstance(code, int) else str(error)
