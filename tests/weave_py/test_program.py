"""Flags, the control API and the programs themselves, run for real."""

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.vectors import ROOT
from weave_py import http, launch
from weave_py.log import Formatter, options_line
from weave_py.settings import FlagError, SettingsError, check, parse

API = ROOT / "api"


def bad_flags() -> Iterator[Any]:
    """(arguments, expected text) of the captured refusals."""
    for block in (API / "bad-flags.txt").read_text().split("### weaver ")[1:]:
        command, _, output = block.partition("\n")
        yield pytest.param(command.split(), output.strip(), id=command)


@pytest.mark.parametrize(("arguments", "output"), list(bad_flags()))
def test_bad_flags_are_refused_as_by_the_reference(arguments: list[str], output: str) -> None:
    if output.startswith("FATA"):
        expected = re.sub(r"^FATA: \S+ \S+ ", "", output)
        with pytest.raises(SettingsError) as caught:
            check(*parse(arguments), {})
        assert str(caught.value) == expected
    else:
        with pytest.raises(FlagError) as refused:
            parse(arguments)
        assert f"{refused.value}\nSee 'weave --help'." == output


def settings(*arguments: str, **environment: str) -> Any:
    return check(*parse(arguments), environment)


def test_flag_forms() -> None:
    for form in (["--port", "7000"], ["--port=7000"], ["-port=7000"]):
        assert settings(*form).port == 7000
    assert settings("--no-discovery").discovery is False
    assert settings("--no-discovery=false", "a", "b:7000").peers == ("a", "b:7000")
    assert settings("--", "--odd").peers == ("--odd",)
    with pytest.raises(FlagError, match="flag needs an argument: --port"):
        parse(["--port"])
    with pytest.raises(FlagError, match='invalid boolean value "maybe"'):
        parse(["--no-dns=maybe"])


def test_passwords_and_their_precedence(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("new\n\nold\n")
    assert settings("--password-file", str(file)).passwords == (b"new", b"old")
    assert settings("--password=a", WEAVE_PASSWORD="b").passwords == (b"a",)
    assert settings(WEAVE_PASSWORD="b").passwords == (b"b",)
    assert settings(WEAVE_PASSWORD="").passwords == ()
    made = settings("--password=topsecret")
    assert "topsecret" not in repr(made)
    assert "topsecret" not in options_line(dict(made.given))
    file.write_text("\n")
    with pytest.raises(SettingsError, match="holds no password"):
        settings("--password-file", str(file))
    with pytest.raises(SettingsError, match="unable to read"):
        settings("--password-file", str(tmp_path / "none"))


def test_what_is_missing_is_named_once() -> None:
    made = settings("--ipalloc-range", "10.32.0.0/12", "--ipalloc-init", "consensus=3", "--no-dns", "--plugin")
    assert made.missing == ("address allocation", "the Docker plugin")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "65535"], "--port 65535 is out of range"),
        (["--mtu", "99999"], "choose one from 576"),
        (["--mtu", "big"], "is no number"),
        (["--conn-limit", "-1"], "at least 0"),
        (["--resume", "10.0.0.1"], "You must not specify an initial peer list in conjunction with --resume"),
        (["--token", "x"], "the discovery service is gone"),
        (["--name", "::"], "invalid peer name format"),
        (["--ipalloc-range", "10.0.0.0/8", "--ipalloc-init", "observer=1"], "observer mode takes no parameter"),
        (["--ipalloc-range", "10.0.0.0/8", "--ipalloc-init", "consensus=x"], "bad consensus parameter: x"),
    ],
)
def test_values_that_make_no_sense(arguments: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(text)):
        settings(*arguments)


def test_log_lines() -> None:
    line = Formatter().format(logging.LogRecord("weave", logging.WARNING, "", 1, "a %s", ("b",), None))
    assert re.fullmatch(r"WARN: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} a b", line)
    sample = (API / "log.uniform-3-host1.txt").read_text().splitlines()[1]
    assert re.fullmatch(r"INFO: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} weave  2.8.2", sample)


class FakeControl:
    """A router for the API: its report is a capture."""

    def __init__(self) -> None:
        self.document = json.loads((API / "report.3-nodes-ready.json").read_text())
        self.calls: list[Any] = []

    def report(self) -> dict[str, Any]:
        return dict(self.document)

    async def connect(self, peers: list[str], replace: bool) -> list[str]:
        self.calls.append(("connect", peers, replace))
        return [f"bad {peer}" for peer in peers if peer.startswith("bad")]

    def forget(self, peers: list[str]) -> None:
        self.calls.append(("forget", peers))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_api() -> None:
    control, port = FakeControl(), free_port()
    api = http.Api(control, logging.getLogger("test"))
    runner = await http.listen(api.application(read_only=False), f"127.0.0.1:{port}")
    reader_port = free_port()
    reader = await http.listen(api.application(read_only=True), f"127.0.0.1:{reader_port}")
    base, read_only = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{reader_port}"
    try:
        async with aiohttp.ClientSession() as session:

            async def ask(method: str, url: str, **more: Any) -> tuple[int, str, Any]:
                async with session.request(method, url, **more) as response:
                    return response.status, await response.text(), response.headers

            status, text, headers = await ask("GET", f"{base}/status")
            assert status == 200
            assert headers["Content-Type"] == "text/plain; charset=utf-8"
            head = "        Version: 2.8.2 (version check update disabled)\n\n        Service: router\n"
            assert text.startswith(head)
            for part in ("connections", "peers", "targets", "dns", "ipam"):
                assert (await ask("GET", f"{base}/status/{part}"))[0] == 200
            status, text, headers = await ask("GET", f"{base}/status/nosuch")
            assert (status, text) == (404, "404 page not found\n")
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert (await ask("GET", f"{base}/status/"))[0] == 404
            assert (await ask("HEAD", f"{base}/status"))[0] == 405
            assert (await ask("POST", f"{base}/status"))[:2] == (405, "")
            status, text, headers = await ask("GET", f"{base}/report", headers={"Accept": "application/json"})
            assert headers["Content-Type"].startswith("application/json")
            assert json.loads(text)["Router"]["NickName"] == "host1"
            assert (await ask("GET", f"{base}/report"))[:2] == (400, "error: must supply one format parameter\n")
            for template, expected in (
                ("{{.Version}}", (200, "2.8.2")),
                ("{{", (400, "template: format:1: unclosed action\n")),
                ("{{.Router.Nope}}", (500, "error during template execution\n")),
            ):
                assert (await ask("GET", f"{base}/report", params={"format": template}))[:2] == expected
            form = {"peer": "10.0.0.1", "replace": "true"}
            assert (await ask("POST", f"{base}/connect", data=form))[:2] == (200, "")
            assert (await ask("POST", f"{base}/connect?peer=bad1&peer=ok"))[:2] == (400, "bad bad1\n")
            assert (await ask("POST", f"{base}/connect?peer=x&replace=maybe"))[0] == 400
            assert (await ask("POST", f"{base}/forget", data={"peer": "10.0.0.1"}))[:2] == (200, "")
            assert control.calls == [
                ("connect", ["10.0.0.1"], True),
                ("connect", ["bad1", "ok"], False),
                ("forget", ["10.0.0.1"]),
            ]
            assert (await ask("POST", f"{read_only}/connect", data=form))[0] == 404
            assert (await ask("GET", f"{read_only}/status"))[0] == 200
            assert (await ask("POST", f"{base}/connect", data={"peer": "x" * (2 << 20)}))[0] == 413
    finally:
        await runner.cleanup()
        await reader.cleanup()


async def test_api_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "run" / "weaver.sock"
    api = http.Api(FakeControl(), logging.getLogger("test"))
    runner = await http.listen(api.application(read_only=False), str(path))
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        environment = {**os.environ, "WEAVE_HTTP_ADDR": str(path)}
        command = [sys.executable, "-m", "weave_py.cli", "report", "-f", "{{.Version}}"]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
        assert (await process.communicate())[0] == b"2.8.2"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:x", "127.0.0.1"])
async def test_addresses_that_are_none(address: str) -> None:
    api = http.Api(FakeControl(), logging.getLogger("test"))
    with pytest.raises(ValueError, match="is not host:port"):
        await http.listen(api.application(read_only=True), address)


def program(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"weave_py.{module}", *arguments]
    env = {**os.environ, "WEAVE_HTTP_ADDR": f"127.0.0.1:{free_port()}", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def test_weaver_refuses_in_the_reference_form() -> None:
    done = program("weaver", "--nosuchflag")
    assert done.returncode == 125
    assert done.stderr == "flag provided but not defined: --nosuchflag\nSee 'weave --help'.\n"
    done = program("weaver", "--min-protocol-version", "3")
    assert done.returncode == 1
    assert re.fullmatch(r"FATA: \S+ \S+ --min-protocol-version must be in range \[1,2\]\n", done.stderr)
    done = program("weaver", "--version")
    assert (done.returncode, done.stdout) == (0, "weave 0.1.0\n")
    done = program("weaver", "--print-peer-name", "--name", "::5")
    assert (done.returncode, done.stdout) == (0, "00:00:00:00:00:05\n")
    done = program("weaver", "--help")
    assert done.returncode == 125
    assert "--conn-limit" in done.stderr


def test_weave_without_a_router() -> None:
    done = program("cli", "status")
    assert (done.returncode, done.stderr) == (1, "weave container is not present. Have you launched it?\n")
    done = program("cli", "status", "bogus")
    assert done.returncode == 1
    assert done.stderr.startswith("Invalid 'weave status' sub-command: bogus\nUsage:\n")
    done = program("cli", "launch-router")
    assert done.returncode == 1
    assert done.stderr.startswith("The 'weave launch-router' command has been removed as of Weave Net version 2.0\n")
    assert program("cli", "version").stdout == "weave 0.1.0\n"
    assert program("cli", "help").returncode == 0
    assert program("cli").returncode == 1
    assert program("cli", "connect").returncode == 1
    assert program("cli", "--local", "version").returncode == 0
    done = program("cli", "attach", "10.32.0.5", "x")
    assert (done.returncode, done.stderr) == (
        1,
        "invalid address '10.32.0.5': give an address and its prefix, as in 10.32.0.5/12\n",
    )
    done = program("cli", "stop", WEAVE_RUN_DIR="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "Weave is not running (ignore on Kubernetes).\n")


def test_the_password_leaves_the_command_line() -> None:
    environment: dict[str, str] = {}
    words = ["--password", "s1", "--iprange=10.0.0.0/8", "--no-restart", "peer"]
    assert launch.take_password(words, environment) == ["--ipalloc-range=10.0.0.0/8", "peer"]
    assert environment == {"WEAVE_PASSWORD": "s1"}
