"""Transmit devices: plain VXLAN devices by which the kernel's data path sends to one next hop each.

Such a device is no port of the bridge; it is given frames by a program, and sends them to one host's UDP port under one
network identifier. A VXLAN device also listens, here on a port of its own, where nothing is expected: whoever made it
puts a program before it that refuses everything, and only then sets it up. What a device is for stands in its alias.
It stays when the router ends. Source: data plane spec §14.1.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import plain_vxlan
from host.bridge import error_text
from host.errors import HostError
from host.links import links

# A prefix that Weave Net's own reset removes as well.
PREFIX = "vethwe-w"
_LABEL = "weave"


@dataclass(frozen=True, slots=True)
class Found:
    """A device that is there: the number in its name, its interface's index, its UDP port, what it is for.

    Without that it is not complete.
    """

    number: int
    index: int
    listens: int
    label: str


@dataclass(frozen=True, slots=True)
class Aim:
    """Where a device sends: from which address of ours, to which host and UDP port, under which identifier."""

    local: str
    remote: str
    port: int
    vni: int


def devices() -> Sequence[Found]:
    """All that are there. Raises HostError."""
    try:
        with IPRoute() as ip:
            return [
                _found(int(number), link.index, link.alias)
                for link in links(ip)
                if (link.kind, link.name[: len(PREFIX)]) == (plain_vxlan.KIND, PREFIX)
                and (number := link.name.removeprefix(PREFIX)).isdecimal()
            ]
    except NetlinkError as error:
        raise HostError(f"unable to list transmit devices: {error_text(error)}") from error


def _found(number: int, index: int, alias: str) -> Found:
    mark, _, rest = alias.partition(" ")
    port, _, label = rest.partition(" ")
    whole = mark == _LABEL and port.isdecimal()
    return Found(number, index, int(port) if whole else 0, label if whole else "")


def make(number: int, label: str, aim: Aim, listens: int, mtu: int) -> int:
    """A new device of this number, down, in place of any other; its index. Raises HostError."""
    # What it would receive by has no meaning; on one port no two may have the same.
    ends = plain_vxlan.Ends(aim.local, listens, number + 1, aim.remote, aim.port, aim.vni)
    return plain_vxlan.make(f"{PREFIX}{number}", f"{_LABEL} {listens} {label}", ends, mtu, up=False)


def free_port() -> int:
    """A UDP port that nobody has now. Raises HostError."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 0))
            return int(sock.getsockname()[1])
    except OSError as error:
        raise HostError(f"no free UDP port: {error.strerror}") from error


def remove(number: int) -> None:
    """Remove a device, if it is there. Raises HostError."""
    plain_vxlan.remove(f"{PREFIX}{number}")


def remove_all() -> list[str]:
    """Remove all of them; their names. Raises HostError."""
    found = devices()
    for device in found:
        remove(device.number)
    return [f"{PREFIX}{device.number}" for device in found]
