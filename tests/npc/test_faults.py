"""What goes wrong around weave-npc while it runs: the API server is away or says nothing, sets are large, and others
delete its table while it writes. It goes on judging, comes back to what is meant by itself, and says what happened."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lab.net import run
from lab.router import wait_until
from tests.disks import fill, small_disk
from tests.kube.api_server import ApiServer
from tests.npc.cases import api_pod, policy
from tests.npc.daemons import FRIEND, SERVER, STRANGER, Daemon, judged, nft, reaches
from tests.npc.site import Probe, Site

Document = dict[str, Any]
CLIENT, OTHER_CLIENT = "203.0.113.9", "203.0.113.8"
MANY = 10_000
OUTAGE = 600.0
# weave-npc with times of seconds where there are minutes.
_IMPATIENT = """
from kube import follower
from npc import controller
from weave_py import npc
follower._WATCH, follower._GRACE, npc._AWAY, npc._LOOK, controller._LAST_RETRY = (2, 2), 2.0, 3.0, 0.2, 1.0
npc.main()
"""


def metric(daemon: Daemon, name: str) -> float:
    """The value of a line of its metrics; 0 if there is none."""
    code, text = daemon.fetch("/metrics")
    assert code == 200
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")), 0.0)


def agree(daemon: Daemon) -> bool:
    """Whether the kernel holds what was meant."""
    return bool(daemon.ask({"ask": "check"}, 60.0)["answer"] == [])


def cut_off(place: Site, node: str, url: str, verdict: str) -> None:
    """Between a node and the API server nothing passes: packets vanish, or are refused."""
    end = urlsplit(url)
    rule = f"ip daddr {end.hostname} tcp dport {end.port} {verdict}"
    nft(place, f"add table inet away; add chain inet away out {{ type filter hook output priority 0; }}; "
        f"add rule inet away out {rule}", node)  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(OUTAGE + 300)
def test_the_api_server_is_away_for_ten_minutes(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    """For one node packets to it vanish, for the other one it refuses; the rules from before judge all the time."""
    server, url = api
    assert judged(place) == (True, False)
    cut_off(place, "n1", url, "drop")
    cut_off(place, "n2", url, "reject with tcp reset")
    away, probes = time.monotonic(), 0
    try:
        server.reset_watches()
        # None of this is heard of before the end.
        server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "nobody"}}))
        server.objects.put("networkpolicies", policy("ops", {}, {"matchLabels": {"app": "cart"}}))
        while time.monotonic() < away + OUTAGE:
            assert judged(place) == (True, False), f"after {time.monotonic() - away:.0f} s"
            probes += 1
            if time.monotonic() > away + 180:
                for daemon in both:
                    assert "changes of" in daemon.status()["degraded"]["api"]
                    assert daemon.fetch("/readyz")[0] == 503
            time.sleep(2)
        for daemon in both:
            assert not daemon.ended()
            assert metric(daemon, 'weavenpc_watch_age_seconds{resource="networkpolicies"}') > OUTAGE - 30
            assert metric(daemon, "weavenpc_ready") == 0
            assert metric(daemon, 'weavenpc_degraded{reason="api"}') == 1
            assert "[kube] following networkpolicies: " in daemon.log
    finally:
        for node in ("n1", "n2"):
            nft(place, "delete table inet away", node)
    assert probes > OUTAGE / 10
    for daemon in both:
        wait_until("it is ready again", daemon.ready, 90)
    # And stays so, though the watches of most kinds have nothing to say.
    time.sleep(75)
    assert all(daemon.ready() for daemon in both)
    assert judged(place) == (False, False)
    assert all(agree(daemon) for daemon in both)


class Impatient(Daemon):
    program = ("-c", _IMPATIENT)


@pytest.fixture
def impatient(place: Site, api: tuple[ApiServer, str], tmp_path: Any) -> Iterator[Daemon]:
    daemon = Impatient(place, "n1", api[1], tmp_path)
    try:
        yield daemon.start()
    finally:
        daemon.stop()
        nft(place, "delete table inet weave_npc")


def test_a_watch_says_nothing_more(place: Site, api: tuple[ApiServer, str], impatient: Daemon) -> None:
    """No word and no end: it is given up when it should have been over, and the next one goes on from there."""
    server, _ = api
    server.stall_watches()
    server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "nobody"}}))
    assert judged(place) == (True, False)
    wait_until("the change is in force", lambda: not reaches(place, FRIEND), 30)
    assert not reaches(place, STRANGER)
    assert "[kube] following networkpolicies: /apis/networking.k8s.io/v1/networkpolicies: no answer in time" in (
        impatient.log
    )
    wait_until("all is well", impatient.ready, 30)


def test_no_watch_says_anything(place: Site, api: tuple[ApiServer, str], impatient: Daemon) -> None:
    """Those that follow are stuck, too: it is said, and what the cluster is comes from a list."""
    server, _ = api
    server.hang(path="networkpolicies.*watch=", times=2)
    server.stall_watches()
    server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "nobody"}}))

    def said() -> str:
        return str(impatient.status()["degraded"].get("api", ""))

    # Other kinds are told of first, as it happens, and are well again sooner.
    wait_until("it is said", lambda: bool(re.search("changes of .*NetworkPolicy.* are not followed: .+", said())), 30)
    assert impatient.fetch("/readyz")[0] == 503
    assert metric(impatient, 'weavenpc_watch_age_seconds{resource="networkpolicies"}') > 3
    wait_until("the change is in force", lambda: not reaches(place, FRIEND), 60)
    wait_until("all is well", impatient.ready, 30)


def crowd(server: ApiServer, namespace: str) -> None:
    """Pods of other nodes, all in one namespace."""
    for number in range(MANY):
        address = f"10.4{number // 5000}.{number % 5000 // 250}.{number % 250 + 1}"
        pod: Document = {"namespace": namespace, "name": f"one-{number}", "labels": {}, "ips": [address]}
        pod |= {"node": "n9", "ports": [], "hostNetwork": False, "phase": "Running"}
        server.objects.put("pods", api_pod(pod, "2026-01-01T00:00:00Z"))


def open_to(labels: Document) -> Document:
    """Whole namespaces reach the server."""
    rule = {"from": [{"namespaceSelector": {"matchLabels": labels}}]}
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [rule]}
    return {"metadata": {"name": "crowd", "namespace": "shop"}, "spec": spec}


def relabel(server: ApiServer, labels: Document) -> None:
    server.objects.put("namespaces", {"metadata": {"name": "ops", "labels": labels}})


def test_a_namespace_of_ten_thousand_pods(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    """They come one by one, leave the set at once as their namespace changes, and come back at once."""
    server, _ = api
    relabel(server, {"open": "yes"})
    server.objects.put("networkpolicies", open_to({"open": "yes"}))
    wait_until("the namespace is let in", lambda: reaches(place, STRANGER), 10)
    crowd(server, "ops")
    wait_until("all are known", lambda: both[0].status()["objects"]["pods"] > MANY, 60)
    for labels, inside in (({"open": "no"}, False), ({"open": "yes"}, True)):
        relabel(server, labels)
        wait_until("it follows", lambda inside=inside: reaches(place, STRANGER) == inside, 20)  # type: ignore[misc]
        wait_until("the kernel agrees", lambda: agree(both[0]), 20)
        assert (metric(both[0], 'weavenpc_objects{kind="elements"}') > MANY) == inside
        assert reaches(place, FRIEND)
    status = both[0].status()
    assert status["ready"] and status["repairs"] == 0
    assert "written anew" not in both[0].log
    # A new process meets all of it at once, and finds it as it is.
    both[0].stop(signal.SIGKILL)
    both[0].start()
    assert "the table of an earlier run is as it should be, and stays" in both[0].log
    assert judged(place) == (True, True)


def test_a_block_with_ten_thousand_exceptions(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    server, _ = api
    # Every second address, so that nothing becomes one.
    exceptions = [f"203.{number // 32768}.{number // 128 % 256}.{number % 128 * 2}/32" for number in range(MANY)]

    def block(*more: str) -> Document:
        rule = {"from": [{"ipBlock": {"cidr": "203.0.0.0/16", "except": [*exceptions, *more]}}]}
        spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [rule]}
        return {"metadata": {"name": "block", "namespace": "shop"}, "spec": spec}

    def clients() -> tuple[bool, bool]:
        probes = [Probe(place.outside, source, SERVER, "TCP", 5432) for source in (CLIENT, OTHER_CLIENT)]
        one, other = place.reached(probes, [False, False])
        return one, other

    assert clients() == (False, False)
    server.objects.put("networkpolicies", block(f"{OTHER_CLIENT}/32"))
    wait_until("one is let in, the other is not", lambda: clients() == (True, False), 20)
    server.objects.put("networkpolicies", block(f"{CLIENT}/32"))
    wait_until("now the other one", lambda: clients() == (False, True), 20)
    assert agree(both[0]) and both[0].status()["ready"]
    assert metric(both[0], 'weavenpc_objects{kind="elements"}') > MANY
    assert metric(both[0], "weavenpc_policy_enforcement_errors") == 0


def test_the_table_is_deleted_again_and_again_while_it_is_written(
    place: Site, api: tuple[ApiServer, str], both: list[Daemon]
) -> None:
    """Changes of ten thousand elements, and somebody who deletes what they are for."""
    server, _ = api
    server.objects.put("networkpolicies", open_to({"open": "yes"}))
    crowd(server, "ops")
    wait_until("all are known", lambda: both[0].status()["objects"]["pods"] > MANY, 60)
    over = threading.Event()

    def delete() -> None:
        while not over.wait(0.05):
            command = ("ip", "netns", "exec", place.hosts["n1"], "nft")
            run(*command, "add table inet weave_npc; delete table inet weave_npc")

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        for number in range(20):
            relabel(server, {"open": "no" if number % 2 else "yes"})
            time.sleep(0.3)
    finally:
        over.set()
        deleting.join()
    wait_until("the last change is in force", lambda: judged(place) == (True, False), 30)
    wait_until("the kernel agrees", lambda: both[0].ready() and agree(both[0]), 30)
    status = both[0].status()
    assert status["repairs"] > 0 and not status["degraded"]
    assert "somebody else changed the rules of network policy: " in both[0].log
    # A change that met no table.
    assert "the whole table is written anew" in both[0].log
    assert metric(both[0], 'weavenpc_sync_failures_total{reason="2"}') > 0


def late(server: ApiServer, name: str) -> Document:
    """A pod that is about to start; what the CNI plugin asks about it."""
    pod: Document = {"namespace": "shop", "name": name, "labels": {"app": "db"}, "ips": [], "node": "n1", "ports": []}
    pod |= {"hostNetwork": False, "phase": "Pending"}
    server.objects.put("pods", api_pod(pod, "2026-02-01T00:00:00Z"))
    return {"wait": ["10.32.1.30"], "namespace": "shop", "name": name, "uid": ""}


def test_the_disk_is_full(place: Site, api: tuple[ApiServer, str], tmp_path: Path) -> None:
    """Rules are in force all the same, for a pod that starts, too; that this is not kept is said, and made good."""
    server, url = api
    with small_disk(tmp_path / "small") as disk:
        daemon = Impatient(place, "n1", url, tmp_path, ["--socket", f"{disk}/npc.sock"])
        daemon.socket = f"{disk}/npc.sock"
        kept = disk / "npc.admitted.json"
        try:
            daemon.start()
            fill(disk / "ballast")
            assert daemon.ask(late(server, "late")) == {"ok": True}
            assert not reaches(place, STRANGER, "10.32.1.30")
            assert reaches(place, FRIEND, "10.32.1.30")
            server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "nobody"}}))
            wait_until("the change is in force", lambda: not reaches(place, FRIEND), 10)
            status = daemon.status()
            assert status["ready"] and "No space left on device" in status["warnings"]["admitted"]
            assert daemon.log.count("unable to keep which pods started: ") == 1
            assert not kept.exists() and not kept.with_suffix(".new").exists()
            (disk / "ballast").unlink()
            wait_until("it is kept", kept.exists, 10)
            wait_until("all is well", lambda: not daemon.status()["warnings"], 10)
            daemon.stop(signal.SIGKILL)
            daemon.start()
            assert not reaches(place, STRANGER, "10.32.1.30")
        finally:
            daemon.stop()
            nft(place, "delete table inet weave_npc")


def test_a_pod_that_cannot_be_asked_for(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    """It starts before its event came, and the API server refuses: who starts it is told, and so is the log."""
    server, _ = api
    server.fail(500, path="pods/unheard", times=1)
    question = {"wait": ["10.32.1.31"], "namespace": "shop", "name": "unheard", "uid": ""}
    answer = both[0].ask(question)
    assert not answer["ok"] and "network policy of shop/unheard is not in force" in answer["reason"]
    assert "unable to look after pod shop/unheard, which starts: " in both[0].log
    assert "Traceback" not in both[0].log
