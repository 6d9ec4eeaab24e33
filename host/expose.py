"""Addresses of this host in the overlay: on the bridge, announced, with rules that let others in and containers out.

Rules come before the address and go after it, so that nothing passes meanwhile that should not. Acts in the namespace
of the calling thread. Source: data plane spec §10, CLI spec §2.
"""

from ipaddress import IPv4Interface

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.addresses import add, announce, keep, remove
from host.bridge import error_text
from host.errors import HostError
from host.links import addresses, by_name
from host.rules import Rules


def expose(rules: Rules, address: IPv4Interface, masquerade: bool) -> None:
    """Give the bridge an address, and its network's traffic with others NAT if wanted. Idempotent. Raises HostError."""
    exposed = {**(rules.plan.exposed or {}), address: masquerade}
    rules.change(exposed=exposed)
    add_address(rules.plan.bridge, address)


def hide(rules: Rules, address: IPv4Interface) -> bool:
    """Take an address of the bridge away, and the rules of its network with its last one; whether it was there."""
    exposed = dict(rules.plan.exposed or {})
    there = remove_address(rules.plan.bridge, address)
    known = exposed.pop(address, None) is not None
    rules.change(exposed=exposed)
    return there or known


def on_bridge(bridge: str) -> tuple[IPv4Interface, ...]:
    """The IPv4 addresses that the bridge has, exposed by whoever ran before us."""
    with IPRoute() as ip:
        link = by_name(ip, bridge)
        found = [] if link is None else addresses(ip, link.index)
    return tuple(IPv4Interface(text) for text in found if ":" not in text)


def add_address(bridge: str, address: IPv4Interface) -> None:
    """Give the bridge an address if it lacks it, and announce it. Raises HostError."""
    try:
        with IPRoute() as ip:
            link = by_name(ip, bridge)
            if link is None:
                raise HostError(f"bridge {bridge} does not exist: is the router running?")
            add(ip, link.index, address)
            announce(bridge, link.mac, address)
    except (NetlinkError, OSError) as error:
        raise HostError(f"unable to expose {address}: {error_text(error)}") from error


def remove_address(bridge: str, address: IPv4Interface) -> bool:
    """Take an address away from the bridge; whether it was there. Raises HostError."""
    try:
        with IPRoute() as ip:
            link = by_name(ip, bridge)
            had = [] if link is None else addresses(ip, link.index)
            if link is None or str(address) not in had:
                return False
            remove(ip, link.index, str(address))
            keep(ip, link.index, [text for text in had if text != str(address)])
            return True
    except NetlinkError as error:
        raise HostError(f"unable to hide {address}: {error_text(error)}") from error
