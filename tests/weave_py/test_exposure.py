"""A router that exposes its host: what it keeps over death and reboot, and the rules that come back."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from host.bridge import ensure_bridge
from host.expose import add_address
from host.rules import Plan
from lab.router import wait_until
from tests.host.views import addresses, ruleset
from tests.namespaces import namespace, run, within
from tests.vectors import ROOT
from weave_py.exposure import ExposeError, Exposure
from weave_py.store import Store

START = 20.0
# The issue of a flushed host: its rules are back by then, in seconds.
RESTORED = 20.0


@dataclass(slots=True)
class Place:
    """A host with a router that can be killed and started again."""

    host: str
    directory: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self, *flags: str) -> None:
        state = ["--db-prefix", str(self.directory / "weave"), "--socket", str(self.directory / "socket")]
        command = ["ip", "netns", "exec", self.host, sys.executable, "-P", "-m", "weave_py.weaver", "--name", "::1"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, "--no-dns", *state, *flags], stderr=log)
        wait_until("the router answers", lambda: self.weave("status")[0] == 0, START)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def weave(self, *words: str) -> tuple[int, str, str]:
        """(exit code, output, errors) of a command on the host."""
        env = {**os.environ, "WEAVE_HTTP_ADDR": str(self.directory / "socket")}
        command = ["ip", "netns", "exec", self.host, sys.executable, "-m", "weave_py.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        return done.returncode, done.stdout, done.stderr

    def exposed(self) -> dict[str, bool]:
        """What the router says that it exposes, and whether with NAT."""
        report = json.loads(self.weave("report")[1])
        return {row["Address"]: row["Masquerade"] for row in report["Exposure"]["Addresses"]}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with namespace() as host:
        made = Place(host, tmp_path)
        yield made
        made.kill()


def test_exposed_over_death_and_reboot(place: Place) -> None:
    place.start()
    assert place.weave("expose", "10.32.0.1/12") == (0, "10.32.0.1\n", "")
    assert place.weave("expose", "192.168.200.1/24", "--without-masquerade") == (0, "192.168.200.1\n", "")
    both = {"10.32.0.1/12": True, "192.168.200.1/24": False}
    assert place.exposed() == both
    rules = ruleset(place.host)
    assert "ip saddr 10.32.0.0/12 ip daddr != 10.32.0.0/12" in rules
    assert "192.168.200" not in rules
    place.kill()
    # A reboot takes the links and the rules.
    run("ip", "-n", place.host, "link", "del", "weave")
    run("ip", "netns", "exec", place.host, "nft", "flush", "ruleset")
    place.start()
    assert place.exposed() == both
    assert addresses(place.host, "weave") == set(both)
    assert ruleset(place.host) == rules
    assert place.weave("hide", "10.32.0.1/12", "192.168.200.1/24") == (0, "10.32.0.1 192.168.200.1\n", "")
    assert place.exposed() == {}
    assert addresses(place.host, "weave") == set()
    assert "masquerade" not in ruleset(place.host)


def test_what_weave_net_exposed_is_taken_over(place: Place) -> None:
    within(place.host, lambda: ensure_bridge("weave", "00:00:00:00:00:01", 1400))
    within(place.host, lambda: add_address("weave", IPv4Interface("10.32.0.1/12")))
    place.start()
    assert place.exposed() == {"10.32.0.1/12": True}
    assert "masquerade" in ruleset(place.host)


def test_flushed_rules_are_restored(place: Place) -> None:
    place.start("--http-addr", "127.0.0.1:6784")
    place.weave("expose", "10.32.0.1/12")
    before = ruleset(place.host)
    assert "6784" in before
    run("ip", "netns", "exec", place.host, "nft", "flush", "ruleset")
    flushed = time.monotonic()
    wait_until("the rules are back", lambda: ruleset(place.host) == before, RESTORED)
    assert time.monotonic() - flushed < RESTORED
    said = "Reloading after iptables flush"
    assert said in (ROOT / "api/log.iptables-flush-recovery.txt").read_text()
    wait_until("it is said", lambda: said in place.log, START)


def test_the_bridge_of_docker_may_come_later(place: Place) -> None:
    place.start("--docker-bridge", "docker0")
    assert "docker0" not in ruleset(place.host)
    run("ip", "-n", place.host, "link", "add", "docker0", "type", "bridge")
    run("ip", "-n", place.host, "addr", "add", "172.17.0.1/16", "dev", "docker0")
    wait_until("it is seen", lambda: 'iifname "docker0" ip daddr 172.17.0.1' in ruleset(place.host), RESTORED)
    mac = run("ip", "-n", place.host, "-o", "link", "show", "docker0").split("link/ether ")[1].split()[0]
    run("ip", "-n", place.host, "link", "add", "p", "address", "00:00:00:00:00:02", "type", "veth", "peer", "name", "q")
    run("ip", "-n", place.host, "link", "set", "p", "master", "docker0")
    assert mac in run("ip", "-n", place.host, "link", "show", "docker0")


def test_an_address_for_names_is_no_exposure(tmp_path: Path) -> None:
    """Names are served on it over a restart; exposed and hidden again, it stays for them."""

    async def life(steps: str) -> None:
        store = Store(str(tmp_path / "weave"))
        exposure = Exposure(Plan("weave"), store, logging.getLogger("test"))
        await exposure.start()
        if "serve" in steps:
            await exposure.serve_names("10.32.0.9/12")
            await exposure.serve_names("10.32.0.1/12")
        if "expose" in steps:
            await exposure.expose("10.32.0.1/12", masquerade=True)
            assert "drop" not in ruleset(host)
            stays = "10.32.0.1/12 stays on the bridge: names are served there"
            assert await exposure.hide("10.32.0.1/12") == stays
            with pytest.raises(ExposeError, match="is not exposed: names are served there") as raised:
                await exposure.hide("10.32.0.1/12")
            assert raised.value.status == 404
        assert exposure.report()["NamesAddress"] == "10.32.0.1/12"
        assert exposure.report()["Addresses"] == []
        assert addresses(host, "weave") == {"10.32.0.1/12"}
        assert "10.32.0.0/12 is not exposed" in ruleset(host)
        if "withdraw" in steps:
            await exposure.withdraw_names()
            assert exposure.report()["NamesAddress"] == ""
            assert addresses(host, "weave") == set()
            assert "is not exposed" not in ruleset(host)
            await exposure.serve_names("10.32.0.1/12")
        store.close()

    with namespace() as host:
        within(host, lambda: ensure_bridge("weave", "00:00:00:00:00:01", 1400))
        for steps in ("serve", "", "expose", "", "withdraw", ""):
            within(host, lambda steps=steps: asyncio.run(life(steps)))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("request_line", "status", "text"),
    [
        ("POST /expose/10.32.0.200/33", 400, "unable to parse ip addr: invalid CIDR address: 10.32.0.200/33"),
        (
            "POST /expose/10.40.0.200/12?skipNAT=maybe",
            400,
            'unable to parse skipNAT option: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
        ("POST /expose/10.32.0.200/", 404, "404 page not found"),
        ("DELETE /expose/x/12", 400, "unable to parse ip addr: invalid CIDR address: x/12"),
        ("DELETE /expose/10.32.0.200/12", 204, ""),
    ],
)
def test_bad_requests_as_captured(place: Place, request_line: str, status: int, text: str) -> None:
    place.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(START)
        sock.connect(str(place.directory / "socket"))
        sock.sendall(f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: sock.recv(4096), b"")).decode().partition("\r\n\r\n")
    assert (head.split()[1], body) == (str(status), f"{text}\n" if text else "")
    assert place.exposed() == {}
