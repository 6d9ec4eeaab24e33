"""Names for the pods of this node: POD.NAMESPACE below the domain, for as long as a pod runs and has an address.

What is wanted follows from the pods that are seen; what is registered is ours to change and nobody else's.
Source: CLI spec §3 (`--kube-dns-names`), DNS spec §6.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from dns.service import NameService
from kube.client import Client
from kube.config import Config
from kube.resource import PODS
from kube.watch import Applied, Deleted, watch

_OVER = ("Succeeded", "Failed")
# Not one of those that outlive whoever holds them: a pod that ended while nobody looked is found by its address.
_HOLDER = "pod:"


class Named(NamedTuple):
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


async def follow_pods(config: Config, node: str, service: NameService, universe: str, log: logging.Logger) -> None:
    """Keep the names of a node's pods registered, until cancelled."""
    names = PodNames(IPv4Network(universe), service.domain)
    query = {"fieldSelector": f"spec.nodeName={node}"}
    async with Client(config) as client, contextlib.aclosing(watch(client, PODS, trim, query=query)) as events:
        async for event in events:
            changes = []
            match event:
                case Applied(pod):
                    changes = list(names.applied(pod))
                case Deleted(pod):
                    changes = list(names.deleted(pod))
            for registers, named in changes:
                _follow(service, registers, named, log)


def _follow(service: NameService, registers: bool, named: Named, log: logging.Logger) -> None:
    try:
        if registers:
            service.add(*named)
        else:
            service.delete(hostname=named.hostname, container=named.holder, address=named.address)
    except ValueError as error:
        # A pod's name may be longer than a label of DNS.
        log.info("no name for a pod: %s", error)
