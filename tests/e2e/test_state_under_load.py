"""Addresses through deaths of the router, a full disk and a damaged file, asked for over its API.

What the router answered is true whatever happens to it; what it did not answer may be either.
"""

import http.client
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from lab.net import LabError
from lab.router import RANGE, Router, socket_in, wait_until
from tests.clusters import Cluster, cluster, mesh_links
from tests.disks import fill, small_disk
from weave_py.store import Store

CLIENTS = 4


class Client(threading.Thread):
    """Asks for addresses and gives some back, for as long as it is answered; remembers what it was told."""

    def __init__(self, router: Router, number: int, begun: int) -> None:
        super().__init__(daemon=True)
        self.router = router
        self.number = number
        self.count = begun
        # What the router answered, by identifier; None where it said that the address is free again.
        self.told: dict[str, str | None] = {}
        # What was asked when the router died: either is right.
        self.open = ""

    def run(self) -> None:
        # One connection for many requests: to make one costs more than an address.
        connection = http.client.HTTPConnection("127.0.0.1", 6784, timeout=20)
        connection.auto_open = 0
        try:
            connection.sock = socket_in(self.router.host.namespace)
            connection.sock.connect(("127.0.0.1", 6784))
            while True:
                self.count += 1
                self.open = f"c{self.number}-{self.count}"
                self.told[self.open] = self._ask(connection, "POST")
                before = f"c{self.number}-{self.count - 1}"
                if self.count % 3 == 0 and before in self.told:
                    self.open = before
                    self._ask(connection, "DELETE")
                    self.told[self.open] = None
        except (OSError, http.client.HTTPException, LabError):
            return
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, method: str) -> str:
        connection.request(method, f"/ip/{self.open}")
        response = connection.getresponse()
        answer = response.read().decode()
        assert response.status < 300, answer
        return answer


def anybody_told(clients: list[Client]) -> bool:
    return any(client.told for client in clients)


def owned(router: Router) -> dict[str, list[str]]:
    rows = json.loads(router.get("/ip", "application/json"))["owned"] or ()
    return {row["containerid"]: row["addrs"] for row in rows}


def kill_again_and_again(made: Cluster, times: int) -> int:
    """The number of answers that were held against what was there afterwards."""
    rng = random.Random(5)
    told: dict[str, str | None] = {}
    answers = 0
    for _ in range(times):
        router = made.routers.get(1) or made.start(1, [], "--ipalloc-init", "consensus=1")
        clients = [Client(router, number, answers) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        wait_until("somebody was answered", partial(anybody_told, clients), 20, 0.01)
        time.sleep(rng.uniform(0, 0.4))
        router.stop(kill=True)
        for client in clients:
            client.join()
        told |= {ident: address for client in clients for ident, address in client.told.items()}
        undecided = {client.open for client in clients}
        answers += sum(len(client.told) for client in clients)
        router = made.start(1, [], "--ipalloc-init", "consensus=1")
        there = owned(router)
        for ident, address in told.items():
            if ident not in undecided:
                assert there.get(ident, []) == ([address] if address else []), f"{ident} was told {address}"
        assert set(there) <= set(told) | undecided
        addresses = [address for held in there.values() for address in held]
        assert len(addresses) == len(set(addresses)), "an address was given out twice"
        told = {ident: held[0] for ident, held in there.items()}
    return answers


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_killed_under_load(times: int) -> None:
    with cluster(ipam=RANGE) as made:
        assert kill_again_and_again(made, times) > 10 * times


def test_a_full_disk(tmp_path: Path) -> None:
    """Whoever asks is told; the router lives on, and so do the addresses; with room it goes on."""
    with small_disk(tmp_path / "small") as disk, cluster(ipam=RANGE) as made:
        router = made.start(1, [], "--ipalloc-init", "consensus=1", "--db-prefix", f"{disk}/weave")
        first = router.ask("POST", "/ip/first")
        assert first.status == 200
        ballast = disk / "ballast"
        fill(ballast)
        refused = None
        for number in range(3000):
            answer = router.ask("POST", f"/ip/more-{number}")
            if answer.status != 200:
                refused = answer
                break
        assert refused is not None and 400 <= refused.status < 600
        assert "no space left on the disk" in refused.text and refused.text.count("\n") == 1
        before = owned(router)
        assert before["first"] == [first.text] and len(before) == number + 1
        assert router.ask("DELETE", "/ip/first").status != 204, "what cannot be stored is not done"
        assert owned(router) == before
        ballast.unlink()
        wait_until("it goes on", lambda: router.ask("POST", "/ip/again").status == 200, 10)
        assert router.ask("DELETE", "/ip/first").status == 204
        now = owned(router)
        router.stop(kill=True)
        router = made.start(1, [], "--db-prefix", f"{disk}/weave")
        assert owned(router) == now


def test_a_damaged_file() -> None:
    """Nothing is given out before the ring is known again and what containers here have is claimed; and this outlives
    a restart before that."""
    with cluster(ipam=RANGE) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        router = made.routers[2]
        container = made.underlay.container(2)
        address = router.weave("attach", container).strip()
        for number in range(5):
            router.post(f"/ip/c{number}")
        lost = owned(router)
        divided = router.report()["IPAM"]["Entries"]
        router.stop(kill=True)
        made.routers[1].stop()
        path = router.directory / "weavedata.sqlite"
        path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])

        for _ in range(2):
            # Alone it waits, however often it is started: it must not make a ring of its own.
            router = made.start(2, [1], "--ipalloc-init", "consensus=1")
            assert ".damaged-" in router.report()["State"]["Lost"]
            with pytest.raises(OSError, match="timed out"):
                router.ask("POST", "/ip/new", timeout=3)
            router.stop()
        (aside,) = [found for found in router.directory.glob("*.damaged-*") if not found.name.endswith("-wal")]
        assert aside.read_bytes()[:100] == b"\0" * 100
        assert ".damaged-" in router.log and "ERRO" in router.log

        made.start(1, [2])
        router = made.start(2, [1], "--ipalloc-init", "consensus=1")
        made.await_links(mesh_links(2))
        wait_until("what was lost is known again", lambda: router.report()["State"]["Lost"] is None, 30)
        tokens = {(entry["Token"], entry["Peer"]) for entry in divided}
        assert {(entry["Token"], entry["Peer"]) for entry in router.report()["IPAM"]["Entries"]} == tokens
        held = [cidr.partition("/")[0] for cidrs in owned(router).values() for cidr in cidrs]
        assert address in held, "a container on this host has it"
        given = {router.ask("POST", f"/ip/new{number}").text.partition("/")[0] for number in range(10)}
        assert len(given) == 10 and address not in given
        assert lost


def test_a_later_schema_ends_the_start(tmp_path: Path) -> None:
    Store(f"{tmp_path}/weave").close()
    with sqlite3.connect(f"{tmp_path}/weavedata.sqlite") as connection:
        connection.execute("PRAGMA user_version=7")
    connection.close()
    command = [sys.executable, "-m", "weave_py.weaver", "--name", "::9", "--db-prefix", f"{tmp_path}/weave"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("FATA")]
    assert "its schema is 7, the latest known here is 2" in line
