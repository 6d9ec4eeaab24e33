"""What somebody asks about: two ends and a port as people name them, as connections that can be judged.

    shop/front  shop/db  5432          a pod by namespace and name, an address, node:NAME; a number or the port's name
    shop/front  10.32.1.3  53/udp      tcp where no protocol is named; icmp has no port: 0/icmp

Source: NPC spec §7.
"""

from dataclasses import dataclass
from ipaddress import ip_address

from npc.model import Model
from npc.objects import Pod, packed
from npc.plan import Protocol
from npc.policy import ALL_PORTS, NamedPort
from npc.verdict import ICMP, ICMP6, Connection


class UnknownError(Exception):
    """What is asked about is not known, or is no question; the text says which word."""


@dataclass(frozen=True, slots=True)
class End:
    """One end as it was named, with an address, and the pod or the node that has it."""

    named: str
    address: bytes
    pod: Pod | None
    node: str

    def __str__(self) -> str:
        address = str(ip_address(self.address))
        if self.pod is not None:
            return f"{self.pod} ({address})"
        return f"node {self.node} ({address})" if self.node else address


@dataclass(frozen=True, slots=True)
class Question:
    """One connection that is asked about; notes say what is particular about its ends."""

    source: End
    destination: End
    connection: Connection
    notes: tuple[str, ...]

    @property
    def what(self) -> str:
        """Protocol and port in words."""
        return protocol_name(self.connection.protocol, self.connection.port)


def protocol_name(protocol: int, port: int) -> str:
    """A port as people write it."""
    return "ICMP" if protocol in (ICMP, ICMP6) else f"{port}/{Protocol(protocol).name}"


def questions(model: Model, source: str, destination: str, port: str) -> tuple[Question, ...]:
    """The connections meant, one for each family that both ends have. Raises UnknownError."""
    sources, source_notes = _ends(model, source)
    destinations, destination_notes = _ends(model, destination)
    sizes = [size for size in (4, 16) if size in sources and size in destinations]
    if not sizes:
        raise UnknownError(f"{source} and {destination} have no address of one family")
    return tuple(
        Question(
            sources[size],
            destinations[size],
            _connection(sources[size], destinations[size], port),
            (*source_notes, *destination_notes),
        )
        for size in sizes
    )


def _ends(model: Model, named: str) -> tuple[dict[int, End], tuple[str, ...]]:
    """An end by the length of its address, and what is particular about it."""
    found, notes = _addresses(model, named)
    ends: dict[int, End] = {}
    for address in found:
        owner = model.owner(address)
        node = "" if owner is not None else model.node_of(address)
        ends.setdefault(len(address), End(named, address, owner, node))
    return ends, tuple(notes)


def _addresses(model: Model, named: str) -> tuple[list[bytes], list[str]]:
    if named.startswith("node:"):
        node = named.removeprefix("node:")
        if not model.nodes.get(node):
            raise UnknownError(f"no node {node} with an address is known")
        return sorted(model.nodes[node]), []
    address = packed(named)
    if address is not None:
        return [address], []
    namespace, slash, name = named.partition("/")
    if not slash:
        raise UnknownError(f"{named!r} is neither NAMESPACE/POD, an address, nor node:NAME")
    pod = model.pods.get((namespace, name))
    if pod is None:
        raise UnknownError(f"no pod {named} is known")
    return _pod_addresses(model, pod)


def _pod_addresses(model: Model, pod: Pod) -> tuple[list[bytes], list[str]]:
    found, notes = list(model.addresses(pod.key)), []
    if pod.host_network:
        notes.append(f"{pod} is on the network of its node {pod.node}, and judged as the node")
    elif pod.finished:
        notes.append(f"{pod} has finished: no policy knows it any more")
    elif not found and pod.addresses:
        notes.append(f"{pod} has lost its address to another pod")
    found = found or list(pod.addresses)
    if not found:
        raise UnknownError(f"pod {pod} has no address yet")
    return found, notes


def _connection(source: End, destination: End, port: str) -> Connection:
    wanted, _, protocol = port.partition("/")
    if protocol.lower() in ("icmp", "icmpv6"):
        number = ICMP if len(destination.address) == 4 else ICMP6
        return Connection(source.address, destination.address, number)
    try:
        known = Protocol[protocol.upper() or "TCP"]
    except KeyError:
        raise UnknownError(f"{protocol!r} is none of tcp, udp, sctp, icmp") from None
    return Connection(source.address, destination.address, known, _port(destination, wanted, known))


def _port(destination: End, wanted: str, protocol: Protocol) -> int:
    if wanted.isdecimal():
        if not 1 <= int(wanted) <= ALL_PORTS[1]:
            raise UnknownError(f"{wanted} is no port")
        return int(wanted)
    if destination.pod is None:
        raise UnknownError(f"{destination.named} is no pod, so it has no port called {wanted!r}")
    number = destination.pod.port(NamedPort(wanted, protocol))
    if number is None:
        declared = ", ".join(str(named) for named, _ in destination.pod.ports) or "none"
        raise UnknownError(f"{destination.pod} declares no port {wanted}/{protocol.name}; it declares {declared}")
    return number
