"""Names for the pods of this node: POD.NAMESPACE below the domain, for as long as a pod runs and has an address.

What is wanted follows from the pods that are seen; what is registered is ours to change and nobody else's. A core: it
says what to register and what to remove. Source: CLI spec §3 (`--kube-dns-names`), DNS spec §6.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

_OVER = ("Succeeded", "Failed")
# Not one of those that outlive whoever holds them: a pod that ended while nobody looked is found by its address.
_HOLDER = "pod:"


@dataclass(frozen=True, slots=True)
class Named:
    """A name, its holder's identifier, its address."""

    hostname: str
    holder: str
    address: str


def trim(pod: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of a pod matters; None where it has no address of its own."""
    meta, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    if spec.get("hostNetwork") or not status.get("podIP") or status.get("phase") in _OVER:
        return None
    kept = {key: meta[key] for key in ("name", "namespace", "uid") if key in meta}
    return {"metadata": kept, "status": {"podIP": status["podIP"]}}


@dataclass(slots=True)
class PodNames:
    """What is registered. `universe`: addresses of the overlay, others get no name; `domain` ends in a dot."""

    universe: IPv4Network
    domain: str
    _registered: dict[tuple[str, str], Named] = field(default_factory=dict)

    def applied(self, pod: Mapping[str, Any]) -> Iterator[tuple[bool, Named]]:
        """A trimmed pod is new or changed: what to remove (False) and to register (True)."""
        wanted = self._named(pod)
        before = self._registered.get(_key(pod))
        if wanted == before:
            return
        yield from self.deleted(pod)
        if wanted is not None:
            self._registered[_key(pod)] = wanted
            yield True, wanted

    def deleted(self, pod: Mapping[str, Any]) -> Iterator[tuple[bool, Named]]:
        """A pod is gone, or no longer of interest."""
        before = self._registered.pop(_key(pod), None)
        if before is not None:
            yield False, before

    def _named(self, pod: Mapping[str, Any]) -> Named | None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        address = pod["status"]["podIP"]
        if ":" in address or IPv4Address(address) not in self.universe:
            return None
        return Named(f"{name}.{namespace}.{self.domain}", f"{_HOLDER}{pod['metadata'].get('uid', name)}", address)


def _key(pod: Mapping[str, Any]) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]
