"""Nodes of a cluster with an API server, allowed what the manifest allows and nothing else."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.net import run
from lab.router import RANGE, peer_name, wait_until
from lab.traffic import lookup, ping
from tests.clusters import cluster, mesh_links
from tests.kube_nodes import Kube, allowed, await_ready, kubernetes, node
from tests.rings import await_one_ring, owners

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Kube]:
    with cluster(ipam=RANGE) as made, kubernetes(made, tmp_path) as found:
        yield found


def test_a_cluster_begins(kube: Kube) -> None:
    """Three nodes start at once, find each other, make one ring, and say that they are well."""
    for number in (1, 2, 3):
        kube.made.underlay.host(number)
        kube.add(number)
    for number in (1, 2, 3):
        kube.start(number, wait=False)
    for router in kube.made.routers.values():
        wait_until("it answers", router.answers, 60)
    kube.made.await_links(mesh_links(3))
    for router in kube.made.routers.values():
        await_ready(router)
    await_one_ring(kube.made)
    wait_until("all are listed", lambda: kube.listed() == {peer_name(number) for number in (1, 2, 3)}, 30)
    well = "False WeaveIsUp"
    wait_until("all are well", lambda: all(kube.condition(number) == well for number in (1, 2, 3)), 60)
    asked = {(one.verb, one.resource) for one in kube.api.requests if one.resource}
    assert asked >= {("list", "nodes"), ("watch", "nodes"), ("get", "configmaps"), ("update", "configmaps")}
    granted = {(verb, name) for rule in allowed() for name in rule["resources"] for verb in rule["verbs"]}
    assert asked <= granted
    assert not [line for one in kube.made.routers.values() for line in one.log.splitlines() if "unexpected" in line]


def test_nodes_come_and_go(kube: Kube) -> None:
    """A node that is added is dialled; what one that is deleted owned is taken over, and it starts as a new one."""
    for number in (1, 2):
        kube.made.underlay.host(number)
        kube.add(number)
        kube.start(number)
    kube.made.await_links(mesh_links(2))
    await_one_ring(kube.made)
    kube.made.underlay.host(3)
    kube.add(3)
    third = kube.start(3)
    kube.made.await_links(mesh_links(3))
    await_ready(third)
    third.allocate("pod")
    await_one_ring(kube.made)
    wait_until("host 3 has a share", lambda: 3 in owners(kube.made.routers[1]), 60)
    wait_until("it is listed", lambda: peer_name(3) in kube.listed(), 30)

    third.stop(kill=True)
    del kube.made.routers[3]
    kube.made.await_links(mesh_links(2))
    kube.api.objects.remove("nodes", node(3))
    # Where it still counted as connected when it was looked at, that is tried again after a minute or two.
    wait_until("it is off the list", lambda: peer_name(3) not in kube.listed(), 180)
    await_one_ring(kube.made)
    assert set(owners(kube.made.routers[1])) == {1, 2}
    gone = kube.made.address(3)
    left = list(kube.made.routers.values())
    wait_until("nobody dials it", lambda: all(gone not in one.get("/status/targets") for one in left), 60)

    kube.add(3)
    third = kube.start(3)
    assert "Peer not in list; removing persisted data" in third.log
    kube.made.await_links(mesh_links(3))
    await_ready(third)
    assert "pod" not in third.owned()
    for router in kube.made.routers.values():
        assert "conflict" not in router.log


def test_halves_of_a_cluster_begin_no_rings_of_their_own(kube: Kube) -> None:
    """Two nodes that cannot talk when they start: each would have been enough for Weave Net."""
    for number in (1, 2):
        kube.made.underlay.host(number)
        kube.add(number)
    kube.made.underlay.separate([1], [2])
    for number in (1, 2):
        kube.start(number)
    for router in kube.made.routers.values():
        assert router.report()["IPAM"]["Paxos"]["Quorum"] == 2
        assert router.ask("GET", "/ready").status == 503
        assert not owners(router)
    for number in (1, 2):
        kube.made.underlay.clear(number)
    kube.made.await_links(mesh_links(2))
    await_one_ring(kube.made)
    for router in kube.made.routers.values():
        await_ready(router)
        assert "different peers" not in router.log


def test_without_the_api_server(kube: Kube) -> None:
    """A node that has no ring waits for it; one that has goes on with what it knew."""
    for number in (1, 2):
        kube.made.underlay.host(number)
        kube.add(number)
    kube.api.fail(503, times=5)
    first = kube.start(1, wait=False)
    wait_until("it tries again", lambda: "Failed to get peers: " in first.log, 30)
    assert first.stop() == 0, "it ends also while it waits"
    first = kube.start(1)
    kube.start(2)
    kube.made.await_links(mesh_links(2))
    await_ready(first)
    held = first.owned()
    assert first.stop() == 0
    kube.api.fail(503, times=100_000)
    begun = time.monotonic()
    again = kube.start(1)
    assert time.monotonic() - begun < 50
    assert f"going on with the peers that were known: {kube.made.address(2)}" in again.log
    kube.made.await_links(mesh_links(2))
    assert again.owned() == held


def test_names_of_pods(kube: Kube) -> None:
    """A pod's name is found from another node, at the node's own address, for as long as it runs."""
    for number in (1, 2):
        kube.made.underlay.host(number)
        kube.add(number)
    for number in (1, 2):
        kube.start(number, wait=False, WEAVE_KUBE_DNS_NAMES="1", HOST_IP=kube.made.address(number))
    for router in kube.made.routers.values():
        wait_until("it answers", router.answers, 60)
    kube.made.await_links(mesh_links(2))
    pod, other = kube.made.attach(1), kube.made.attach(2)
    wait_until("pods reach each other", lambda: ping(other.namespace, pod.address, count=1), 60)
    kube.api.objects.put(
        "pods",
        {
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"nodeName": node(1), "containers": [{"name": "web", "image": "web"}]},
            "status": {"phase": "Running", "podIP": pod.address},
        },
    )
    listing = kube.made.routers[2]
    wait_until("node 2 knows the name", lambda: "web" in listing.get("/status/dns"), 60)
    server = kube.made.underlay.host(2)
    found = run(
        *("ip", "netns", "exec", server.namespace, "dig", "+short", "-p", "6785"),
        *(f"@{server.address}", "web.shop.weave.local"),
    )
    assert found.split() == [pod.address]
    kube.api.objects.remove("pods", "web", "shop")
    wait_until("the name is gone", lambda: "web" not in listing.get("/status/dns"), 60)
    assert lookup(server.namespace, "web.shop.weave.local", server.address) == []
