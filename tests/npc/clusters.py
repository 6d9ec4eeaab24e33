"""Random clusters: changes of a small world where all meets: labels, addresses that move, named ports, blocks."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import product
from typing import Any

from hypothesis import strategies as st

from npc.model import Model
from npc.plan import Protocol
from npc.verdict import ICMP, ICMP6, Connection

Document = dict[str, Any]

NAMESPACES = ("a", "b", "c")
NODES = {"n1": "192.0.2.1", "n2": "192.0.2.2", "n3": "192.0.2.3"}
POD_ADDRESSES = [(f"10.32.0.{number}", f"fd00::{number}") for number in range(1, 9)]
OUTSIDE = ("198.51.100.7", "2001:db8::7", "10.32.0.200")

labels = st.dictionaries(st.sampled_from(("app", "tier")), st.sampled_from(("x", "y")), max_size=2)
requirements = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(("app", "tier")),
            "operator": st.sampled_from(("In", "NotIn")),
            "values": st.lists(st.sampled_from(("x", "y", "z")), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"key": st.sampled_from(("app", "tier")), "operator": st.sampled_from(("Exists", "DoesNotExist"))}
    ),
)
selectors: st.SearchStrategy[Document] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"matchLabels": labels}),
    st.fixed_dictionaries({"matchExpressions": st.lists(requirements, max_size=2)}),
)
namespace_selectors = st.one_of(
    selectors, st.sampled_from(NAMESPACES).map(lambda name: {"matchLabels": {"kubernetes.io/metadata.name": name}})
)
blocks = st.one_of(
    st.fixed_dictionaries(
        {
            "cidr": st.sampled_from(("0.0.0.0/0", "10.32.0.0/29", "10.32.0.3/32", "198.51.100.0/24")),
            "except": st.lists(st.sampled_from(("10.32.0.4/30", "198.51.100.7/32", "0.0.0.0/0")), max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"cidr": st.sampled_from(("::/0", "fd00::/125")), "except": st.lists(st.just("fd00::3/128"), max_size=1)}
    ),
)
peers = st.one_of(
    st.fixed_dictionaries({"podSelector": selectors}),
    st.fixed_dictionaries({"namespaceSelector": namespace_selectors}),
    st.fixed_dictionaries({"namespaceSelector": namespace_selectors, "podSelector": selectors}),
    st.fixed_dictionaries({"ipBlock": blocks}),
)
ports = st.one_of(
    st.fixed_dictionaries({"port": st.sampled_from((80, 53, "http", "dns"))}),
    st.fixed_dictionaries({"protocol": st.sampled_from(("TCP", "UDP", "SCTP"))}),
    st.fixed_dictionaries({"protocol": st.just("UDP"), "port": st.sampled_from((53, "dns"))}),
    st.just({"port": 79, "endPort": 81}),
)
bad_rules = st.just({"ports": [{"protocol": "GRE"}]})


def rules(peers_field: str) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries(
        {}, optional={peers_field: st.lists(peers, max_size=3), "ports": st.lists(ports, max_size=3)}
    )


specs = st.fixed_dictionaries(
    {"podSelector": selectors},
    optional={
        "policyTypes": st.sampled_from((["Ingress"], ["Egress"], ["Ingress", "Egress"])),
        "ingress": st.lists(st.one_of(rules("from"), rules("from"), rules("from"), bad_rules), max_size=2),
        "egress": st.lists(rules("to"), max_size=2),
    },
)
container_ports = st.lists(
    st.sampled_from(
        (
            {"name": "http", "containerPort": 80, "protocol": "TCP"},
            {"name": "http", "containerPort": 8080},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns", "containerPort": 53, "protocol": "TCP"},
        )
    ),
    max_size=2,
)
pods = st.fixed_dictionaries(
    {
        "labels": labels,
        "address": st.none() | st.sampled_from(POD_ADDRESSES),
        "node": st.sampled_from(("n1", "n2")),
        "phase": st.sampled_from(("Pending", "Running", "Running", "Running", "Succeeded")),
        "host": st.sampled_from((False, False, False, False, True)),
        "ports": container_ports,
        "again": st.booleans(),
    }
)
names = st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(("p0", "p1", "p2")))
changes = st.one_of(
    st.tuples(st.just("pod"), names, pods),
    st.tuples(st.just("pod"), names, pods),
    st.tuples(st.just("policy"), names, specs),
    st.tuples(st.just("policy"), names, specs),
    st.tuples(st.just("namespace"), st.sampled_from(NAMESPACES), labels),
    st.tuples(st.just("delete"), st.sampled_from(("Pod", "NetworkPolicy")), names),
    st.tuples(st.just("forget namespace"), st.sampled_from(NAMESPACES)),
    st.tuples(st.just("admit"), names, st.sampled_from(POD_ADDRESSES)),
    st.tuples(st.just("release"), names),
    st.tuples(st.just("node"), st.sampled_from((None, NODES["n3"], OUTSIDE[-1]))),
)
addresses = st.sampled_from(POD_ADDRESSES).flatmap(lambda pair: st.sampled_from(pair))
elsewhere = st.sampled_from((*OUTSIDE, *NODES.values(), "224.0.0.5"))
kinds = st.sampled_from(
    (
        *((protocol, port) for protocol in (Protocol.TCP, Protocol.UDP) for port in (53, 80, 8080)),
        (Protocol.SCTP, 80),
        (ICMP, 0),
        (ICMP6, 0),
    )
)


@st.composite
def connections(draw: st.DrawFn) -> Connection:
    """A connection among pods' addresses and others, of one family."""
    ends = st.one_of(addresses, addresses, addresses, elsewhere)
    source = ip_address(draw(addresses if draw(st.booleans()) else ends))
    destination = ip_address(draw(ends.filter(lambda text: ip_address(text).version == source.version)))
    protocol, port = draw(kinds)
    return Connection(source.packed, destination.packed, protocol, port)


_X = {"matchLabels": {"app": "x"}}
_BLOCK4, _BLOCK6 = {"cidr": "10.32.0.0/29"}, {"cidr": "fd00::/124", "except": ["fd00::4/127"]}
_POLICIES: dict[tuple[str, str], Document] = {
    ("a", "p0"): {"podSelector": {}, "ingress": [{"from": [{"podSelector": _X}, {"namespaceSelector": _X}]}]},
    ("a", "p1"): {"podSelector": _X, "ingress": [{"ports": [{"port": "http"}]}]},
    ("b", "p0"): {"podSelector": _X, "egress": [{"to": [{"namespaceSelector": {}, "podSelector": _X}]}]},
    ("b", "p1"): {"podSelector": {}, "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}]},
    ("c", "p0"): {"podSelector": {}, "ingress": [{"from": [{"ipBlock": _BLOCK4}, {"ipBlock": _BLOCK6}]}]},
}


# Every pod's address to every other's, in one family or the other.
PAIRS = tuple(
    Connection(
        ip_address(source[family]).packed, ip_address(destination[family]).packed, Protocol.TCP, (80, 8080)[family]
    )
    for family in (0, 1)
    for source, destination in product(POD_ADDRESSES, POD_ADDRESSES)
)


@dataclass
class World:
    """The objects as they are, and a model that was told every change of them."""

    model: Model = field(default_factory=Model)
    objects: dict[tuple[str, str, str], Document] = field(default_factory=dict)
    admitted: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    created: int = 0

    def __post_init__(self) -> None:
        for name, address in NODES.items():
            self._node(name, address)
        for name in NAMESPACES:
            self.change(("namespace", name, {}))

    def populate(self) -> None:
        """Pods and policies to begin with, so that a single change meets something."""
        for number, (namespace, name) in enumerate(product(NAMESPACES, ("p0", "p1", "p2"))):
            pod = {"labels": {"app": "xy"[number % 2], "tier": "xy"[number // 2 % 2]}, "again": False, "host": False}
            pod |= {"address": (*POD_ADDRESSES, None)[number], "node": ("n1", "n2")[number // 2 % 2]}
            ports = [{"name": "http", "containerPort": (80, 8080)[number % 2]}]
            self.change(("pod", (namespace, name), {**pod, "phase": "Running", "ports": ports}))
        for key, spec in _POLICIES.items():
            self.change(("policy", key, spec))

    def change(self, change: tuple[Any, ...]) -> None:
        """One of `changes`."""
        kind = change[0]
        if kind == "pod":
            self._pod(change[1], change[2])
        elif kind == "policy":
            namespace, name = change[1]
            self._apply("NetworkPolicy", namespace, name, {"spec": change[2]})
        elif kind == "namespace":
            labelled = {**change[2], "kubernetes.io/metadata.name": change[1]}
            self._apply("Namespace", "", change[1], {}, labels=labelled)
        elif kind == "delete":
            if change[1] == "Pod":
                self.admitted.pop(change[2], None)
            self._delete(change[1], *change[2])
        elif kind == "node":
            self._node("n3", change[1])
        elif kind == "forget namespace":
            self._delete("Namespace", "", change[1])
        else:
            self._settle(change[1], change[2] if kind == "admit" else ())

    def again(self, order: list[int]) -> Model:
        """A new model of the same objects, told in another order."""
        model = Model()
        objects = list(self.objects.items())
        for (kind, _, _), document in [objects[number % len(objects)] for number in order] + objects:
            model.apply(kind, document)
        for key, admitted in self.admitted.items():
            model.admit(*key, "", [ip_address(each).packed for each in admitted])
        return model

    def _pod(self, key: tuple[str, str], wanted: Document) -> None:
        known = self.objects.get(("Pod", *key))
        if known is None or wanted["again"]:
            self.created += 1
            self.admitted.pop(key, None)
            number = self.created
        else:
            number = int(known["metadata"]["uid"])
        spec = {"nodeName": wanted["node"], "hostNetwork": wanted["host"]}
        spec["containers"] = [{"ports": [port]} for port in wanted["ports"]]
        status = {"phase": wanted["phase"], "podIPs": [{"ip": each} for each in wanted["address"] or ()]}
        self._apply("Pod", *key, {"spec": spec, "status": status}, labels=wanted["labels"], number=number)

    def _node(self, name: str, address: str | None) -> None:
        if address is None:
            self._delete("Node", "", name)
        else:
            self._apply("Node", "", name, {"status": {"addresses": [{"type": "InternalIP", "address": address}]}})

    def _settle(self, key: tuple[str, str], admitted: tuple[str, ...]) -> None:
        if self.model.admit(*key, "", [ip_address(each).packed for each in admitted]):
            self.admitted[key] = admitted

    def _apply(
        self, kind: str, namespace: str, name: str, document: Document, labels: Document | None = None, number: int = 0
    ) -> None:
        metadata = {"namespace": namespace, "name": name, "labels": labels or {}}
        metadata |= {"uid": str(number), "creationTimestamp": f"{number:06}"}
        whole = {"metadata": metadata, **document}
        self.objects[kind, namespace, name] = whole
        self.model.apply(kind, whole)

    def _delete(self, kind: str, namespace: str, name: str) -> None:
        self.objects.pop((kind, namespace, name), None)
        self.model.delete(kind, name, namespace)
