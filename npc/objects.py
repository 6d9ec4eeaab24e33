"""Pods, namespaces and nodes of the API: what of them policy needs, and the rest cut off.

`trim` makes of an object of the API one that is small and of the same shape, to be kept in its stead; 10,000 pods are
20 MB otherwise.
Source: NPC spec §2 (Families, Finished pods, Host-network pods, Port), §5.2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from sys import intern
from typing import Any

from npc.plan import Protocol
from npc.policy import NamedPort
from npc.selector import Labels

Document = Mapping[str, Any]
PodKey = tuple[str, str]

_FINISHED = ("Succeeded", "Failed")
_PROTOCOLS = {each.name: each for each in Protocol}
_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "labels")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `addresses` are those of its status, in network order; `created` sorts as text."""

    key: PodKey
    uid: str
    created: str
    labels: Labels
    addresses: tuple[bytes, ...]
    node: str
    host_network: bool
    finished: bool
    ports: tuple[tuple[NamedPort, int], ...]

    @property
    def namespace(self) -> str:
        """Its namespace's name."""
        return self.key[0]

    @property
    def name(self) -> str:
        """Its name in the namespace."""
        return self.key[1]

    def port(self, named: NamedPort) -> int | None:
        """The number that it declares under a name and protocol: the first, should there be several."""
        return next((number for port, number in self.ports if port == named), None)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def pod(document: Document) -> Pod:
    """The pod of a Pod object."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    return Pod(
        key=(intern(metadata["namespace"]), metadata["name"]),
        uid=metadata.get("uid") or "",
        created=metadata.get("creationTimestamp") or "",
        labels=labels(document),
        addresses=tuple(dict.fromkeys(_addresses(status))),
        node=intern(spec.get("nodeName") or ""),
        host_network=bool(spec.get("hostNetwork")),
        finished=status.get("phase") in _FINISHED,
        ports=tuple(_ports(spec)),
    )


def labels(document: Document) -> Labels:
    """The labels of any object."""
    return {intern(key): intern(value) for key, value in (document["metadata"].get("labels") or {}).items()}


def node_addresses(document: Document) -> frozenset[bytes]:
    """The addresses of a Node object; its other names are none."""
    listed = (document.get("status") or {}).get("addresses") or ()
    return frozenset(found for each in listed if (found := packed(each.get("address") or "")) is not None)


def packed(text: str) -> bytes | None:
    """An address in network order, 4 or 16 bytes; None if the text is none."""
    try:
        return ip_address(text).packed
    except ValueError:
        return None


def _addresses(status: Document) -> Iterator[bytes]:
    listed = [each.get("ip") for each in status.get("podIPs") or ()] or [status.get("podIP")]
    for text in listed:
        address = packed(text or "")
        if address is not None:
            yield address


def _ports(spec: Document) -> Iterator[tuple[NamedPort, int]]:
    """Named ports of all containers; those of containers that run to the end first count if no other has the name."""
    seen = set()
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        for port in container.get("ports") or ():
            protocol = _PROTOCOLS.get(port.get("protocol") or "TCP")
            if not port.get("name") or protocol is None:
                continue
            named = NamedPort(intern(port["name"]), protocol)
            if named not in seen:
                seen.add(named)
                yield named, int(port["containerPort"])


# --- trimming ---


def _trim_pod(document: Document) -> dict[str, Any]:
    spec, status = document.get("spec") or {}, document.get("status") or {}
    containers = {
        kind: [
            {"ports": [{"name": port["name"], **_kept(port, "containerPort", "protocol")} for port in named]}
            for container in spec.get(kind) or ()
            if (named := [port for port in container.get("ports") or () if port.get("name")])
        ]
        for kind in ("containers", "initContainers")
    }
    return {
        "metadata": _kept(document["metadata"], *_METADATA),
        "spec": _kept(spec, "nodeName", "hostNetwork") | {kind: kept for kind, kept in containers.items() if kept},
        "status": _kept(status, "phase", "podIP", "podIPs"),
    }


def _trim_namespace(document: Document) -> dict[str, Any]:
    return {"metadata": _kept(document["metadata"], *_METADATA)}


def _trim_policy(document: Document) -> dict[str, Any]:
    return {"metadata": _kept(document["metadata"], *_METADATA), "spec": document.get("spec") or {}}


def _trim_node(document: Document) -> dict[str, Any]:
    metadata = _kept(document["metadata"], *_METADATA)
    return {"metadata": metadata, "status": _kept(document.get("status") or {}, "addresses")}


def _kept(document: Document, *fields: str) -> dict[str, Any]:
    return {field: document[field] for field in fields if document.get(field)}


TRIM: Mapping[str, Callable[[Document], dict[str, Any]]] = {
    "Pod": _trim_pod,
    "Namespace": _trim_namespace,
    "NetworkPolicy": _trim_policy,
    "Node": _trim_node,
}
