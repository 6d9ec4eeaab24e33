"""Plain VXLAN devices: what those have in common that send all they are given to one host under one identifier.

No program addresses their frames; they learn nothing and ask nobody. What a device is for stands in its alias.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.bridge import error_text
from host.errors import HostError
from host.links import by_name
from host.sysctl import refuse_advertisements, silence

KIND = "vxlan"
_ANY = "00:00:00:00:00:00"
_DF_SET = 1
_TTL = 64


@dataclass(frozen=True, slots=True)
class Ends:
    """Our address and UDP port, and the identifier of what is taken; the same of the host that frames are sent to."""

    local: str
    listens: int
    takes: int
    remote: str
    port: int
    vni: int


def make(name: str, alias: str, ends: Ends, mtu: int, *, up: bool) -> int:
    """A new device of this name and MTU (octets), in place of any other, on no bridge; its index. Raises HostError."""
    v6 = ":" in ends.remote
    # There are no checksums over IPv4, and no IPv6 without.
    source = {"vxlan_local6" if v6 else "vxlan_local": ends.local, "vxlan_udp_csum": int(v6)}
    try:
        with IPRoute() as ip:
            former = by_name(ip, name)
            if former is not None:
                ip.link("del", index=former.index)
            ip.link(
                "add", ifname=name, kind=KIND, mtu=mtu, vxlan_id=ends.takes, vxlan_port=ends.listens, vxlan_learning=0,
                vxlan_ttl=_TTL, vxlan_df=_DF_SET, **source,
            )  # fmt: skip
            index = int(ip.link_lookup(ifname=name)[0])
            silence(name)
            refuse_advertisements(name)
            ip.fdb("append", ifindex=index, lladdr=_ANY, dst=ends.remote, port=ends.port, vni=ends.vni)
            ip.link("set", index=index, mtu=mtu, ifalias=alias, **({"state": "up"} if up else {}))
            return index
    except NetlinkError as error:
        raise HostError(f"unable to make {name}: {error_text(error)}") from error


def remove(name: str) -> None:
    """Remove a device, if it is there. Raises HostError."""
    change(name, lambda ip, index: ip.link("del", index=index))


def change(name: str, act: Callable[[IPRoute, int], object]) -> None:
    """Do something with a device, if it is there. Raises HostError."""
    try:
        with IPRoute() as ip:
            device = by_name(ip, name)
            if device is not None:
                act(ip, device.index)
    except NetlinkError as error:
        raise HostError(f"unable to change {name}: {error_text(error)}") from error
