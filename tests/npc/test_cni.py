"""A pod from the CNI plugin's ADD to its DEL, with a router and weave-npc: isolated before its first packet."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from host.netns import inside
from lab.net import run
from lab.router import wait_until
from tests.clusters import Cluster, cluster
from tests.cni.plugin import Plugin
from tests.kube.api_server import ApiServer, serving
from tests.namespaces import namespace
from tests.npc.cases import api_pod
from tests.npc.daemons import Daemon
from tests.npc.site import Probe, Site

Document = dict[str, Any]
RANGE = "10.32.0.0/12"
TRY_AGAIN = 11
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db;K8S_POD_UID="


@dataclass(slots=True)
class Place:
    made: Cluster
    plugin: Plugin
    server: ApiServer
    daemon: Daemon
    site: Site

    def reaches(self, namespace: str, destination: str, expected: bool) -> bool:
        """Whether a call from a container to an address is answered."""
        own = run("ip", "-n", namespace, "-4", "-o", "addr", "show", "eth0").split()[3].partition("/")[0]
        probe = Probe(namespace, own, destination, "TCP", 80)
        return self.site.reached([probe], [expected])[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A host with a router that expects weave-npc, and an API server that has one pod, which nobody may reach."""
    monkeypatch.setenv("WEAVE_NPC_SOCKET", str(tmp_path / "n1.sock"))
    with cluster(ipam=RANGE) as made, ExitStack() as stack:
        socket = str(made.directory / "h1/weaver.sock")
        made.start(1, [], "--socket", socket, "--expect-npc")
        outside = made.underlay.host(9)
        enter = lambda: stack.enter_context(serving(bind=(outside.address, 0)))  # noqa: E731
        server = inside(f"/run/netns/{outside.namespace}", enter)
        server.objects.put("nodes", {"metadata": {"name": "n1"}})
        server.objects.put("namespaces", {"metadata": {"name": "shop"}})
        document = {"namespace": "shop", "name": "db", "labels": {"app": "db"}, "ips": [], "node": "n1", "ports": []}
        pod = api_pod({**document, "hostNetwork": False, "phase": "Pending"}, "2026-02-01T00:00:00Z")
        server.objects.put("pods", pod)
        spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
        server.objects.put("networkpolicies", {"metadata": {"name": "deny", "namespace": "shop"}, "spec": spec})
        site = Site(made.underlay, {"n1": []}, hosts={"n1": made.underlay.host(1).namespace})
        daemon = Daemon(site, "n1", server.url, tmp_path)
        plugin = Plugin(made.directory, Path(socket), made.directory / "h1/cni")
        try:
            yield Place(made, plugin, server, daemon, site)
        finally:
            daemon.stop()


def address(result: Document) -> str:
    found: str = result["ips"][0]["address"]
    return found.partition("/")[0]


def test_a_pod_is_isolated_before_its_first_packet(place: Place) -> None:
    with namespace() as pod, namespace() as other:
        # Without weave-npc no pod starts; a container of podman's does, which is no pod.
        refused = place.plugin.call("ADD", "a1", pod, arguments=POD)
        assert refused.status and refused.document["code"] == TRY_AGAIN, refused
        assert "weave-npc does not answer" in refused.document["msg"]
        assert "eth0" not in run("ip", "-n", pod, "-o", "link")
        place.plugin.add("b1", other, arguments="IgnoreUnknown=1;K8S_POD_NAME=of-podman")
        place.daemon.start()
        to = address(place.plugin.add("a1", pod, arguments=POD))
        assert not place.reaches(other, to, False)
        assert place.daemon.ask({"ask": "pods"})["answer"] == [
            {"pod": "shop/db", "addresses": [to], "hostNetwork": False, "ingress": ["shop/deny"], "egress": []}
        ]
        # Who gets its address next is not that pod.
        place.plugin.delete("a1", pod, arguments=POD)
        same = f"IgnoreUnknown=1;IP={to}"
        wait_until("the address is free", lambda: not place.plugin.call("ADD", "c1", pod, arguments=same).status, 20)
        assert place.reaches(other, to, True)
