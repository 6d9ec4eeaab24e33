"""A made-up cluster for the benchmark of network policy: objects as the API has them, policies of every kind."""

from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

NODE = "node-0"
_APPS = 10
_TIERS = ("ui", "logic", "data")


def namespaces(count: int) -> Iterator[Document]:
    """Namespaces with the label of their name and one of five teams."""
    for number in range(count):
        name = f"ns-{number:03}"
        labels = {"kubernetes.io/metadata.name": name, "team": f"team-{number % 5}"}
        yield {"metadata": {"name": name, "uid": f"namespace-{number}", "labels": labels}}


def pods(count: int, namespaces: int, local: int) -> Iterator[Document]:
    """Pods of both families, evenly over the namespaces; the first `local` of them are on our node."""
    for number in range(count):
        yield pod(number, namespaces, NODE if number < local else f"node-{1 + number % 99}")


def pod(number: int, namespaces: int, node: str, **labels: str) -> Document:
    """One pod, by its number; `labels` go over those it has."""
    app = number // namespaces % _APPS
    namespace = f"ns-{number % namespaces:03}"
    metadata = {
        "name": f"app-{app}-{number:05}",
        "namespace": namespace,
        "uid": f"8b1d2c3e-0000-4000-8000-{number:012}",
        "resourceVersion": str(100_000 + number),
        "creationTimestamp": "2026-11-25T15:00:00Z",
        "labels": {"app": f"app-{app}", "tier": _TIERS[number % 3], "pod-template-hash": f"{app:03}{namespace}"}
        | labels,
    }
    containers = [{"name": "main", "ports": [{"name": "http", "containerPort": 8000 + app, "protocol": "TCP"}]}]
    addresses = (f"10.{32 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", f"fd00:32::{number:x}")
    return {
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": containers},
        "status": {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]},
    }


def policies(count: int, namespaces: int) -> Iterator[Document]:
    """Policies, evenly over the namespaces, each namespace with all kinds of them."""
    for number in range(count):
        yield policy(number, namespaces, number // namespaces)


def policy(number: int, namespaces: int, kind: int) -> Document:
    """One policy, by its number; what it says goes with `kind`."""
    metadata = {"name": f"policy-{number // namespaces}", "namespace": f"ns-{number % namespaces:03}"}
    return {"metadata": metadata, "spec": _spec(kind, number % namespaces)}


def _spec(kind: int, namespace: int) -> Document:
    def app(number: int) -> Document:
        return {"matchLabels": {"app": f"app-{number % _APPS}"}}

    team = {"matchLabels": {"team": f"team-{namespace % 5}"}}
    ports: list[Document] = [{"port": 8000 + kind}, {"port": 9000, "endPort": 9100}, {"protocol": "UDP", "port": 53}]
    specs: list[Document] = [
        {"podSelector": {}, "policyTypes": ["Ingress"]},
        {"podSelector": app(kind), "ingress": [{"from": [{"podSelector": app(kind + 1)}], "ports": ports}]},
        {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": team, "podSelector": app(kind)}]}]},
        {"podSelector": app(0), "ingress": [{"from": [{"namespaceSelector": team}], "ports": [{"port": "http"}]}]},
        {
            "podSelector": {},
            "egress": [
                {
                    "to": [
                        {
                            "ipBlock": {
                                "cidr": "0.0.0.0/0",
                                "except": ["10.0.0.0/8", f"172.{16 + namespace % 16}.0.0/16"],
                            }
                        }
                    ]
                },
                {"to": [{"podSelector": {}}]},
            ],
            "policyTypes": ["Egress"],
        },
        {"podSelector": app(0), "egress": [{"to": [{"podSelector": app(kind)}], "ports": [{"port": "http"}]}]},
    ]
    return specs[kind % len(specs)]
