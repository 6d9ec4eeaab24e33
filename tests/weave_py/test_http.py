"""The control API against captured requests and answers of a real router, byte for byte but for the date."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.weave_py import captures
from tests.weave_py.control import LOG, Captured, raw, served
from weave_py import http

# What this router serves as the reference does; the rest is for parts it has not got, or is not served on purpose.
SERVED = re.compile(r"/(report|status|proxyaddrs|connect|forget)|:6782/")


def transcript() -> Iterator[Any]:
    """(method, target, read-only address?, captured answer)."""
    text = (captures.API / "http-transcript.misc.txt").read_bytes().decode("latin-1")
    for block in re.split(r"(?m)^### ", text)[1:]:
        command, _, answer = block.partition("\n")
        if not answer.startswith("HTTP") or not SERVED.search(command):
            continue
        url = command[command.index("http://") :]
        method = {"-I": "HEAD", "-G": "GET"}.get(command[:2]) or command.split()[1]
        encoded = re.search(r"--data-urlencode format=(.*) http", command)
        target = url.partition(":67")[2].partition("/")[2]
        target = f"/{target}?format={urllib.parse.quote(encoded[1])}" if encoded else f"/{target}"
        yield pytest.param(method, target, ":6782/" in url, answer, id=command)


def parts(answer: str, *, head: bool) -> tuple[str, dict[str, str], str]:
    """Status line, headers but the date and what is about the connection, body."""
    top, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    line, *rest = top.splitlines()
    headers = dict(header.split(": ", 1) for header in rest)
    for name in ("Date", "Connection"):
        headers.pop(name, None)
    if head:
        # A length of nothing is said or not.
        headers.pop("Content-Length", None)
    length = int(headers.get("Content-Length", 0))
    return line, headers, body[:length]


@pytest.mark.parametrize(("method", "target", "read_only", "theirs"), list(transcript()))
async def test_answers(method: str, target: str, read_only: bool, theirs: str) -> None:
    async with served(Captured("dns-entries"), read_only=read_only) as address:
        request = f"{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        ours = (await raw(address, request.encode())).decode("latin-1")
    line, headers, body = parts(ours, head=method == "HEAD")
    expected_line, expected_headers, expected_body = parts(theirs, head=method == "HEAD")
    if "json .DNS" in urllib.parse.unquote(target):
        # The entries changed between the captures.
        assert [*json.loads(body)] == [*json.loads(expected_body)]
        headers["Content-Length"] = expected_headers["Content-Length"]
        body = expected_body
    assert (line, headers, body) == (expected_line, expected_headers, expected_body)


async def ask(address: str, method: str, target: str, *, body: str = "", accept: str = "*/*") -> tuple[str, str]:
    """(status line, body)."""
    form = f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n" if body else ""
    request = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n{form}\r\n{body}"
    top, _, text = (await raw(address, request.encode())).decode().partition("\r\n\r\n")
    return top.splitlines()[0].partition(" ")[2], text


async def test_connect_and_forget() -> None:
    """Good peers are taken though others are bad; values come from the query or the body, also several."""
    router = Captured()
    async with served(router) as address:
        errors = (captures.API / "http-connect.errors.txt").read_text().splitlines()[-2:]
        assert await ask(address, "POST", "/connect?peer=a:b:c&peer=10.0.0.1", body="peer=1.2.3.4%3Ax-y") == (
            "400 Bad Request",
            "\n".join([errors[1], errors[0]]) + "\n",
        )
        assert router.targets == ["10.0.0.1"]
        assert await ask(address, "POST", "/connect") == ("200 OK", "")
        assert await ask(address, "POST", "/connect", body="peer=10.0.0.2&peer=h:7000&replace=true") == ("200 OK", "")
        assert router.targets == ["10.0.0.2", "h:7000"]
        assert await ask(address, "GET", "/status/targets") == ("200 OK", "10.0.0.2\nh:7000\n")
        assert await ask(address, "POST", "/connect?peer=x&replace=maybe") == (
            "400 Bad Request",
            'unable to parse replace option: strconv.ParseBool: parsing "maybe": invalid syntax\n',
        )
        assert await ask(address, "POST", "/forget", body="peer=h%3A7000&peer=never") == ("200 OK", "")
        assert router.targets == ["10.0.0.2"]
        assert (await ask(address, "POST", "/connect", body="peer=" + "x" * (2 << 20)))[0].startswith("413")
        assert (await ask(address, "GET", "/connect"))[0].startswith("405")


async def test_a_part_that_is_off_is_empty() -> None:
    async with served(Captured("idle-single")) as address:
        for part in ("dns", "ipam", "connections", "targets"):
            assert await ask(address, "GET", f"/status/{part}") == ("200 OK", "")
        for path in ("/domain", "/dns-address", "/ip/x", "/ring", "/debug/pprof/cmdline", "/"):
            assert await ask(address, "GET", path) == ("404 Not Found", "404 page not found\n")


async def test_json() -> None:
    router = Captured()
    async with served(router) as address:
        status, text = await ask(address, "GET", "/report", accept="application/json")
        assert (status, json.loads(text)) == ("200 OK", {**router.report()})
        assert (await ask(address, "GET", "/report", accept="*/*"))[0] == "400 Bad Request"
        status, text = await ask(address, "GET", "/status/connections", accept="application/json")
        assert json.loads(text) == router.document["Router"]["Connections"]
        assert json.loads((await ask(address, "GET", "/status/targets", accept="application/json"))[1]) == []
        assert (await ask(address, "GET", "/report?format=a&format=b"))[0] == "400 Bad Request"


async def test_not_ready() -> None:
    router = Captured()
    router.document["Ready"] = False
    async with served(router) as address:
        status, text = await ask(address, "GET", "/status")
        assert status == "503 Service Unavailable"
        assert "Service: router" in text


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "run" / "weaver.sock"
    api = http.Api(Captured(), LOG)
    runner = await http.listen(api.application(read_only=False), str(path))
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        environment = {**os.environ, "WEAVE_HTTP_ADDR": str(path)}
        command = [sys.executable, "-m", "weave_py.cli", "report", "-f", "{{.Version}}"]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
        assert (await process.communicate())[0] == b"2.8.2"
        with pytest.raises(OSError, match="another router listens on"):
            await http.listen(api.application(read_only=False), str(path))
    finally:
        await runner.cleanup()


async def test_a_socket_that_a_killed_router_left(tmp_path: Path) -> None:
    path = tmp_path / "weaver.sock"
    subprocess.run(
        [sys.executable, "-c", f"import socket; socket.socket(socket.AF_UNIX).bind({str(path)!r})"], check=True
    )
    assert path.is_socket()
    runner = await http.listen(http.Api(Captured(), LOG).application(read_only=True), str(path))
    await runner.cleanup()
    other = tmp_path / "precious"
    other.write_text("kept")
    with pytest.raises(FileExistsError, match="is no socket"):
        await http.listen(http.Api(Captured(), LOG).application(read_only=True), str(other))
    assert other.read_text() == "kept"


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:x", "127.0.0.1", "127.0.0.1:65536"])
async def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        await http.listen(http.Api(Captured(), LOG).application(read_only=True), address)


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1:6784", True), ("[::1]:6784", True), ("localhost:1", True), ("/run/x", True), ("0.0.0.0:6784", False)],
)
def test_who_reaches_an_address(address: str, local: bool) -> None:
    assert http.is_local(address) is local
