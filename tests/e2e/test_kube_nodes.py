"""`weave-kube` without an API server: peers that are given, an exposed host, a probe that means something."""

import time

from lab.net import inside, run
from lab.router import RANGE, wait_until
from lab.traffic import ping
from tests.clusters import cluster, mesh_links
from tests.kube_nodes import await_ready, start_node
from weave_py.store import Store


def bridge(namespace: str) -> str:
    """The bridge's address."""
    rows = run("ip", "-n", namespace, "-4", "-o", "addr", "show", "dev", "weave", check=False).split()
    return rows[3] if len(rows) > 3 else ""


def test_two_nodes() -> None:
    """Each is told of the other; both count both, are exposed, become ready together and end in order."""
    with cluster(ipam=RANGE) as made:
        peers = f"{made.address(1)} {made.address(2)}"
        first = start_node(made, 1, KUBE_PEERS=peers)
        answer = first.ask("GET", "/ready")
        assert (answer.status, answer.text) == (
            503,
            "addresses are not to be had yet: 'weave status ipam' says what is waited for\n",
        )
        assert first.report()["IPAM"]["Paxos"]["Quorum"] == 2
        second = start_node(made, 2, KUBE_PEERS=peers, WEAVE_EXPOSE_IP="net:10.33.0.0/16")
        made.await_links(mesh_links(2))
        for router in (first, second):
            await_ready(router)
        wait_until("both are exposed", lambda: all(bridge(one.host.namespace) for one in (first, second)), 30)
        assert bridge(first.host.namespace).endswith("/12")
        assert bridge(second.host.namespace).startswith("10.33.") and bridge(second.host.namespace).endswith("/16")
        assert "masquerade" in run(*inside(first.host.namespace, "nft", "list", "ruleset"))
        pod, other = made.attach(1), made.attach(2)
        wait_until("pods reach each other", lambda: ping(pod.namespace, other.address, count=1), 30)
        begun = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - begun < 10


def test_killed_and_started_again() -> None:
    """Peers are those of this start: a list that an earlier run stored is for routers that nobody tells."""
    with cluster(ipam=RANGE) as made:
        first = start_node(made, 1, KUBE_PEERS="192.0.2.1 192.0.2.2", IPALLOC_INIT="consensus=1")
        wait_until("it is exposed", lambda: bridge(first.host.namespace) != "", 60)
        before, held = bridge(first.host.namespace), first.owned()
        first.stop(kill=True)
        again = start_node(made, 1, KUBE_PEERS="192.0.2.3", IPALLOC_INIT="consensus=1")
        assert again.get("/status/targets").split() == ["192.0.2.3"]
        wait_until("it holds what it held", lambda: again.owned() == held, 30)
        assert bridge(again.host.namespace) == before
        assert again.ask("GET", "/ready").text == "none of 1 known peers was reached yet\n"
        assert again.stop() == 0
        store = Store(str(again.directory / "weave"))
        assert not store.was_running()
        store.close()


def test_a_range_that_the_host_uses() -> None:
    """One line, and no router."""
    with cluster(ipam=RANGE) as made:
        host = made.underlay.host(1)
        run("ip", "-n", host.namespace, "route", "add", "10.40.0.0/16", "dev", "eth0")
        router = start_node(made, 1, wait=False, KUBE_PEERS="192.0.2.1")
        wait_until("it ends", router.ended, 30)
        assert router.log.endswith("Network 10.32.0.0/12 overlaps with existing route 10.40.0.0/16 on host\n")
