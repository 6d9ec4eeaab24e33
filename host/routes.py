"""Whether a range of addresses is in use here already: routes of this host that it would overlap.

Source: CLI spec §2 (the range check of `launch`).
"""

from ipaddress import IPv4Interface, IPv4Network

from pyroute2 import IPRoute

from host.links import by_name

_AF_INET = 2
_MAIN_TABLE = 254


def overlap(wanted: IPv4Interface, bridge: str) -> str | None:
    """What is wrong with a network or, if it has host bits, an address; None if nothing is.

    Routes by the bridge are the overlay's own, and the default route says nothing about use.
    """
    for route in _routes(bridge):
        if wanted.ip == wanted.network.network_address:
            if wanted.network.overlaps(route):
                return f"Network {wanted} overlaps with existing route {route} on host"
        elif wanted.ip in route:
            return f"Address {wanted} overlaps with existing route {route} on host"
    return None


def _routes(bridge: str) -> list[IPv4Network]:
    with IPRoute() as ip:
        link = by_name(ip, bridge)
        own = None if link is None else link.index
        return [
            IPv4Network(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
            for route in ip.get_routes(family=_AF_INET, table=_MAIN_TABLE)
            if route.get_attr("RTA_DST") and route.get_attr("RTA_OIF") != own
        ]
