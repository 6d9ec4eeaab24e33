"""The smallest change of a policy that allows what it denies: what `explain --why-not` proposes.

Where a rule lacks nothing but the port, the port is added to it; else a rule of its own, for this port and for pods
that are labelled as this peer is, or for its address, if it is no pod or nobody knows its namespace.
Source: NPC spec §7.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from npc.model import Model
from npc.objects import Pod
from npc.plan import Direction, Protocol
from npc.policy import Policy
from npc.reasons import why_not
from npc.verdict import Connection, Side

# Labels that change with each roll-out, or name one pod of many.
_PASSING = ("pod-template-hash", "controller-revision-hash", "pod-template-generation", "apps.kubernetes.io/pod-index")
_SECTIONS = {Direction.INGRESS: ("ingress", "from"), Direction.EGRESS: ("egress", "to")}
_METADATA_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to add to a policy: `addition` to the ports of `rule`, or as a new rule where that is None."""

    policy: str
    section: str
    rule: int | None
    addition: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """For programs."""
        where = self.section if self.rule is None else f"{self.section}[{self.rule}].ports"
        return {"policy": self.policy, "add to": f"spec.{where}", "value": self.addition}


def propose(model: Model, side: Side, connection: Connection) -> Proposal | None:
    """What would make a side that denies allow; None if it allows, or all its policies are bad."""
    usable = [each for each in side.policies if not each.error]
    if side.allowed or not usable:
        return None
    section, peers = _SECTIONS[side.direction]
    port = _port(connection)
    for policy in usable if port else ():
        number = _lacking_port(model, policy, side.direction, connection)
        if number is not None:
            return Proposal(str(policy), section, number, port)
    address = connection.source if side.direction is Direction.INGRESS else connection.destination
    rule: dict[str, Any] = {peers: [_peer(model, usable[0], address)]}
    if port:
        rule["ports"] = [port]
    return Proposal(str(usable[0]), section, None, rule)


def _lacking_port(model: Model, policy: Policy, direction: Direction, connection: Connection) -> int | None:
    """A rule of the policy whose peers match; the port is what it lacks, as it does not match."""
    for number, rule in enumerate(policy.rules[direction]):
        peers, _ = why_not(model, rule, direction, connection)
        if rule.peers and not peers:
            return number
    return None


def _port(connection: Connection) -> dict[str, Any]:
    """The port as a policy says it; empty for protocols that policies do not name."""
    if connection.protocol not in list(Protocol):
        return {}
    return {"protocol": Protocol(connection.protocol).name, "port": connection.port}


def _peer(model: Model, policy: Policy, address: bytes) -> dict[str, Any]:
    pod = model.owner(address)
    labels = {} if pod is None else model.namespaces.get(pod.namespace, {})
    if pod is None or (pod.namespace != policy.namespace and not labels):
        ip = ip_address(address)
        return {"ipBlock": {"cidr": f"{ip}/{ip.max_prefixlen}"}}
    peer: dict[str, Any] = {"podSelector": {"matchLabels": _lasting(pod)}}
    if pod.namespace != policy.namespace:
        named = {_METADATA_NAME: pod.namespace} if _METADATA_NAME in labels else dict(labels)
        peer["namespaceSelector"] = {"matchLabels": named}
    return peer


def _lasting(pod: Pod) -> dict[str, str]:
    return {key: value for key, value in pod.labels.items() if key not in _PASSING}
