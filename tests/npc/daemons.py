"""weave-npc on the nodes of a site, following a stand-in API server outside, and what it lets pass there."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from host.netns import inside
from lab.net import run
from lab.router import wait_until
from tests.kube.api_server import ApiServer, serving
from tests.npc.cases import FIXTURES, PORT, api_pod
from tests.npc.site import Probe, Site

Document = dict[str, Any]
# The server of the table, a pod that its policy lets in, and one that it does not.
SERVER, FRIEND, STRANGER = "10.32.1.3", "10.32.1.1", "10.32.3.1"
_START = 30.0


class Daemon:
    """One node's weave-npc, in a process of its own."""

    # What Python is started with.
    program: Sequence[str] = ("-m", "weave_py.npc")

    def __init__(self, site: Site, node: str, url: str, directory: Path, flags: Sequence[str] = ()) -> None:
        self.node = node
        self.socket = str(directory / f"{node}.sock")
        self._host = site.hosts[node]
        self._log = directory / f"{node}.log"
        self._flags = ["--node-name", node, "--api-server", url, "--socket", self.socket]
        self._flags += ["--log-level", "debug", *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> "Daemon":
        with self._log.open("ab") as log:
            command = ["ip", "netns", "exec", self._host, sys.executable, *self.program, *self._flags]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        if wait:
            self.await_ready()
        return self

    def await_ready(self) -> None:
        wait_until(f"weave-npc of {self.node} is ready", lambda: self.ready() or self.ended(), _START)
        assert not self.ended(), self.log

    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def ask(self, question: Document, timeout: float = 20.0) -> Document:
        """One question on its socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(self.socket)
            sock.sendall(json.dumps(question).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer: Document = json.loads(lines.readline())
                return answer

    def status(self) -> Document:
        found: Document = self.ask({"ask": "status"})["answer"]
        return found

    def ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return bool(self.status()["ready"])
        return False

    def fetch(self, path: str) -> tuple[int, str]:
        """Its HTTP port, from its host."""
        command = ["curl", "-s", "-o", "-", "-w", "\n%{http_code}", f"http://127.0.0.1:6781{path}"]
        done = subprocess.run(
            ["ip", "netns", "exec", self._host, *command], capture_output=True, text=True, timeout=20, check=False
        )
        text, _, code = done.stdout.rpartition("\n")
        return int(code), text


@contextlib.contextmanager
def cluster(site: Site) -> Iterator[tuple[ApiServer, str]]:
    """An API server outside, with the nodes, namespaces and pods of the table of cases; and its URL."""
    with ExitStack() as stack:
        place = f"/run/netns/{site.outside}"
        bind = (site.underlay.host(9).address, 0)
        server = inside(place, lambda: stack.enter_context(serving(bind=bind)))
        fill(server)
        yield server, server.url


def fill(server: ApiServer) -> None:
    fixture = FIXTURES["base"]
    for name, node in fixture["nodes"].items():
        addresses = [{"type": "InternalIP", "address": address} for address in node["ips"]]
        server.objects.put("nodes", {"metadata": {"name": name}, "status": {"addresses": addresses}})
    for name, namespace in fixture["namespaces"].items():
        server.objects.put("namespaces", {"metadata": {"name": name, "labels": namespace["labels"]}})
    for pod in fixture["pods"]:
        server.objects.put("pods", api_pod(pod, "2026-01-01T00:00:00Z"))


@contextlib.contextmanager
def daemons(site: Site, url: str, *flags: str, nodes: Sequence[str] = ("n1", "n2")) -> Iterator[list[Daemon]]:
    """On these nodes; gone afterwards, with their tables."""
    with tempfile.TemporaryDirectory(prefix="weave-npc-") as directory:
        made = [Daemon(site, node, url, Path(directory), flags) for node in nodes]
        try:
            for daemon in made:
                daemon.start(wait=False)
            for daemon in made:
                daemon.await_ready()
            yield made
        finally:
            for daemon in made:
                daemon.stop()
                for table in ("weave_npc", "weave_npc_ended"):
                    command = ["ip", "netns", "exec", site.hosts[daemon.node], "nft", "delete", "table", "inet", table]
                    subprocess.run(command, capture_output=True, check=False)


def reaches(place: Site, source: str, destination: str = SERVER, port: int = PORT) -> bool:
    """Whether a connection is answered; the refused one is not waited for long."""
    probe = Probe(place.pods[source], source, destination, "TCP", port)
    return place.reached([probe], [False])[0]


def judged(place: Site) -> tuple[bool, bool]:
    """Whether the friend and the stranger reach the server."""
    return reaches(place, FRIEND), reaches(place, STRANGER)


def nft(place: Site, command: str, node: str = "n1") -> str:
    """What `nft` says in a node's host."""
    return run("ip", "netns", "exec", place.hosts[node], "nft", command)
