"""weave-npc as a process: it follows the cluster, keeps the rules whatever happens to it or to the API server, repairs
what others change, says what is wrong, and lets no pod start before its rules are in force."""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.net import run
from lab.router import wait_until
from tests.kube.api_server import ApiServer
from tests.npc.cases import api_pod, policy
from tests.npc.daemons import FRIEND, SERVER, STRANGER, Daemon, judged, nft, reaches
from tests.npc.site import Site
from tests.npc.test_churn import load, settled

Document = dict[str, Any]


def test_it_follows_the_cluster(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    server, _ = api
    assert judged(place) == (True, False)
    server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "nobody"}}))
    wait_until("the friend is refused", lambda: judged(place) == (False, False), 10)
    server.objects.remove("networkpolicies", "front", "shop")
    wait_until("everybody passes", lambda: judged(place) == (True, True), 10)
    status = both[0].status()
    assert status["ready"] and status["hook"] == "forward" and not status["degraded"]
    assert status["objects"]["pods"] == 9


def test_a_drop_is_told_with_names(place: Site, both: list[Daemon]) -> None:
    assert not reaches(place, STRANGER)
    words = "blocked by Weave NPC. (ingress shop/db, policies: shop/front)"
    wait_until("the drop is in the log", lambda: words in both[0].log, 10)
    [drop] = both[0].ask({"ask": "drops"})["answer"]
    assert drop["sourceName"] == "ops/front" and drop["destinationName"] == "shop/db"
    assert drop["destination"] == f"{SERVER}:5432"
    code, text = both[0].fetch("/metrics")
    assert code == 200
    assert 'weavenpc_blocked_connections_total{dport="5432",protocol="tcp"}' in text
    assert 'weavenpc_drops_total{direction="ingress",namespace="shop",policies="shop/front"}' in text
    assert "weavenpc_ready 1.0" in text
    explained = both[0].ask({"ask": "explain", "source": "ops/front", "destination": "shop/db", "port": "5432"})[
        "answer"
    ]
    assert explained[0]["verdict"] == "deny"
    assert explained[0]["programmed"] == "the rules that are loaded say the same: drop"
    assert explained[0]["drops"]
    assert both[0].ask({"ask": "explain", "source": "no/one", "destination": "shop/db", "port": "1"})["error"]


def test_the_api_server_goes_and_comes(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    server, _ = api
    for daemon in both:
        daemon.stop(signal.SIGKILL)
    server.hang(times=8)
    # Nobody who follows, nobody to ask: the rules that are there go on judging, and a new process keeps them.
    for daemon in both:
        daemon.start(wait=False)
    wait_until("it answers", lambda: _answers(both[0]), 20)
    assert judged(place) == (True, False)
    status = both[0].status()
    assert not status["ready"] and status["awaited"]
    assert both[0].fetch("/readyz")[0] == 503
    answer = both[0].ask({"wait": ["10.32.1.99"], "namespace": "shop", "name": "new", "uid": ""})
    assert not answer["ok"] and "not all is known yet" in answer["reason"]
    server.release()
    wait_until("the cluster is known", lambda: both[0].ready() and both[1].ready(), 30)
    assert judged(place) == (True, False)


def _answers(daemon: Daemon) -> bool:
    try:
        return bool(daemon.status())
    except OSError:
        return False


def test_watches_break_in_every_way(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    server, _ = api
    allowed = True
    for trouble in (
        server.end_watches,
        server.reset_watches,
        server.expire_watches,
        lambda: server.spoil_watches(b"{"),
    ):
        trouble()
        allowed = not allowed
        server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "front" if allowed else "none"}}))
        wait_until("the change is in force", partial(_is_judged, place, allowed), 30)
        assert not reaches(place, STRANGER)


def _is_judged(place: Site, allowed: bool) -> bool:
    return reaches(place, FRIEND) == allowed


def test_others_change_the_table(place: Site, both: list[Daemon]) -> None:
    for command in ("delete table inet weave_npc", "flush chain inet weave_npc ingress", "flush ruleset"):
        nft(place, command)
        wait_until("it is repaired", lambda: both[0].ask({"ask": "check"})["answer"] == [] and not judged(place)[1], 10)
        assert judged(place) == (True, False)
    assert both[0].status()["repairs"] >= 3
    assert "somebody else changed the rules of network policy" in both[0].log


def test_a_bridge_whose_packets_pass_no_rule_is_put_right(place: Site, both: list[Daemon]) -> None:
    sysctl = ("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    run("ip", "netns", "exec", place.hosts["n1"], *sysctl)
    run("ip", "-n", place.hosts["n1"], "link", "set", "weave", "type", "bridge", "nf_call_iptables", "0")
    assert reaches(place, STRANGER), "the bridge passes what it should not, or this test shows nothing"
    wait_until("it is put right", lambda: not reaches(place, STRANGER), 30)
    assert "pass the rules now" in both[0].log
    # Before a pod starts, it is looked at in any case.
    run("ip", "-n", place.hosts["n1"], "link", "set", "weave", "type", "bridge", "nf_call_iptables", "0")
    assert both[0].ask({"wait": [SERVER], "namespace": "shop", "name": "db", "uid": ""}) == {"ok": True}
    assert not reaches(place, STRANGER)


def test_killed_and_started_under_load(place: Site, both: list[Daemon]) -> None:
    """The table goes on judging, and is adopted by the next process."""
    with load(place) as seen:
        for daemon in both:
            for _ in range(2):
                daemon.stop(signal.SIGKILL)
                time.sleep(0.3)
                daemon.start()
    settled(seen)
    assert "the table of an earlier run is as it should be, and stays" in both[0].log


def test_a_pod_waits_for_its_rules(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    server, _ = api
    question = {"wait": ["10.32.1.30"], "namespace": "shop", "name": "late", "uid": ""}
    refused = both[0].ask(question)
    assert not refused["ok"] and "nobody knows a pod shop/late" in refused["reason"]
    document = {"namespace": "shop", "name": "late", "labels": {"app": "db"}, "ips": [], "node": "n1", "ports": []}
    server.objects.put("pods", api_pod({**document, "hostNetwork": False, "phase": "Pending"}, "2026-02-01T00:00:00Z"))
    assert both[0].ask(question) == {"ok": True}
    # Its address is in no status yet, and isolated all the same.
    assert not reaches(place, STRANGER, "10.32.1.30")
    assert reaches(place, FRIEND, "10.32.1.30")
    # A second interface is another address of the same pod.
    second = {**question, "wait": ["10.32.3.9"], "interface": "net1"}
    gone = {"release": True, "namespace": "shop", "name": "late", "uid": ""}
    assert both[0].ask(second) == {"ok": True}
    [pod] = [one for one in both[0].ask({"ask": "pods"})["answer"] if one["pod"] == "shop/late"]
    assert sorted(pod["addresses"]) == ["10.32.1.30", "10.32.3.9"]
    assert both[0].ask({**gone, "interface": "net1"}) == {"ok": True}
    # Nor does it end with the process that was asked.
    both[0].stop(signal.SIGKILL)
    both[0].start()
    assert not reaches(place, STRANGER, "10.32.1.30")
    # What ends late, of a sandbox that nobody knows here, takes no rules from the pod.
    assert both[0].ask({**gone, "interface": "before"}) == {"ok": True}
    assert not reaches(place, STRANGER, "10.32.1.30")
    assert both[0].ask(gone) == {"ok": True}
    assert reaches(place, STRANGER, "10.32.1.30")
    assert both[0].ask({"wait": ["10.32.1.30"]}) == {"ok": True}


def test_a_revoked_connection_is_cut(place: Site, api: tuple[ApiServer, str], both: list[Daemon]) -> None:
    server, _ = api
    with load(place) as seen:
        wait_until("it runs", lambda: seen.echoed > 20, 10)
        server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "nobody"}}))
        before = -1
        deadline = time.monotonic() + 15
        while before != seen.echoed and time.monotonic() < deadline:
            before = seen.echoed
            time.sleep(1.5)
        assert before == seen.echoed
        server.objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "front"}}))
    assert seen.leaked == 0
    assert both[0].status()["flowsCut"] > 0


def test_kube_proxy_changes_its_mode(place: Site, both: list[Daemon]) -> None:
    """In its IPVS mode there is a device of that name, of whatever kind here."""
    host = place.hosts["n1"]
    run("ip", "-n", host, "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other")
    try:
        wait_until("the rules move", lambda: both[0].status()["hook"] == "postrouting", 30)
        wait_until("it is written", lambda: "hook postrouting" in nft(place, "list table inet weave_npc"), 10)
        assert judged(place) == (True, False)
    finally:
        run("ip", "-n", host, "link", "del", "kube-ipvs0")
    wait_until("they move back", lambda: "hook forward" in nft(place, "list table inet weave_npc"), 30)
    assert judged(place) == (True, False)


def test_without_policy_there_are_no_rules(
    place: Site, api: tuple[ApiServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft(place, "add table inet weave_npc")
    monkeypatch.setenv("EXPECT_NPC", "0")
    daemon = Daemon(place, "n1", api[1], tmp_path)
    daemon.start(wait=False)
    try:
        wait_until("the table is gone", lambda: "weave_npc" not in nft(place, "list tables"), 20)
        assert not daemon.ended()
    finally:
        daemon.stop()


def test_cleared_by_hand_it_stays_so_and_says_so(place: Site, both: list[Daemon]) -> None:
    assert both[0].ask({"ask": "clear"}) == {"answer": True}
    assert "weave_npc" not in nft(place, "list tables")
    assert not both[0].ready()
    assert "removed by hand" in both[0].status()["degraded"]["cleared"]
    assert both[0].fetch("/readyz")[0] == 503


def test_the_command_line(place: Site, both: list[Daemon]) -> None:
    def weave(*words: str) -> tuple[int, str]:
        environment = {**os.environ, "WEAVE_NPC_SOCKET": both[0].socket}
        command = ["python", "-m", "weave_py.cli", "npc", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    code, text = weave("status")
    assert code == 0 and text.startswith("ready on n1, hook forward\n")
    code, text = weave("list", "pods")
    assert "shop/db (10.32.1.3 fd00:32:1::3): ingress: shop/front\n" in text
    assert "shop/front (ingress): shop/db; 0 dropped" in weave("list", "policies")[1]
    assert weave("check") == (0, "the kernel holds what was meant\n")
    code, text = weave("explain", "ops/front", "shop/db", "5432")
    assert code == 1 and text.startswith("deny: ops/front (10.32.3.1) -> shop/db (10.32.1.3) 5432/TCP\n")
    assert weave("explain", "shop/front", "shop/db", "5432")[0] == 0
    assert weave("explain", "no/body", "shop/db", "5432")[0] == 2
    assert weave("drops") == (0, "")
    assert weave("clear") == (0, "the rules are removed\n")
    assert weave("nonsense")[0] == 1
