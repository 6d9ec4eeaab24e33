"""The command line against a captured session with the reference's, and where there is no router."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.weave_py import captures
from tests.weave_py.control import Captured, free_port, served
from weave_py import launch
from weave_py.words import take_value

# Commands of the session that this version has.
_KNOWN = ("version", "status", "report", "connect", "forget", "stop extra", "run", "frobnicate")


def session() -> list[Any]:
    """(words, captured output, captured errors, exit code) in their order."""
    blocks = re.split(r"(?m)^host1# weave --local ", captures.text("cli-transcript"))[1:]
    found = []
    for block in blocks:
        words, _, rest = block.partition("\n")
        body, _, code = rest.rpartition("[exit status ")
        output, _, errors = body.partition("[stderr]\n")
        if words.startswith(_KNOWN):
            found.append((words, output, errors, int(code.split("]")[0])))
    return found


def words_of(line: str) -> list[str]:
    """The words of a command; a template is one."""
    head, mark, template = line.partition(" -f ")
    return [*head.split(), "-f", template] if mark else line.split()


async def weave(address: str, *words: str) -> tuple[str, str, int]:
    """(output, errors, exit code) of one command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "weave_py.cli", "--local", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "WEAVE_HTTP_ADDR": address, "WEAVE_RUN_DIR": "/nonexistent"},
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    return output.decode(), errors.decode(), process.returncode or 0


async def test_session() -> None:
    """The whole session, on one router: what it changes is seen by the commands that follow."""
    commands = session()
    assert len(commands) > 15
    async with served(Captured()) as address:
        for line, output, errors, code in commands:
            ours = await weave(address, *words_of(line))
            if line == "status":
                # The capture's router serves a plugin besides.
                output = output.split("\n        Service: plugin")[0] + ("\n" if "plugin" in output else "")
                ours = (re.sub("Entries: .", "Entries: 1", ours[0]), *ours[1:])
            # The reference says so before every error, whether or not it is true.
            errors = errors.removeprefix("weave container is not present. Have you launched it?\n")
            if "nonexistent..name" in line:
                errors = "lookup nonexistent..name: no such host\n"
            shown = ours[1]
            if "Usage:" in shown:
                shown, errors = (text.partition("Usage:")[0] for text in (shown, errors))
            assert (line, ours[0], shown, ours[2]) == (line, output, errors, code)


async def test_status_in_json_and_watched() -> None:
    async with served(Captured()) as address:
        output, _, code = await weave(address, "status", "connections", "--json")
        assert code == 0
        assert '"State": "established"' in output
        output, _, code = await weave(address, "report")
        assert output.rstrip("\n") == (captures.API / "report.3-nodes-ready.json").read_text().rstrip("\n")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "weave_py.cli", "status", "connections", "--watch"),
            stdout=subprocess.PIPE,
            env={**os.environ, "WEAVE_HTTP_ADDR": address},
        )
        assert process.stdout is not None
        lines = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode() for _ in range(4)]
        process.terminate()
        await process.wait()
        assert re.fullmatch(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", lines[0])
        assert "".join(lines[1:3]) == captures.text("status-connections.3-nodes-ready")
        assert lines[3].startswith("--- ")


def no_router(*words: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, output, errors) of a command where no router runs."""
    env = {**os.environ, "WEAVE_HTTP_ADDR": f"127.0.0.1:{free_port()}", **environment}
    command = [sys.executable, "-m", "weave_py.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


ABSENT = "weave container is not present. Have you launched it?\n"
ALONE = [
    (["status"], 1, ABSENT),
    (["status", "--watch"], 1, ABSENT),
    (["connect", "10.0.0.1"], 1, ABSENT),
    (["stop"], 0, "Weave is not running (ignore on Kubernetes).\n"),
    (["prime"], 1, ABSENT),
    (["prime", "now"], 1, "Usage:"),
    (["rejoin"], 1, ABSENT),
    (["rejoin", "now"], 1, "Usage:"),
    (["rmpeer", "host3"], 1, ABSENT),
    (["rmpeer"], 1, "Usage:"),
    (["expose"], 1, ABSENT),
    (["expose", "10.32.0.5"], 1, "'10.32.0.5' is no address\nUsage:"),
    (["expose", "fd00::1/64"], 1, "'fd00::1/64' is no address\nUsage:"),
    (["expose", "ip:fd00::1/64"], 1, "fd00::1/64 is no IPv4 address: a host is exposed under IPv4\n"),
    (["expose", "--nat"], 1, "unknown option --nat\nUsage:"),
    (["expose", "-h"], 1, "-h needs a value\nUsage:"),
    (["hide"], 1, ABSENT),
    (["hide", "ip:10.32.0.300/12"], 1, "invalid address 'ip:10.32.0.300/12': give an address and its prefix"),
    (["dns-add"], 1, "Usage:"),
    (["dns-add", "10.32.0.9"], 1, "Usage:"),
    (["dns-add", "a", "b"], 1, "Usage:"),
    (["dns-add", "10.32.0.9", "-h", "x.weave.local"], 1, ABSENT),
    (["dns-add", "nobody"], 1, "no container, namespace or process 'nobody'"),
    (["dns-lookup", "x"], 1, ABSENT),
    (["dns-args"], 1, ABSENT),
    (["ps", "nobody"], 1, "no container, namespace or process 'nobody'"),
    (["bridge-type", "x"], 1, "Usage:"),
    (["docker-bridge-ip"], 1, 'Failed to get netdev for "docker0" bridge: Link not found\n'),
    (["attach-bridge"], 1, "weave is no bridge of this host\n"),
    (["setup", "x"], 1, "Usage:"),
    (["setup-cni", "x"], 1, "Usage:"),
    (["env"], 1, "'weave env' went with the Docker API proxy\n"),
    (["attach", "nobody"], 1, "no container, namespace or process 'nobody'"),
    (["attach", "10.32.0.5", "x"], 1, "'10.32.0.5' is no address\nUsage:"),
    (["attach", "--mtu", "x"], 1, "unknown option --mtu\nUsage:"),
    (["detach", "10.32.0.5/12/1", "x"], 1, "invalid address '10.32.0.5/12/1'"),
    (["attach", "10.32.0.5/12", "nobody"], 1, "no container, namespace or process 'nobody'"),
    (["attach"], 1, "Usage:"),
    ([], 1, "Usage:"),
    (["reset"], 1, "ERROR: weave is not running; unable to remove from cluster.\nRe-launch weave before reset or use"),
]


@pytest.mark.parametrize(("words", "code", "errors"), ALONE, ids=[" ".join(words) or "-" for words, _, _ in ALONE])
def test_without_a_router(words: list[str], code: int, errors: str) -> None:
    found, output, shown = no_router(*words, WEAVE_RUN_DIR="/nonexistent")
    assert (found, output) == (code, "")
    assert shown.startswith(errors)
    assert "Traceback" not in shown


def test_help_and_version_need_no_router() -> None:
    assert no_router("version") == (0, "weave 0.1.0\n", "")
    for words in (["help"], ["--help"], ["status", "--help"]):
        code, output, errors = no_router(*words)
        assert (code, errors) == (0, "")
        assert output.startswith("Usage:\n\nweave --help | help\n")


def test_an_address_that_is_none() -> None:
    code, _, errors = no_router("status", WEAVE_HTTP_ADDR="nonsense")
    assert (code, errors) == (1, "WEAVE_HTTP_ADDR 'nonsense' is neither host:port nor the path of a socket\n")


def test_a_reader_that_has_enough() -> None:
    command = f"{sys.executable} -m weave_py.cli help | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


async def test_stop_leaves_alone_what_launch_did_not_start(tmp_path: Path) -> None:
    async with served(Captured()) as address:
        _, errors, code = await weave(address, "stop")
    assert code == 1
    assert errors.startswith(f"a router answers at {address}, but 'weave launch' did not start it")
    (tmp_path / "weaver.pid").write_text(f"{os.getpid()}\n")
    assert no_router("stop", WEAVE_RUN_DIR=str(tmp_path))[0] == 0, "a recycled pid is nobody's router"


def test_what_launch_takes_for_itself() -> None:
    environment: dict[str, str] = {}
    words = ["--password", "s1", "--iprange=10.0.0.0/8", "--no-restart", "peer"]
    assert launch.take_password(words, environment) == ["--ipalloc-range=10.0.0.0/8", "peer"]
    assert environment == {"WEAVE_PASSWORD": "s1"}
    words = ["--log-file=a", "--port", "7", "--log-file", "b"]
    assert take_value(words, "--log-file") == "b"
    assert words == ["--port", "7"]
