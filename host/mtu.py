"""MTUs that follow: interfaces of containers that were attached under a larger one, and what the underlay takes.

A bridge drops without a word what is too long for the port that it leaves by; a container that keeps the MTU of an
earlier run of the router would hang as soon as it sends much. Source: data plane spec §7.
"""

import contextlib
from functools import partial

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import netns
from host.containers import containers
from host.errors import HostError
from host.links import ports

_AF_INET = 2
_MAIN_TABLE = 254


def fit_containers(bridge: str, mtu: int, proc: str = "/proc") -> list[str]:
    """Lower the MTU (octets) of all containers on the bridge that have a larger one; by what they are known."""
    changed = []
    large = [port for port in ports(bridge) if port.peer_namespace is not None and port.mtu > mtu]
    for container in containers(bridge, proc) if large else ():
        # A container that ends meanwhile needs nothing more.
        with contextlib.suppress(HostError, NetlinkError, OSError):
            if netns.inside(container.namespace, partial(_lower, container.interface, mtu)):
                changed.append(container.ident)
    with IPRoute() as ip:
        for port in large:
            with contextlib.suppress(NetlinkError):
                ip.link("set", index=port.index, mtu=mtu)
    return changed


def _lower(interface: str, mtu: int) -> bool:
    """In the container."""
    with IPRoute() as ip:
        index = int(ip.link_lookup(ifname=interface)[0])
        if int(ip.get_links(index)[0].get_attr("IFLA_MTU")) <= mtu:
            return False
        ip.link("set", index=index, mtu=mtu)
        return True


def underlay_mtu() -> int | None:
    """The MTU of the interface that this host's default route leads by; None where there is no such route."""
    with IPRoute() as ip:
        for route in ip.get_routes(family=_AF_INET, table=_MAIN_TABLE):
            index = route.get_attr("RTA_OIF")
            if route["dst_len"] == 0 and index is not None:
                return int(ip.get_links(index)[0].get_attr("IFLA_MTU"))
    return None
