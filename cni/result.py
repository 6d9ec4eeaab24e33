"""Results and errors as JSON, each in the version of the configuration.

Source: CNI specification 0.1.0 to 1.1.0, "Result"; Kubernetes and CNI spec §1.2, §8.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from cni.errors import CniError
from host.routes import Route

_FIRST_WITH_INTERFACES = (0, 3, 0)
_FIRST_WITHOUT_FAMILY = (1, 0, 0)
_FIRST_WITH_MTU = (1, 1, 0)


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that was made; `sandbox` is its namespace's path, empty for one on the host. `mtu` in octets."""

    name: str
    mac: str
    mtu: int
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a pod got. The address is on the last interface, if any are named."""

    address: IPv4Interface
    gateway: IPv4Address | None
    routes: Sequence[Route]
    dns: Mapping[str, Any]
    interfaces: Sequence[Interface] = field(default=())


def numbers(version: str) -> tuple[int, ...]:
    """A version for comparison."""
    return tuple(map(int, version.split(".")))


def render(version: str, result: Result) -> bytes:
    """The result as the version has it."""
    number = numbers(version)
    routes = [_route(route) for route in result.routes]
    gateway = {} if result.gateway is None else {"gateway": str(result.gateway)}
    document: dict[str, Any] = {"cniVersion": version}
    if number < _FIRST_WITH_INTERFACES:
        document["ip4"] = {"ip": str(result.address), **gateway, **({"routes": routes} if routes else {})}
    else:
        if result.interfaces:
            document["interfaces"] = [_interface(each, number >= _FIRST_WITH_MTU) for each in result.interfaces]
        place = {"interface": len(result.interfaces) - 1} if result.interfaces else {}
        family = {"version": "4"} if number < _FIRST_WITHOUT_FAMILY else {}
        document["ips"] = [{**family, **place, "address": str(result.address), **gateway}]
        if routes:
            document["routes"] = routes
    document["dns"] = dict(result.dns)
    return _json(document)


def render_error(version: str, error: CniError) -> bytes:
    """The error; the version is left out where none is known yet."""
    known = {"cniVersion": version} if version else {}
    details = {"details": error.details} if error.details else {}
    return _json({**known, "code": error.code, "msg": str(error), **details})


def _route(route: Route) -> dict[str, str]:
    gateway = {} if route.gateway is None else {"gw": str(route.gateway)}
    return {"dst": str(route.destination), **gateway}


def _interface(interface: Interface, with_mtu: bool) -> dict[str, Any]:
    sandbox = {"sandbox": interface.sandbox} if interface.sandbox else {}
    mtu = {"mtu": interface.mtu} if with_mtu else {}
    return {"name": interface.name, "mac": interface.mac, **mtu, **sandbox}


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=4) + "\n").encode()


def addresses_of(previous: Mapping[str, Any]) -> list[str]:
    """The addresses, `ip/prefix`, in a result of any version that a runtime gives back."""
    found = []
    for each in previous.get("ips") or ():
        if isinstance(each, dict) and isinstance(each.get("address"), str):
            found.append(each["address"])
    old = previous.get("ip4")
    if isinstance(old, dict) and isinstance(old.get("ip"), str):
        found.append(old["ip"])
    return found
