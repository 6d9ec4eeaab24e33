"""A NetworkPolicy as it is meant: whom it selects, in which directions, and what its rules allow.

What the API server would have defaulted is defaulted here too. A policy that says something without meaning allows
nothing and isolates whom it selects; if not even that can be read, all pods of its namespace. It carries the error.
Source: NPC spec §2, §4.4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_network
from typing import Any, TypeVar

from npc import selector
from npc.errors import PolicyError
from npc.plan import Direction, PortRange, Protocol
from npc.ranges import Network, merged_ports
from npc.selector import EVERYTHING, Selector

ALL_PORTS = (0, 65535)
_SECTIONS = {Direction.INGRESS: ("Ingress", "ingress", "from"), Direction.EGRESS: ("Egress", "egress", "to")}

PolicyKey = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class PodPeer:
    """Pods: of one namespace, or of the namespaces that a selector selects; of those, what `pods` selects."""

    namespace: str | None
    namespaces: Selector | None
    pods: Selector

    def __str__(self) -> str:
        where = f"namespace {self.namespace}" if self.namespaces is None else f"namespaces {self.namespaces}"
        return f"pods {self.pods} of {where}"


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """Addresses of a block that are in none of its exceptions."""

    network: Network
    exceptions: tuple[Network, ...]

    def __str__(self) -> str:
        exceptions = ", ".join(str(each) for each in self.exceptions)
        return f"{self.network} except {exceptions}" if exceptions else str(self.network)


@dataclass(frozen=True, slots=True, order=True)
class NamedPort:
    """A port by the name that the destination pod declares it under."""

    name: str
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.name}/{self.protocol.name}"


Peer = PodPeer | BlockPeer
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """What a rule allows: no peers is everyone, no ports at all is every protocol. `ports` are merged."""

    peers: tuple[Peer, ...]
    ports: tuple[PortRange, ...]
    named: tuple[NamedPort, ...]

    @property
    def portless(self) -> bool:
        """Whether it looks at no port, so that ICMP matches too."""
        return not self.ports and not self.named


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. `rules` has the directions in which it isolates; `error` says why it allows nothing, if it is bad."""

    namespace: str
    name: str
    target: Selector
    rules: Mapping[Direction, tuple[PolicyRule, ...]]
    error: str = ""

    @property
    def key(self) -> PolicyKey:
        """Namespace and name."""
        return self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def refused(self, error: str) -> "Policy":
        """The same policy where its rules cannot be used: it isolates, it allows nothing."""
        return replace(self, rules=dict.fromkeys(self.rules, ()), error=error)


def parse(document: Mapping[str, Any]) -> Policy:
    """The policy of a NetworkPolicy object. Never raises for what is in its spec."""
    metadata = document["metadata"]
    namespace = str(metadata["namespace"])
    spec = document.get("spec") or {}
    errors: list[str] = []
    target = _kept(lambda: selector.parse(spec.get("podSelector") or {}, "spec.podSelector"), EVERYTHING, errors)
    directions = _kept(lambda: _directions(spec), tuple(Direction), errors)
    nothing: tuple[PolicyRule, ...] = ()
    rules = {each: _kept(partial(_section, spec, each, namespace), nothing, errors) for each in directions}
    policy = Policy(namespace, str(metadata["name"]), target, rules)
    return policy.refused(errors[0]) if errors else policy


def _kept(read: Callable[[], T], otherwise: T, errors: list[str]) -> T:
    """What was read, or what closes most where it has no meaning."""
    try:
        return read()
    except PolicyError as error:
        errors.append(str(error))
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        errors.append(f"not as the API describes a NetworkPolicy: {error}")
    return otherwise


def _directions(spec: Mapping[str, Any]) -> tuple[Direction, ...]:
    """What the policy isolates in: what it says, or else ingress, and egress if it has such rules."""
    named = spec.get("policyTypes")
    if not named:
        return tuple(Direction) if spec.get("egress") else (Direction.INGRESS,)
    known = {section[0]: direction for direction, section in _SECTIONS.items()}
    if unknown := [each for each in named if each not in known]:
        raise PolicyError(f"spec.policyTypes: {unknown[0]!r} is none of {', '.join(known)}")
    return tuple(direction for name, direction in known.items() if name in named)


def _section(spec: Mapping[str, Any], direction: Direction, namespace: str) -> tuple[PolicyRule, ...]:
    _, section, peers = _SECTIONS[direction]
    return tuple(
        _rule(rule, peers, namespace, f"spec.{section}[{number}]")
        for number, rule in enumerate(spec.get(section) or ())
    )


def _rule(document: Mapping[str, Any], peers: str, namespace: str, what: str) -> PolicyRule:
    found = tuple(
        _peer(peer, namespace, f"{what}.{peers}[{number}]") for number, peer in enumerate(document.get(peers) or ())
    )
    ports = [_port(port, f"{what}.ports[{number}]") for number, port in enumerate(document.get("ports") or ())]
    return PolicyRule(
        found,
        merged_ports(each for each in ports if isinstance(each, PortRange)),
        tuple(sorted({each for each in ports if isinstance(each, NamedPort)})),
    )


def _peer(document: Mapping[str, Any], namespace: str, what: str) -> Peer:
    """A peer; one with no field that we know is refused, as it may be of a kind that came later."""
    block, pods, namespaces = (document.get(name) for name in ("ipBlock", "podSelector", "namespaceSelector"))
    if block is not None:
        if pods is not None or namespaces is not None:
            raise PolicyError(f"{what}: ipBlock beside a selector")
        return _block(block, f"{what}.ipBlock")
    if pods is None and namespaces is None:
        raise PolicyError(f"{what}: neither ipBlock, podSelector nor namespaceSelector")
    selected = EVERYTHING if pods is None else selector.parse(pods, f"{what}.podSelector")
    if namespaces is None:
        return PodPeer(namespace, None, selected)
    return PodPeer(None, selector.parse(namespaces, f"{what}.namespaceSelector"), selected)


def _block(document: Mapping[str, Any], what: str) -> BlockPeer:
    network = _network(document.get("cidr"), f"{what}.cidr")
    exceptions = tuple(_network(each, f"{what}.except") for each in document.get("except") or ())
    for each in exceptions:
        if each.version != network.version:
            raise PolicyError(f"{what}.except: {each} is of another family than {network}")
    return BlockPeer(network, exceptions)


def _network(text: object, what: str) -> Network:
    """A network; bits behind its prefix are masked off."""
    if not isinstance(text, str):
        raise PolicyError(f"{what}: {text!r} is no network")
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise PolicyError(f"{what}: {text!r} is no network") from error


def _port(document: Mapping[str, Any], what: str) -> PortRange | NamedPort:
    protocol, port, end = (document.get(name) for name in ("protocol", "port", "endPort"))
    try:
        known = Protocol[protocol or "TCP"]
    except KeyError:
        raise PolicyError(f"{what}.protocol: {protocol!r} is none of TCP, UDP, SCTP") from None
    if port is None:
        if end is not None:
            raise PolicyError(f"{what}: endPort {end} without port")
        return PortRange(known, *ALL_PORTS)
    if isinstance(port, str):
        if end is not None:
            raise PolicyError(f"{what}: endPort {end} beside the named port {port}")
        return NamedPort(port, known)
    last = port if end is None else end
    if not (isinstance(port, int) and isinstance(last, int) and 1 <= port <= last <= ALL_PORTS[1]):
        raise PolicyError(f"{what}: {port} to {last} is no range of ports")
    return PortRange(known, port, last)
