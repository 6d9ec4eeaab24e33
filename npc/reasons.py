"""Why a rule of a policy does not match a connection, in words: each of its peers, or its ports.

Source: NPC spec §7.
"""

from collections.abc import Iterator
from ipaddress import ip_address

from npc.model import Model
from npc.objects import Pod
from npc.plan import Direction, PortRange
from npc.policy import ALL_PORTS, BlockPeer, NamedPort, Peer, PodPeer, PolicyRule
from npc.question import protocol_name
from npc.selector import Labels, Requirement, Selector
from npc.verdict import Connection, peer_matches, port_matches


def why_not(
    model: Model, rule: PolicyRule, direction: Direction, connection: Connection
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What keeps a rule from matching: of its peers, and of its ports; both empty if it does match."""
    address = connection.source if direction is Direction.INGRESS else connection.destination
    other = model.owner(address)
    peers: tuple[str, ...] = ()
    if rule.peers and not any(peer_matches(model, each, address, other) for each in rule.peers):
        peers = tuple(f"peer: {_peer(model, each, address, other)}" for each in rule.peers)
    return peers, tuple(_ports(model, rule, connection))


def _peer(model: Model, peer: Peer, address: bytes, pod: Pod | None) -> str:
    ip = ip_address(address)
    if isinstance(peer, BlockPeer):
        if ip not in peer.network:
            return f"{ip} is not in {peer.network}"
        return f"{ip} is in the exception {next(each for each in peer.exceptions if ip in each)} of {peer.network}"
    if pod is None:
        return f"{ip} is no pod, {peer} wanted"
    return _namespace(model, peer, pod) or _labels(peer.pods, pod.labels, "label", "pod")


def _namespace(model: Model, peer: PodPeer, pod: Pod) -> str:
    """What is wrong with the pod's namespace, if anything is."""
    if model.in_namespaces(peer, pod.namespace):
        return ""
    if peer.namespaces is None:
        return f"namespace {peer.namespace} wanted, pod is in {pod.namespace}"
    labels = model.namespaces.get(pod.namespace)
    if labels is None:
        return f"namespace {pod.namespace} is not known"
    return _labels(peer.namespaces, labels, "namespace label", f"namespace {pod.namespace}")


def _labels(selector: Selector, labels: Labels, what: str, whose: str) -> str:
    missing = selector.mismatch(labels)
    assert missing is not None
    return f"{what} {missing} wanted, {whose} {_has(missing, labels)}"


def _has(missing: Requirement, labels: Labels) -> str:
    value = labels.get(missing.key)
    return f"has no {missing.key}" if value is None else f"has {missing.key}={value}"


def _ports(model: Model, rule: PolicyRule, connection: Connection) -> Iterator[str]:
    destination = model.owner(connection.destination)
    listed: tuple[PortRange | NamedPort, ...] = (*rule.ports, *rule.named)
    if rule.portless or any(port_matches(each, connection, destination) for each in listed):
        return
    what = protocol_name(connection.protocol, connection.port)
    if rule.ports:
        yield f"port: {what} not in {', '.join(port_text(each) for each in rule.ports)}"
    for named in rule.named:
        yield _named(named, what, destination)


def _named(named: NamedPort, what: str, destination: Pod | None) -> str:
    if destination is None:
        return f"named port {named}: the destination is no pod, so it names none"
    number = destination.port(named)
    if number is None:
        return f"named port {named} is not declared by {destination}"
    return f"named port {named.name} is {number}/{named.protocol.name} on {destination}, not {what}"


def port_text(port: PortRange | NamedPort) -> str:
    """An entry of a rule's ports as people write it."""
    if isinstance(port, NamedPort):
        return str(port)
    if (port.first, port.last) == ALL_PORTS:
        return f"any {port.protocol.name}"
    numbers = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
    return f"{numbers}/{port.protocol.name}"
