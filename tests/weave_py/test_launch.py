"""`weave launch`, `stop` and `reset` with a real router in a namespace, and with the system's service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.views import links, ruleset
from tests.namespaces import namespace, run
from weave_py import launch
from weave_py.client import CliError


@dataclass(frozen=True, slots=True)
class Place:
    """A host, and where its router keeps what it has."""

    host: str
    directory: Path

    def weave(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """(exit code, output, errors) of a command on the host."""
        command = ["ip", "netns", "exec", self.host, sys.executable, "-m", "weave_py.cli", *words]
        own = {"WEAVE_RUN_DIR": str(self.directory / "run"), "WEAVE_LOG_DIR": str(self.directory / "log")}
        env = {**os.environ, **own, **environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=env, check=False)
        return done.returncode, done.stdout, done.stderr

    def launch(self, *words: str, **environment: str) -> tuple[int, str, str]:
        state = ("--db-prefix", str(self.directory / "weave"), "--name", "::1", "--no-dns")
        return self.weave("launch", *state, *words, **environment)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with namespace() as host:
        made = Place(host, tmp_path)
        yield made
        made.weave("stop")


def test_launch_stop_and_reset(place: Place) -> None:
    before = ruleset(place.host)
    code, output, errors = place.launch("--password", "hunter2x", "192.0.2.9")
    assert (code, errors) == (0, "")
    command = Path(f"/proc/{output.strip()}/cmdline").read_text()
    assert "hunter2x" not in command
    assert "--ipalloc-range\x0010.32.0.0/12" in command
    assert place.launch() == (3, "", "weave is already running; you can stop it with 'weave stop'.\n")
    assert place.weave("stop") == (0, "", "")
    assert place.weave("stop") == (0, "", "Weave is not running (ignore on Kubernetes).\n")
    assert "weave" in links(place.host)
    assert place.weave("reset")[0] == 1
    assert place.launch("--resume")[0] == 0
    assert place.weave("status", "targets") == (0, "192.0.2.9\n", "")
    assert place.weave("reset") == (0, "", "")
    assert set(links(place.host)) == {"lo"}
    assert ruleset(place.host) == before
    assert not list(place.directory.glob("weavedata*"))
    assert not (place.directory / "run").exists()
    assert place.weave("reset", "--force") == (0, "", "")


def test_a_route_in_the_way(place: Place) -> None:
    run("ip", "-n", place.host, "route", "add", "10.0.0.0/8", "dev", "lo")
    message = "ERROR: Default --ipalloc-range 10.32.0.0/12 overlaps with existing route on host.\n"
    assert place.launch() == (1, "", message)
    code, _, errors = place.launch("--ipalloc-range=10.32.0.0/12", "--ipalloc-default-subnet", "10.33.0.0/16")
    assert code == 0
    assert errors == (
        "WARNING: Network 10.32.0.0/12 overlaps with existing route 10.0.0.0/8 on host\n"
        "WARNING: Network 10.33.0.0/16 overlaps with existing route 10.0.0.0/8 on host\n"
    )


def test_the_bridge_of_docker_is_used(place: Place) -> None:
    run("ip", "-n", place.host, "link", "add", "docker0", "type", "bridge")
    run("ip", "-n", place.host, "addr", "add", "172.17.0.1/16", "dev", "docker0")
    code, output, _ = place.launch()
    assert code == 0
    words = Path(f"/proc/{output.strip()}/cmdline").read_text().split("\0")
    assert words[words.index("--docker-bridge") + 1] == "docker0"
    assert words[words.index("--dns-listen-address") + 1] == "172.17.0.1:53"


def test_a_router_that_ends_at_once(place: Place) -> None:
    code, output, errors = place.launch("--conn-limit", "-1")
    assert (code, output) == (1, "")
    assert "--conn-limit -1 is out of range" in errors
    assert errors.count("\n") == 1


def test_the_service_is_stopped_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where systemd runs the router, `stop` asks systemd; a stub stands for it here."""
    stub, said = tmp_path / "systemctl", tmp_path / "said"
    stub.write_text(f'#!/bin/sh\necho "$*" >> {said}\ncase $1 in is-active) exit 0;; esac\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WEAVE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(launch, "_SYSTEMD", tmp_path)
    assert launch.stop() == 0
    assert said.read_text().splitlines() == ["is-active --quiet weave.service", "stop weave.service"]
    stub.write_text("#!/bin/sh\necho 'no such unit' >&2\ncase $1 in stop) exit 5;; esac\n")
    with pytest.raises(CliError, match=r"^systemctl stop .*: no such unit$"):
        launch.stop()
    assert capsys.readouterr().out == ""
