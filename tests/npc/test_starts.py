"""Pods that start: the first packet of each finds its rules in force, however many start at once.

A pod here is an address of one namespace, so that a thousand cost seconds: it is asked for as the CNI plugin does, and
in the same moment as the answer comes it calls, and is called.
"""

import errno
import json
import socket
import statistics
import threading
import time
from typing import Any

import pytest

from host.netns import inside
from lab.net import run
from tests.npc.cases import api_pod
from tests.npc.daemons import Daemon, cluster, daemons
from tests.npc.site import Site

Document = dict[str, Any]
FRIEND, STRANGER = "10.32.1.1", "10.32.3.1"
HOME = "10.32.2.2"
PORT = 80
_ANSWER = 1.0


def addresses(count: int) -> list[str]:
    return [f"10.32.{100 + number // 250}.{number % 250 + 1}" for number in range(count)]


def called(place: Site, source: str, address: str) -> socket.socket:
    """A call from somewhere to an address, on its way."""

    def call() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind((source, 0))
        sock.connect_ex((address, PORT))
        return sock

    return inside(f"/run/netns/{place.pods[source]}", call)


def answered(sock: socket.socket) -> bool:
    """Whether who was called has answered; it refuses, which is an answer."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def start(daemon: Daemon, sock: socket.socket, name: str, address: str) -> float:
    """Ask as the CNI plugin does; seconds until the answer."""
    began = time.monotonic()
    question = {"wait": [address], "namespace": "blog", "name": name, "uid": ""}
    sock.sendall(json.dumps(question).encode() + b"\n")
    answer = json.loads(sock.recv(4096))
    assert answer == {"ok": True}, answer
    return time.monotonic() - began


def run_starts(place: Site, count: int, *, denied: bool, at_once: int) -> tuple[int, int, list[float]]:
    """Start pods; how many calls of the friend and of the stranger were answered; seconds that each waited."""
    spec: Document = {"podSelector": {}, "policyTypes": ["Ingress"]}
    peers = [{"namespaceSelector": {"matchLabels": {"team": "retail"}}}]
    spec["ingress"] = [{"from": peers, "ports": [{"port": PORT}]}]
    names = {f"start-{number}": address for number, address in enumerate(addresses(count))}
    waited: list[float] = []
    calls: dict[str, list[socket.socket]] = {FRIEND: [], STRANGER: []}
    home, host = place.pods[HOME], place.hosts["n1"]
    run("ip", "-n", home, "-batch", "-", stdin="".join(f"addr add {one}/16 dev eth0\n" for one in names.values()))
    run("ip", "-n", host, "-batch", "-", stdin="".join(f"route replace {one} dev weave\n" for one in names.values()))
    mac = json.loads(run("ip", "-n", home, "-j", "link", "show", "eth0"))[0]["address"]
    for source in calls:
        # The table of learned neighbours is too small for all of them.
        lines = (f"neigh replace {one} lladdr {mac} dev eth0 nud permanent\n" for one in names.values())
        run("ip", "-n", place.pods[source], "-batch", "-", stdin="".join(lines))
    with cluster(place) as (server, url), daemons(place, url, nodes=("n1",)) as [daemon]:
        if denied:
            server.objects.put("networkpolicies", {"metadata": {"name": "p", "namespace": "blog"}, "spec": spec})
        for name in names:
            shape = {
                "namespace": "blog",
                "name": name,
                "labels": {"app": "start"},
                "ips": [],
                "node": "n1",
                "ports": [],
            }
            document = {**shape, "hostNetwork": False, "phase": "Pending"}
            server.objects.put("pods", api_pod(document, "2026-02-01T00:00:00Z"))
        queue = list(names.items())
        lock = threading.Lock()

        def work() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(daemon.socket)
                sock.settimeout(30)
                while queue:
                    with lock:
                        if not queue:
                            return
                        name, address = queue.pop()
                    waited.append(start(daemon, sock, name, address))
                    for source in calls:
                        calls[source].append(called(place, source, address))

        threads = [threading.Thread(target=work) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # The error is told once.
        counts = {FRIEND: 0, STRANGER: 0}
        deadline = time.monotonic() + 10 * _ANSWER
        while time.monotonic() < deadline and counts[FRIEND] < count:
            counts[FRIEND] += sum(map(answered, calls[FRIEND]))
            time.sleep(0.1)
        time.sleep(_ANSWER)
        counts[STRANGER] += sum(map(answered, calls[STRANGER]))
        for sock in calls[FRIEND] + calls[STRANGER]:
            sock.close()
    run("ip", "-n", home, "-batch", "-", stdin="".join(f"addr del {one}/16 dev eth0\n" for one in names.values()))
    return counts[FRIEND], counts[STRANGER], waited


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("denied", [True, False], ids=["isolated", "not isolated"])
def test_the_first_packet_of_a_pod_is_judged(place: Site, count: int, denied: bool) -> None:
    friend, stranger, waited = run_starts(place, count, denied=denied, at_once=20)
    print(f"{count} starts, 20 at once: waited {statistics.median(waited) * 1e3:.1f} ms, "
          f"most {max(waited) * 1e3:.1f} ms")  # fmt: skip
    assert len(waited) == count
    assert (friend, stranger) == (count, 0 if denied else count)
