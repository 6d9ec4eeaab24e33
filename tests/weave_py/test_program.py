"""The router's program, run for real: refusals, start, signals, what it tells systemd and its log."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.router import wait_until
from tests.namespaces import namespace, run
from tests.weave_py import captures

START = 20.0


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weave_py.weaver", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def test_weaver_refuses_in_the_reference_form() -> None:
    done = program("--nosuchflag")
    assert done.returncode == 125
    assert done.stderr == "flag provided but not defined: --nosuchflag\nSee 'weave --help'.\n"
    done = program("--min-protocol-version", "3")
    assert done.returncode == 1
    assert re.fullmatch(r"FATA: \S+ \S+ --min-protocol-version must be in range \[1,2\]\n", done.stderr)
    done = program("1.2.3.4:x-y")
    assert done.returncode == 1
    assert done.stderr.endswith(' invalid peer name "1.2.3.4:x-y", should be host[:port]\n')
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, "weave 0.1.0\n")
    done = program("--print-peer-name", "--name", "::5")
    assert (done.returncode, done.stdout) == (0, "00:00:00:00:00:05\n")
    done = program("--help")
    assert done.returncode == 125
    assert "--conn-limit" in done.stderr


class Started:
    """A router in a namespace of its own; its log is read as it comes."""

    def __init__(self, place: str, directory: Path, *flags: str) -> None:
        self.log_path = directory / "log"
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(directory / "notify"))
        self.notices.settimeout(START)
        command = ["ip", "netns", "exec", place, sys.executable, "-P", "-m", "weave_py.weaver"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--name", "::1", "--nickname", "host1", "--db-prefix", str(directory / "weave"), *flags],
                stderr=log,
                cwd=directory,
                env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.notices.close()


@pytest.fixture
def place() -> Iterator[str]:
    with namespace() as name:
        yield name


def test_start_and_stop(place: str, tmp_path: Path) -> None:
    """The log's lines in the reference's order, readiness to systemd, stacks on SIGQUIT, the end on SIGTERM."""
    # In the way of every module of this name, were the current directory looked at.
    (tmp_path / "mesh.py").write_text("raise SystemExit('imported from the current directory')")
    flags = ("--http-addr", "127.0.0.1:6784", "--status-addr", "127.0.0.1:6782", "--password", "hunter2x")
    router = Started(place, tmp_path, *flags, "--ipalloc-range", "10.32.0.0/12", "no.such.host.invalid")
    try:
        assert router.notices.recv(100) == b"READY=1"
        assert "hunter2x" not in Path(f"/proc/{router.process.pid}/cmdline").read_text()
        wait_until("the unknown name is said", lambda: "lookup no.such.host.invalid" in router.log, START)
        router.process.send_signal(signal.SIGQUIT)
        wait_until("the stacks are printed", lambda: "Current thread" in router.log and "<Task" in router.log, START)
        assert router.process.poll() is None
        router.process.send_signal(signal.SIGTERM)
        assert router.notices.recv(100) == b"STOPPING=1"
        assert router.process.wait(START) == 0
    finally:
        router.close()
    theirs = captures.text("log.encrypted-host1")
    expected = [
        f"Command line options: map[db-prefix:{tmp_path}/weave http-addr:127.0.0.1:6784 ipalloc-range:10.32.0.0/12 "
        "name:::1 nickname:host1 password:<redacted> status-addr:127.0.0.1:6782]",
        "weave  0.1.0",
        "Bridge type is bridge",
        "Communication between peers via untrusted networks is encrypted.",
        "Our name is 00:00:00:00:00:01(host1)",
        "Launch detected - using supplied peer list: [no.such.host.invalid]",
        "[allocator 00:00:00:00:00:01] No valid persisted data",
        "[allocator 00:00:00:00:00:01] Initialising via deferred consensus",
        "Sniffing traffic on vethwe-sleeve (via tap)",
        "Listening for HTTP control messages on 127.0.0.1:6784",
        "Listening for status+metrics requests on 127.0.0.1:6782",
    ]
    lines = [re.sub(r"^\w{4}: \S+ \S+ ", "", line) for line in router.log.splitlines()]
    assert lines[: len(expected)] == expected
    same = [line for line in expected if line in theirs]
    assert len(same) >= 5, "most lines are the reference's own"
    assert router.log.endswith(" === received SIGINT/SIGTERM ===\n*** exiting\n")
    assert "hunter2x" not in router.log


@pytest.fixture
def silent_resolver(place: str) -> Iterator[str]:
    """A namespace whose name server never answers."""
    directory = Path("/etc/netns") / place
    directory.mkdir(parents=True)
    (directory / "resolv.conf").write_text("nameserver 10.1.1.1\n")
    try:
        run("ip", "-n", place, "link", "add", "u0", "type", "veth", "peer", "name", "u1")
        for interface in ("u0", "u1"):
            run("ip", "-n", place, "link", "set", interface, "up")
        run("ip", "-n", place, "addr", "add", "10.1.1.2/24", "dev", "u0")
        run("ip", "-n", place, "neigh", "add", "10.1.1.1", "lladdr", "02:00:00:00:00:09", "dev", "u0")
        yield place
    finally:
        shutil.rmtree(directory)


def test_a_silent_resolver_delays_neither_start_nor_stop(silent_resolver: str, tmp_path: Path) -> None:
    router = Started(silent_resolver, tmp_path, "slow.example.org")
    try:
        assert router.notices.recv(100) == b"READY=1"
        time.sleep(0.2)
        router.process.send_signal(signal.SIGTERM)
        # The resolver itself would give up after five seconds at least.
        assert router.process.wait(4) == 0
    finally:
        router.close()
    assert "lookup" not in router.log


def test_killed_at_any_moment(place: str, tmp_path: Path) -> None:
    """Whatever a killed router has made by then, the next one starts."""
    for number, moment in enumerate((0.05, 0.15, 0.25, 0.3, 0.35, 0.4, 0.5)):
        directory = tmp_path / str(number)
        directory.mkdir()
        router = Started(place, directory, "--socket", str(tmp_path / "weaver.sock"))
        time.sleep(moment)
        router.close()
        assert "FATA" not in router.log
    router = Started(place, tmp_path, "--socket", str(tmp_path / "weaver.sock"))
    try:
        assert router.notices.recv(100) == b"READY=1", router.log
    finally:
        router.close()
