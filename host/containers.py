"""Who is on the bridge: this host itself, and each container, found by where its interface leads.

A container is the network namespace at the other end of a port of the bridge. So this needs no list of our own, and
finds what a killed router or Weave Net 2.8 attached. It is known by what its port says, where that is a pod's; else by
the id that a runtime gave it, which the control group of its processes shows; else by the name of its namespace; else
by the namespace's number.
Source: data plane spec §10, CLI spec §4; rtnetlink(7), cgroups(7).
"""

import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import netns
from host.errors import HostError
from host.links import Link, addresses, by_index, by_name, namespace_number, ports
from host.pod_port import pod_port

EXPOSED = "weave:expose"
_NETNS_DIRECTORY = Path("/run/netns")
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/|$)")
_MADE_BY_RUNTIME = re.compile(r"cni-[0-9a-f-]{36}|[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Attached:
    """A container on the bridge, or this host itself (`port` is the bridge then).

    `namespace` is a path that leads there now, `pid` a process in it if one is seen; cidrs are `ip/prefix`. Of a pod
    whose namespace is not seen path and MAC are empty.
    """

    ident: str
    port: str
    namespace: str
    pid: int | None
    interface: str
    mac: str
    cidrs: tuple[str, ...]


@dataclass(slots=True)
class _Place:
    """A network namespace: a path to it, its number, its name if it has one, and the processes in it."""

    path: str
    number: int
    name: str = ""
    pids: list[int] = field(default_factory=list)


def scan(bridge: str, proc: str = "/proc") -> list[Attached]:
    """This host first, if it has the bridge, then the containers by port name. Takes milliseconds per 100 processes.

    `proc` is where the host's processes are seen. Namespaces that are neither named nor hold a process seen there are
    not found.
    """
    with IPRoute() as ip:
        link = by_name(ip, bridge)
        here = [] if link is None else addresses(ip, link.index)
    if link is None:
        return []
    ours = Attached(EXPOSED, bridge, f"{proc}/self/ns/net", None, bridge, link.mac, tuple(here))
    return [ours, *_with_pods(bridge, containers(bridge, proc))]


def _with_pods(bridge: str, found: list[Attached]) -> list[Attached]:
    """Also pods whose namespace cannot be seen from here: their ports say enough."""
    known = {one.port for one in found}
    for port in ports(bridge):
        who = pod_port(port.alias)
        if who is not None and port.name not in known:
            found.append(Attached(who.ident, port.name, "", None, who.interface, "", (who.cidr,)))
    return sorted(found, key=lambda one: one.port)


def containers(bridge: str, proc: str = "/proc") -> list[Attached]:
    """The containers on the bridge, by port name."""
    wanted: dict[int, list[Link]] = {}
    for port in ports(bridge):
        if port.peer_namespace is not None:
            wanted.setdefault(port.peer_namespace, []).append(port)
    found: list[Attached] = []
    for place in _places(proc) if wanted else ():
        # A process that ended meanwhile took its namespace along.
        try:
            found += _look(place, wanted, proc)
        except (HostError, OSError, NetlinkError):
            continue
    return sorted(found, key=lambda one: one.port)


def unseen(bridge: str, found: Iterable[Attached]) -> list[str]:
    """Ports of the bridge that lead to a namespace and to none of these: somebody is there who was not found."""
    known = {one.port for one in found}
    return [port.name for port in ports(bridge) if port.peer_namespace is not None and port.name not in known]


def ident_of(target: str, proc: str = "/proc") -> str:
    """By what a container is known that is given as for `attach`. Raises HostError."""
    return _ident(_place_of(target, proc), proc)


def pids_of(target: str, proc: str = "/proc") -> list[int]:
    """The processes that are seen in a container's network namespace. Raises HostError."""
    return _place_of(target, proc).pids


def _place_of(target: str, proc: str) -> _Place:
    with netns.opened(target) as container:
        number = os.fstat(container.descriptor).st_ino
    return next((one for one in _places(proc) if one.number == number), _Place(target, number))


def _look(place: _Place, wanted: dict[int, list[Link]], proc: str) -> list[Attached]:
    """What of the wanted ports leads to a namespace; those ports are wanted no more."""
    with Path(place.path).open("rb") as namespace:
        with IPRoute() as ip:
            number = namespace_number(ip, namespace.fileno())
        if number is None or number not in wanted:
            return []
        mine = wanted.pop(number)
        ends = netns.inside(namespace.fileno(), lambda: [end for port in mine for end in _ends(port)])
    ident, pid = _ident(place, proc), min(place.pids, default=None)
    found = []
    for port, link, cidrs in ends:
        who = pod_port(port.alias)
        name = ident if who is None else who.ident
        found.append(Attached(name, port.name, place.path, pid, link.name, link.mac, tuple(cidrs)))
    return found


def _ends(port: Link) -> Iterator[tuple[Link, Link, list[str]]]:
    """In the container: what the port leads to."""
    with IPRoute() as ip:
        link = by_index(ip, port.peer) if port.peer is not None else None
        if link is not None:
            yield port, link, addresses(ip, link.index)


def _ident(place: _Place, proc: str) -> str:
    for pid in sorted(place.pids):
        try:
            found = _CONTAINER.search(Path(proc, str(pid), "cgroup").read_text())
        except OSError:
            continue
        if found:
            return found[1]
    # Names that runtimes make up say less than the number, and change as it does.
    named = place.name and not _MADE_BY_RUNTIME.fullmatch(place.name)
    return place.name if named else f"netns:{place.number}"


def _places(proc: str) -> list[_Place]:
    """Every network namespace but our own: the named ones first."""
    own = _number(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    found: dict[int, _Place] = {}
    for named in sorted(_NETNS_DIRECTORY.iterdir()) if _NETNS_DIRECTORY.is_dir() else []:
        number = _number(str(named))
        if number is not None and number != own:
            found.setdefault(number, _Place(str(named), number, named.name))
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        path = f"{proc}/{pid}/ns/net"
        number = _number(path)
        if number is not None and number != own:
            found.setdefault(number, _Place(path, number)).pids.append(pid)
    return list(found.values())


def _number(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None
