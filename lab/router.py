"""Routers in the lab's hosts: ours, or a foreign one that is given by its path.

A router is started in its host's namespace with state and log in a directory of its own, and ended by its pid.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.net import Host, LabError, inside, run

_CONTROL = "127.0.0.1:6784"
RANGE = "10.32.0.0/12"
_ANSWER_LIMIT = 10.0
_WAITING_LIMIT = 60.0


def peer_name(number: int) -> str:
    """The peer name of host `number`."""
    return f"0a:00:00:00:00:{number:02x}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the control API answered."""

    status: int
    text: str


@dataclass(slots=True)
class Router:
    """A running router. `foreign` is the path of one that is not ours; `build`, where another build of ours lies.

    `ipam` is the range it gives addresses from; without one it gives none. `fastdp`: not over sleeve only.
    `without`: rights that its process does not have.
    """

    host: Host
    directory: Path
    foreign: str | None = None
    password: str | None = None
    ipam: str = ""
    dns: bool = False
    build: Path | None = None
    fastdp: bool = False
    without: Sequence[str] = ()
    process: "subprocess.Popen[bytes] | None" = field(default=None)
    launched: int | None = None

    @property
    def pid(self) -> int:
        """The process that was started (a foreign router's parent)."""
        if self.launched is not None:
            return self.launched
        if self.process is None:
            raise LabError(f"the router of host {self.host.number} was not started")
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.directory / "weaver.log").read_text(errors="replace")

    def start(self, peers: Sequence[str], *flags: str) -> None:
        """Start it with these peers and further flags."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [*inside(self.host.namespace), *self._program(), *self.flags(), *flags, *peers]
        environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "WEAVE_PASSWORD": self.password or ""}
        if self.build is not None:
            environment["PYTHONPATH"] = str(self.build)
        with (self.directory / "weaver.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )

    def launch(self, peers: Sequence[str], *flags: str) -> None:
        """Start ours as an operator does: `weave launch`, which waits until it answers."""
        self.launched = int(self.weave("launch", *self.flags(), *flags, *peers))

    def weave(self, *arguments: str, check: bool = True) -> str:
        """Our command line in the host, about this router."""
        own = [f"WEAVE_RUN_DIR={self.directory}", f"WEAVE_LOG_DIR={self.directory}"]
        own.append(f"WEAVE_PASSWORD={self.password or ''}")
        command = inside(self.host.namespace, "env", *own, sys.executable, "-m", "weave_py.cli", *arguments)
        return run(*command, check=check)

    def flags(self) -> list[str]:
        """The flags that every start of it has."""
        flags = ["--name", peer_name(self.host.number), "--nickname", f"host{self.host.number}"]
        flags += ["--http-addr", _CONTROL, "--db-prefix", str(self.directory / "weave")]
        flags += [] if self.fastdp else ["--no-fastdp"]
        flags += ["--ipalloc-range", self.ipam] if self.ipam else []
        return flags if self.dns else [*flags, "--no-dns"]

    def _program(self) -> list[str]:
        if self.foreign is None:
            bounds = ",".join(f"-{right}" for right in self.without)
            bounded = ["setpriv", "--bounding-set", bounds] if bounds else []
            return [*bounded, sys.executable, "-m", "weave_py.weaver"]
        own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", self.foreign]
        return [*own, "--weave-bridge", "weave", "--datapath", "datapath", "--docker-api=", "--port", "6783"]

    def _router_pids(self) -> list[int]:
        """The router itself, below whatever started it."""
        if self.launched is not None:
            return [self.launched]
        if self.process is None or self.process.poll() is not None:
            return []
        if self.foreign is None:
            return [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children] or [self.process.pid]

    def ended(self) -> bool:
        """Whether the process that was started has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def cpu_seconds(self) -> float:
        """User and system time of the router so far."""
        total = 0.0
        for pid in self._router_pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def resident_bytes(self) -> int:
        """Resident memory of the router."""
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for pid in self._router_pids()
        )

    def stop(self, *, kill: bool = False, timeout: float = 15.0) -> int:
        """End it; returns its exit code."""
        if self.launched is not None:
            return self._stop_launched(self.launched, kill=kill, timeout=timeout)
        if self.process is None:
            return 0
        for pid in self._router_pids():
            try:
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
            except ProcessLookupError:
                continue
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout)
            raise LabError(f"the router of host {self.host.number} did not stop within {timeout:.0f} s") from None
        finally:
            self.process = None

    def forget(self) -> None:
        """Remove what a stopped router left on its host: what it kept, and its bridge with all ports."""
        for path in self.directory.glob("weave*"):
            if path.name != "weaver.log":
                path.unlink()
        (self.directory / "restart.sentinel").unlink(missing_ok=True)
        for link in ("vxlan-6784", "weave", "vethwe-bridge", "vethwe-sleeve"):
            run("ip", "-n", self.host.namespace, "link", "del", link, check=False)

    def _stop_launched(self, pid: int, *, kill: bool, timeout: float) -> int:
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(f"router {self.host.number} is gone", lambda: not _alive(pid), timeout)
            (self.directory / "weaver.pid").unlink(missing_ok=True)
        else:
            self.weave("stop")
        self.launched = None
        return 0

    # --- asking it ---

    def get(self, path: str, accept: str = "*/*") -> str:
        """A control request's answer. Raises OSError while the router does not listen."""
        return self.ask("GET", path, accept=accept).text

    def post(self, path: str, body: str = "") -> str:
        """A control request that changes something."""
        return self.ask("POST", path, body=body).text

    def ask(
        self, method: str, path: str, *, body: str = "", accept: str = "*/*", timeout: float = _ANSWER_LIMIT
    ) -> Answer:
        """A control request; `timeout` in seconds, since some answers wait for other peers. Raises OSError."""
        connection = _HostConnection(self.host.namespace, timeout)
        headers = {"Accept": accept, "Content-Type": "application/x-www-form-urlencoded"}
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())
        finally:
            connection.close()

    def demand(self, method: str, path: str, *, timeout: float = _WAITING_LIMIT) -> str:
        """A control request that has to succeed; its answer. Raises LabError with what was answered instead."""
        try:
            answer = self.ask(method, path, timeout=timeout)
        except TimeoutError as error:
            raise LabError(f"host {self.host.number}: {method} {path}: no answer within {timeout:.0f} s") from error
        if not 200 <= answer.status < 300:
            raise LabError(f"host {self.host.number}: {method} {path}: {answer.status} {answer.text.strip()}")
        return answer.text

    def prime(self, *, timeout: float = _WAITING_LIMIT) -> None:
        """Wait until there is a ring."""
        self.demand("GET", "/ring", timeout=timeout)

    def allocate(self, ident: str, subnet: str = "", *, timeout: float = _WAITING_LIMIT) -> str:
        """An address of the subnet (or the default one) for an identifier, with its prefix length."""
        return self.demand("POST", f"/ip/{ident}/{subnet}".rstrip("/"), timeout=timeout)

    def claim(self, ident: str, cidr: str) -> None:
        """This very address for an identifier."""
        self.demand("PUT", f"/ip/{ident}/{cidr}")

    def owned(self) -> dict[str, list[str]]:
        """Which identifier has which addresses here."""
        rows = json.loads(self.demand("GET", "/ip"))["owned"] or []
        return {row["containerid"]: sorted(row["addrs"]) for row in rows}

    def add_name(self, hostname: str, ident: str, address: str) -> None:
        """Register a name for an identifier's address."""
        self.demand("PUT", f"/name/{ident}/{address}?{urllib.parse.urlencode({'fqdn': hostname})}")

    def name_server(self) -> str:
        """The address that serves names, once it does: it may come from the ring."""
        wait_until("names are served", lambda: self.ask("GET", "/dns-address").status == 200, _WAITING_LIMIT)
        return self.get("/dns-address")

    def remove_peer(self, peer: str) -> str:
        """Take over a dead peer's addresses; what the router says of it."""
        return self.demand("DELETE", f"/peer/{peer}")

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in self.get("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise LabError(f"host {self.host.number} has no metric {name}")

    def report(self) -> dict[str, Any]:
        """The whole report."""
        return dict(json.loads(self.get("/report", accept="application/json")))

    def established(self) -> set[str]:
        """Names of peers with an established connection."""
        rows = self.report()["Router"]["Connections"] or []
        return {row["Info"].split()[-1].partition("(")[0] for row in rows if row["State"] == "established"}

    def answers(self) -> bool:
        """Whether the control API is up."""
        try:
            self.get("/status")
        except OSError:
            return False
        return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class _HostConnection(http.client.HTTPConnection):
    """HTTP to the loopback of another namespace: the socket is made there, and used from here."""

    def __init__(self, namespace: str, timeout: float) -> None:
        super().__init__("127.0.0.1", 6784, timeout=timeout)
        self._namespace = namespace

    def connect(self) -> None:
        self.sock = socket_in(self._namespace)
        self.sock.settimeout(self.timeout)
        self.sock.connect(("127.0.0.1", 6784))


def socket_in(namespace: str, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
    """A socket of a namespace: a child enters it, makes the socket and hands it over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    program = (
        "import socket,sys;"
        f"s=socket.socket({int(family)},{int(kind)});"
        "socket.send_fds(socket.socket(fileno=int(sys.argv[1])),[b'x'],[s.fileno()])"
    )
    command = [*inside(namespace), sys.executable, "-I", "-S", "-c", program, str(theirs.fileno())]
    with ours, theirs:
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=20, check=False)
        if done.returncode:
            raise LabError(f"no socket in {namespace}: {done.stderr.decode().strip()}")
        ours.settimeout(5)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptors[0])


def wait_until(what: str, holds: Callable[[], bool], timeout: float, interval: float = 0.2) -> float:
    """Seconds until something holds. Raises LabError, naming it, where it does not in time."""
    begun = time.monotonic()
    while time.monotonic() - begun < timeout:
        if holds():
            return time.monotonic() - begun
        time.sleep(interval)
    raise LabError(f"after {timeout:.0f} s still not: {what}")


def weave(host: Host, *arguments: str, check: bool = True) -> str:
    """Our command line, in a host."""
    return run(*inside(host.namespace, sys.executable, "-m", "weave_py.cli", *arguments), check=check)
