"""Random policies in the kernel: packets have the verdict that `explain` gives, and changes lead where they should."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npc.model import Model
from npc.plan import Protocol
from npc.verdict import Connection, judge
from tests.npc.cases import FIXTURES, api_pod
from tests.npc.clusters import NAMESPACES, container_ports, labels, specs
from tests.npc.nodes_kernel import Node
from tests.npc.site import Probe, Site

Document = dict[str, Any]
OUTSIDE = ("203.0.113.9", "2001:db8::9")
KINDS = ((Protocol.TCP, 80), (Protocol.UDP, 53), (Protocol.SCTP, 80))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Document], list[tuple[str, Document]]]:
    """Pods at the places of the site's, and policies, some of them as a later change."""
    pods = []
    for number, place in enumerate(FIXTURES["base"]["pods"]):
        pod = {**place, "namespace": NAMESPACES[number % 3], "name": f"p{number}"}
        pods.append({**pod, "labels": draw(labels), "ports": draw(container_ports)})
    policies = draw(st.lists(st.tuples(st.sampled_from(NAMESPACES), specs), min_size=2, max_size=8))
    return pods, policies


def connections(pods: list[Document]) -> list[Connection]:
    """All pairs of pods by TCP, and some of everything else."""
    found = []
    for number, one in enumerate(pods):
        for other in pods:
            if one is not other:
                six = number % 3 == 0
                found.append((one["ips"][six], other["ips"][six], *KINDS[0]))
        follower = pods[(number + 1) % len(pods)]
        found += [(one["ips"][0], follower["ips"][0], *kind) for kind in KINDS[1:]]
        found += [(OUTSIDE[0], one["ips"][0], *KINDS[0]), (one["ips"][1], OUTSIDE[1], *KINDS[0])]
    return [Connection(ip_address(here).packed, ip_address(there).packed, *kind) for here, there, *kind in found]


def check(place: Site, model: Model, pods: list[Document]) -> None:
    asked = connections(pods)
    wanted = [judge(model, one).allowed for one in asked]
    probes = []
    for one in asked:
        source, destination = str(ip_address(one.source)), str(ip_address(one.destination))
        name = Protocol(one.protocol).name
        probes.append(Probe(place.namespace_of(source), source, destination, name, one.port))
    found = place.reached(probes, wanted)
    assert [one for one, was, should in zip(probes, found, wanted, strict=True) if was != should] == []


def follow(place: Site, world: tuple[list[Document], list[tuple[str, Document]]]) -> None:
    pods, policies = world
    model = Model()
    for name, addresses in place.nodes.items():
        listed = [{"type": "InternalIP", "address": address} for address in addresses]
        model.apply("Node", {"metadata": {"name": name}, "status": {"addresses": listed}})
    for name in NAMESPACES:
        model.apply("Namespace", {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
    for pod in pods:
        model.apply("Pod", api_pod(pod, "1"))
    nodes = [Node(place, name, model) for name in place.hosts]
    try:
        for half in (policies[::2], policies[1::2]):
            for number, (namespace, spec) in enumerate(half):
                metadata = {"namespace": namespace, "name": f"policy{number}"}
                model.apply("NetworkPolicy", {"metadata": metadata, "spec": spec})
            touched = model.take()
            for node in nodes:
                node.follow(touched) if node.table.exists() else node.start(touched)
                node.check()
            check(place, model, pods)
    finally:
        for node in nodes:
            node.close()


def run_examples(place: Site, count: int) -> None:
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(worlds())
    def example(world: tuple[list[Document], list[tuple[str, Document]]]) -> None:
        follow(place, world)

    example()


@pytest.mark.timeout(120)
def test_packets_have_the_verdict_that_is_explained(place: Site) -> None:
    run_examples(place, 8)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_packets_have_the_verdict_that_is_explained_often(place: Site) -> None:
    run_examples(place, 150)
