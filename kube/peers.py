"""Who else is there: nodes as peers to dial. No input or output here.

A node is dialled at its last IPv4 InternalIP, else at its ExternalIP, else at an IPv6 address, in that order of kinds.
A node that is us, by name or by an address, is not dialled; one that runs Windows has no router.
Source: Kubernetes and CNI spec §4.1; IPv6 is ours.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from kube.resource import Object

CONDITION = "NetworkUnavailable"
_OS = "kubernetes.io/os"
_KINDS = ("InternalIP", "ExternalIP")


def trim_node(node: Object) -> Object:
    """What is needed of a node, in its own shape; a kubelet's heartbeat changes nothing of it."""
    meta, status = node["metadata"], node.get("status") or {}
    os = (meta.get("labels") or {}).get(_OS)
    conditions = [c for c in status.get("conditions") or [] if c.get("type") in (CONDITION, "Ready")]
    return {
        "metadata": {"name": meta["name"], "labels": {_OS: os} if os else {}},
        "status": {
            "addresses": [a for a in status.get("addresses") or [] if a.get("type") in _KINDS],
            "conditions": [{k: c.get(k) for k in ("type", "status", "reason")} for c in conditions],
        },
    }


def name_of(node: Object) -> str:
    return str(node["metadata"]["name"])


def condition_of(node: Object, kind: str) -> Object | None:
    """A condition of a node, if it has it."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == kind), None)


def address_of(node: Object) -> str:
    """Where the node is dialled, IPv6 in brackets; blank: nowhere."""
    address = next((found[-1] for family in (4, 6) for kind in _KINDS if (found := _addresses(node, kind, family))), "")
    return f"[{address}]" if ":" in address else address


def _addresses(node: Object, kind: str, family: int) -> list[str]:
    found = []
    for address in (node.get("status") or {}).get("addresses") or []:
        try:
            if address.get("type") == kind and ip_address(address.get("address", "")).version == family:
                found.append(str(address["address"]))
        except ValueError:
            # A name: not ours to look up.
            continue
    return found


def is_own(node: Object, own_node: str, own_addresses: Collection[str]) -> bool:
    """Whether that node is this one: by its name, or by an address of this host (texts)."""
    if name_of(node) == own_node:
        return True
    return any(
        address in own_addresses for family in (4, 6) for kind in _KINDS for address in _addresses(node, kind, family)
    )


def runs_router(node: Object) -> bool:
    return bool((node["metadata"].get("labels") or {}).get(_OS) != "windows")


def is_heard(node: Object) -> bool:
    """Whether the node's kubelet talks to the cluster. It need not be ready: without a network it is not."""
    ready = condition_of(node, "Ready")
    return ready is None or ready.get("status") != "Unknown"


def peer_addresses(nodes: Iterable[Object], own_node: str, own_addresses: Collection[str]) -> list[str]:
    """Addresses of all other nodes that have one, in the order of the nodes, each once."""
    others = (node for node in nodes if runs_router(node) and not is_own(node, own_node, own_addresses))
    return [address for address in dict.fromkeys(map(address_of, others)) if address]


@dataclass(slots=True)
class Targets:
    """Whom the router was told to dial, and what to tell it next."""

    own_node: str
    own_addresses: Collection[str]
    _told: dict[str, None] = field(default_factory=dict)

    def update(self, nodes: Sequence[Object], *, dropping: bool) -> tuple[list[str], bool] | None:
        """Addresses to dial, and whether only these; None: nothing to say.

        `dropping`: whether this is the time for that. What others gave the router stays until a node goes. A list of
        nodes without our own is not believed enough to drop anybody for.
        """
        wanted = dict.fromkeys(peer_addresses(nodes, self.own_node, self.own_addresses))
        added = [address for address in wanted if address not in self._told]
        gone = any(address not in wanted for address in self._told)
        if gone and dropping and any(is_own(node, self.own_node, self.own_addresses) for node in nodes):
            self._told = wanted
            return list(wanted), True
        if not added:
            return None
        self._told |= wanted
        return added, False
