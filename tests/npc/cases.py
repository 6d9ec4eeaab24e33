"""The table of cases, and how its objects are said as the API says them.

Format: NPC spec §9. A case starts from a fixture; each step applies and deletes objects, then probes.
"""

import json
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count
from typing import Any

from npc.model import Model
from npc.plan import Protocol
from npc.verdict import ICMP, ICMP6, Connection
from tests.vectors import ROOT

Document = dict[str, Any]

_TABLE = json.loads((ROOT / "npc" / "cases.json").read_text())
FIXTURES: dict[str, Document] = _TABLE["fixtures"]
CASES: list[Document] = _TABLE["cases"]
# Where the server of most cases listens, the pod shop/db.
PORT = 5432


class Cluster:
    """A case's cluster: feeds a model as an API server would."""

    def __init__(self, case: Document, model: Model) -> None:
        self.model = model
        self._created = count()
        fixture = _TABLE["fixtures"][case["fixture"]]
        self._nodes = {name: node["ips"] for name, node in fixture["nodes"].items()}
        for name, addresses in self._nodes.items():
            listed = [{"type": "InternalIP", "address": address} for address in addresses]
            model.apply("Node", {"metadata": {"name": name}, "status": {"addresses": listed}})
        self._pods: dict[str, list[str]] = {}
        for name, namespace in {**fixture["namespaces"], **case.get("extra_namespaces", {})}.items():
            self.apply("Namespace", {"name": name, "labels": namespace["labels"]})
        for pod in (*fixture["pods"], *case.get("extra_pods", ())):
            self.apply("Pod", pod)
        for policy in case["policies"]:
            self.apply("NetworkPolicy", policy)

    def steps(self, case: Document) -> Iterator[list[Document]]:
        """The probes of the start and then of each step, once its changes are made."""
        yield case["probes"]
        for step in case.get("steps", ()):
            for change in step["ops"]:
                if change["op"] == "apply":
                    self.apply(change["kind"], change["object"])
                else:
                    self.delete(change["kind"], change.get("namespace", ""), change["name"])
            yield step["probes"]

    def apply(self, kind: str, document: Document) -> None:
        """An object in the table's form."""
        if kind == "Pod":
            self._pods[f"{document['namespace']}/{document['name']}"] = document["ips"]
            document = api_pod(document, f"{next(self._created):010}")
        elif kind == "Namespace":
            document = {"metadata": document}
        self.model.apply(kind, document)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """An object is gone; with a namespace goes what is in it, as the API server has it."""
        if kind == "Namespace":
            for pod in list(self.model.pods_in.get(name, ())):
                self.model.delete("Pod", pod[1], name)
            for policy in [each for each in self.model.policies if each[0] == name]:
                self.model.delete("NetworkPolicy", policy[1], name)
        self.model.delete(kind, name, namespace)

    def connection(self, probe: Document) -> Connection:
        """What a probe sends first."""
        protocol = probe["protocol"]
        family = probe["family"]
        number = {"ICMP": ICMP if family == 4 else ICMP6}.get(protocol) or Protocol[protocol]
        return Connection(
            self.address(probe["src"], family), self.address(probe["dst"], family), number, probe.get("port") or 0
        )

    def address(self, name: str, family: int) -> bytes:
        """The address of `ns/pod`, `node:NAME` or `ext:ADDRESS`, in network order."""
        if name.startswith("ext:"):
            return ip_address(name.removeprefix("ext:")).packed
        listed = self._nodes[name.removeprefix("node:")] if name.startswith("node:") else self._pods[name]
        return next(ip.packed for ip in map(ip_address, listed) if ip.version == family)


def api_pod(document: Document, created: str) -> Document:
    """A Pod object of a pod in the table's form."""
    name = document["name"]
    return {
        "metadata": {
            "namespace": document["namespace"],
            "name": name,
            "uid": f"uid of {name}",
            "creationTimestamp": created,
            "labels": document["labels"],
        },
        "spec": {
            "nodeName": document["node"],
            "hostNetwork": document["hostNetwork"],
            "containers": [{"ports": document["ports"]}],
        },
        "status": {"phase": document["phase"], "podIPs": [{"ip": address} for address in document["ips"]]},
    }


def policy(name: str, peers: Document, target: Document | None = None) -> Document:
    """A NetworkPolicy object: peers of the same namespace reach the server's port."""
    ports = [{"protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")]
    rule = {"from": [{"podSelector": peers}], "ports": ports}
    spec = {"podSelector": target or {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [rule]}
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": spec}
