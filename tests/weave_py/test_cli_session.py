"""The captured session of commands with a real router of ours, and what its host looks like meanwhile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.router import wait_until
from tests.host.views import addresses, ruleset
from tests.namespaces import namespace, run
from tests.weave_py import captures

START = 20.0


@dataclass(slots=True)
class Place:
    """A host with a router that has a ring, and a container."""

    host: str
    container: str
    directory: Path

    def weave(self, *words: str) -> tuple[int, str, str]:
        """(exit code, output, errors) of a command on the host."""
        own = {"WEAVE_RUN_DIR": str(self.directory / "run"), "WEAVE_LOG_DIR": str(self.directory / "log")}
        command = ["ip", "netns", "exec", self.host, sys.executable, "-m", "weave_py.cli", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=90, env={**os.environ, **own}, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def ok(self, *words: str) -> str:
        code, output, errors = self.weave(*words)
        assert (code, errors) == (0, ""), errors
        return output


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with namespace() as host, namespace() as container:
        made = Place(host, container, tmp_path)
        yield made
        made.weave("stop")


def launch(place: Place, *flags: str) -> None:
    state = ("--db-prefix", str(place.directory / "weave"), "--name", "::1", "--nickname", "host1")
    place.ok("launch", *state, "--ipalloc-init", "consensus=1", *flags)


def test_the_captured_session(place: Place) -> None:
    launch(place, "--dns-listen-address", "127.0.0.1:53")
    assert place.ok("prime") == ""
    # Somebody had the first address of the range then.
    assert place.ok("attach", place.container) == "10.32.0.1\n"
    for words, output, code in captures.session("dns-args", "expose", "hide", "rmpeer", "bridge-type"):
        found, shown, errors = place.weave("--local", *words.split())
        assert (words, found, shown, errors) == (words, code, output, "")
        if words == "expose ip:192.168.200.1/24 --without-masquerade":
            both = {"10.32.0.2/12", "10.33.7.1/24", "192.168.200.1/24"}
            assert addresses(place.host, "weave") == both
            assert "192.168.200" not in ruleset(place.host)
            assert place.ok("dns-lookup", "gw") == "10.33.7.1\n"
            assert place.ok("status", "dns").split()[:3] == ["gw", "10.33.7.1", "weave:expose"]
    assert addresses(place.host, "weave") == set()
    assert "masquerade" not in ruleset(place.host)
    assert place.ok("dns-lookup", "gw") == ""


def test_a_container_and_its_names(place: Place) -> None:
    """Names are served on the bridge: the container asks there, and reaches nothing else of the host."""
    launch(place)
    assert place.ok("prime") == ""
    wait_until("names are served", lambda: place.weave("dns-args")[1].startswith("--dns=10.32.0."), START)
    server = place.ok("dns-args").split()[0].removeprefix("--dns=")
    assert place.ok("hide") == "\n"
    address = place.ok("attach", place.container).strip()
    place.ok("dns-add", place.container, "-h", "web.weave.local")
    place.ok("dns-add", "192.0.2.7", "-h", "printer.weave.local")
    assert place.ok("dns-lookup", "web") == f"{address}\n"
    inside = ("ip", "netns", "exec", place.container)
    dig = run(*inside, "dig", "+short", "+time=2", f"@{server}", "printer.weave.local", check=False)
    assert dig == "192.0.2.7\n"
    ping = (*inside, "ping", "-c", "1", "-W", "1", server)
    assert "1 received" not in run(*ping, check=False)
    assert place.ok("expose") == f"{server}\n"
    assert "1 received" in run(*ping)
    assert place.ok("hide") == f"{server}\n"
    assert "1 received" not in run(*ping, check=False)
    assert place.ok("dns-lookup", "web") == f"{address}\n", "names are served on"
    assert place.ok("detach", place.container) == f"{address}\n"
    assert place.ok("dns-lookup", "web") == ""
    assert place.ok("dns-lookup", "printer") == "192.0.2.7\n"


def test_what_a_router_refuses_is_said_in_its_words(place: Place) -> None:
    launch(place, "--no-dns")
    for words, errors in (
        (("attach", "net:172.30.0.0/24"), "range 172.30.0.0/24 out of bounds: 10.32.0.0/12\n"),
        (("attach", "net:10.33.1.5/24"), "invalid subnet - bits after network prefix are not all zero: 10.33.1.5/24\n"),
        (("attach", "net:10.33.1.0/31"), "invalid subnet - smaller than minimum size 4: 10.33.1.0/31\n"),
        (("expose", "net:nonsense"), "invalid address 'net:nonsense': give a subnet, as in net:10.40.0.0/24\n"),
    ):
        more = [place.container] if words[0] == "attach" else []
        assert place.weave(*words, *more) == (1, "", errors)
    assert place.ok("dns-args") == ""


def test_reset_leaves_nothing(place: Place) -> None:
    launch(place)
    place.ok("prime")
    place.ok("attach", place.container)
    place.ok("expose")
    place.ok("reset")
    assert ruleset(place.host) == ""
    assert set(place.directory.glob("**/*")) <= {place.directory / "log", place.directory / "log/weaver.log"}
    assert run("ip", "-n", place.container, "-o", "link").count("\n") == 1
