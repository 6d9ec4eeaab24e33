"""CHECK: whether all is as ADD left it. Source: CNI specification 1.1, "CHECK"; Kubernetes and CNI spec §8."""

from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Any

from cni.config import Network
from cni.errors import CniError
from cni.pod import Found
from cni.result import addresses_of
from host.pod_port import FIRST_INTERFACE

_ALL = IPv4Network("0.0.0.0/0")


def check_addresses(container: str, held: set[str], previous: Mapping[str, Any] | None) -> None:
    """The addresses of the result, where the runtime gave it, are still the container's. Raises CniError."""
    if not held:
        raise CniError(f"{container} holds no address")
    for text in addresses_of(previous or {}):
        if text.partition("/")[0] not in held:
            raise CniError(f"address {text} is not held by {container}")


def check_interface(interface: str, network: Network, held: set[str], found: Found | None) -> None:
    """The interface is there, leads to the bridge, and has address and routes. Raises CniError."""
    if found is None:
        raise CniError(f'interface "{interface}" is missing in the container')
    if not found.on_bridge:
        raise CniError(f'interface "{interface}" is not connected to bridge "{network.bridge}"')
    if not found.up:
        raise CniError(f'interface "{interface}" is down')
    there = {text.partition("/")[0] for text in found.addresses}
    wanted = {text.partition("/")[0] for text in addresses_of(network.previous or {})}
    lost = wanted - there if wanted else set() if held & there else held
    if lost:
        raise CniError(f'address {min(lost)} is missing on interface "{interface}"')
    here = {route.destination for route in found.routes}
    for wish in network.routes:
        if wish.destination not in here:
            raise CniError(f'route to {wish.destination} is missing on interface "{interface}"')
    if not network.routes and _gave_default(network.previous) and interface == FIRST_INTERFACE and _ALL not in here:
        raise CniError(f'the default route is missing on interface "{interface}"')


def _gave_default(previous: Mapping[str, Any] | None) -> bool:
    routes = (previous or {}).get("routes")
    return isinstance(routes, list) and any(isinstance(each, dict) and each.get("dst") == str(_ALL) for each in routes)
