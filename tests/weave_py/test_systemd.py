"""The unit and its environment file, as far as they can be tried without systemd, and what the router tells it."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from host.attach import attach
from tests.namespaces import namespace, within
from weave_py.settings import check, parse
from weave_py.systemd import notify, watchdog_interval

UNIT = Path(__file__).parents[2] / "deploy/systemd/weave.service"
START = 20.0


def values(key: str) -> list[str]:
    """The values of a setting of the unit."""
    return re.findall(rf"(?m)^{key}=(.*)$", UNIT.read_text())


def environment() -> dict[str, str]:
    """What the unit and the example file give the router."""
    (line,) = values("Environment")
    name, _, value = line.strip('"').partition("=")
    found = {name: value}
    for line in (UNIT.parent / "weave.env").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name] = value.strip('"')
    return found


def command(given: dict[str, str]) -> list[str]:
    """The words of ExecStart: a variable without braces is several words."""
    (line,) = values("ExecStart")
    return [
        part for word in shlex.split(line) for part in (given[word[1:]].split() if word.startswith("$") else [word])
    ]


def test_the_unit_starts_what_the_router_understands() -> None:
    program, *words = command(environment())
    assert Path(program).name == "weaver"
    settings = check(*parse(words), environment={})
    assert settings.peers == ("192.168.1.11", "192.168.1.12")
    assert settings.given["ipalloc-range"] == "10.32.0.0/12"
    assert settings.socket_path == "/run/weave/weaver.sock"
    assert (values("Type"), values("KillMode"), values("Restart")) == (["notify"], ["mixed"], ["always"])


def test_systemd_itself_has_no_complaint(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "weave.service"
    unit.write_text(UNIT.read_text().replace("/opt/weave/bin/weaver", "/bin/true"))
    words = ["systemd-analyze", "verify", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "weave.service" not in done.stderr


@pytest.fixture
def notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(START)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_with_the_rights_of_the_unit(notices: socket.socket, tmp_path: Path) -> None:
    """The router starts, gives signs of life, and finds containers, with no more than the unit leaves it."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    (rights,) = values("CapabilityBoundingSet")
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in rights.split())
    limited = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}"]
    script = "from host.containers import scan; print(*(one.ident for one in scan('weave')))"
    with namespace() as host, namespace() as container:
        inside = ["ip", "netns", "exec", host, *limited, sys.executable]
        flags = ["--name", "::1", "--no-dns", "--db-prefix", str(tmp_path / "weave")]
        with subprocess.Popen(
            [*inside, "-P", "-m", "weave_py.weaver", *flags], env={**os.environ, "WATCHDOG_USEC": "200000"}
        ) as router:
            try:
                told = [notices.recv(100) for _ in range(4)]
                assert sorted(set(told)) == [b"READY=1", b"WATCHDOG=1"]
                within(host, lambda: attach(container, [ip_interface("10.32.0.9/12")]))
                found = subprocess.run([*inside, "-c", script], capture_output=True, text=True, timeout=60, check=True)
                assert found.stdout.split() == ["weave:expose", container]
            finally:
                router.terminate()
        assert router.returncode == 0


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/socket")
    notify("READY=1")


@pytest.mark.parametrize(
    ("limit", "process", "interval"),
    [
        (None, None, None),
        ("0", None, None),
        ("x", None, None),
        ("60000000", None, 30.0),
        ("60000000", "1", None),
        ("60000000", str(os.getpid()), 30.0),
    ],
)
def test_how_often_a_sign_of_life_is_due(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, process: str | None, interval: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", limit), ("WATCHDOG_PID", process)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == interval


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"\0weave-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(START)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        notify("READY=1")
        assert sock.recv(100) == b"READY=1"
