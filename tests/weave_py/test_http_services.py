"""The paths of addresses and names, over the services themselves: captured sessions byte for byte, waiting, metrics."""

import asyncio
import contextlib
import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from dns.service import NameFigures, NameService, NameSettings
from ipam.ranges import Subnet
from ipam.service import Ipam
from mesh.names import PeerName
from tests.ipam.hub import Hub, hub
from tests.weave_py import captures
from tests.weave_py.control import LOG, Captured, free_port, raw
from tests.weave_py.test_http import ask, parts
from weave_py import http, http_addresses, http_names, metrics, status_text

NOW = 1_795_469_000


class Unheard:
    """A gossip channel that nobody listens to."""

    def unicast(self, destination: int, message: bytes) -> None: ...
    def broadcast(self, message: bytes) -> None: ...
    def neighbours(self, message: bytes) -> None: ...


@contextlib.asynccontextmanager
async def served(*, ipam: Ipam | None = None, names: NameService | None = None) -> AsyncIterator[str]:
    """The control API with these services; yields its address."""
    application = http.Api(Captured(), LOG).application(read_only=False)
    if ipam is not None:
        http_addresses.add_routes(application, ipam, "", ipam.rejoin)
    else:
        http_addresses.add_routes_without_allocation(application)
    if names is not None:
        http_names.add_routes(application, names)
    address = f"127.0.0.1:{free_port()}"
    runner = await http.listen(application, address)
    try:
        yield address
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[tuple[Hub, Ipam]]:
    made = Hub()
    ipam = await made.start(1, "consensus=1", Subnet.parse("10.32.0.0/12"))
    try:
        yield made, ipam
    finally:
        await ipam.stop()


def session(name: str) -> Iterator[tuple[str, str, str, str, str]]:
    """(command, method, target, body, captured answer) of a captured session, in its order."""
    for block in re.split(r"(?m)^### ", captures.text(name))[1:]:
        command, _, answer = block.partition("\n")
        if answer.startswith("HTTP"):
            method = command.split()[1]
            body = "&".join(re.findall(r"-d (\S+)", command))
            yield command, method, command.partition(":6784")[2], body, answer


async def replay(name: str, address: str) -> None:
    """Every answer is the captured one, but for the date, the order of holders and the time of tombstones."""
    for command, method, target, body, theirs in session(name):
        accept = "Accept: application/json\r\n" if "-H Accept" in command else ""
        form = f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n" if body else ""
        request = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{accept}{form}\r\n{body}"
        ours = (await raw(address, request.encode())).decode()
        expected = comparable(theirs)
        found = comparable(ours)
        if expected[1].get("Content-Length") == "any":
            found[1]["Content-Length"] = "any"
        assert (command, *found) == (command, *expected)


def comparable(answer: str) -> tuple[Any, ...]:
    line, headers, body = parts(answer, head=False)
    if body.startswith(("{", "[")):
        document = json.loads(re.sub(r'"Tombstone":[1-9]\d*', '"Tombstone":1', body))
        rows = document["owned"] if isinstance(document, dict) else document
        ours = [row for row in rows if row.get("Origin", 1) == 1]
        if len(ours) < len(rows):
            # The captured router had heard of another peer's name meanwhile.
            headers["Content-Length"] = "any"
        return line, headers, sorted(map(str, ours))
    return line, headers, body


async def test_a_session_about_addresses() -> None:
    async with alone() as (_, ipam), served(ipam=ipam) as address:
        # What the captured router had given out before.
        await ipam.allocate("cafebabe0001")
        await replay("http-transcript.ipam", address)


async def test_a_ring_that_nobody_uses_is_discarded() -> None:
    request = b"DELETE /ring HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with alone() as (_, ipam), served(ipam=ipam) as address:
        await ipam.allocate("c")
        line, _, body = parts((await raw(address, request)).decode(), head=False)
        assert "400" in line
        assert body == "the ring cannot be discarded, its addresses are in use: 10.32.0.1 (c)\n"
        await ipam.delete("c")
        assert " 204 " in parts((await raw(address, request)).decode(), head=False)[0]
        assert not ipam.ready


async def test_a_session_about_names() -> None:
    names = NameService(
        PeerName(1),
        NameSettings(),
        known=lambda name: True,
        clock=lambda: NOW,
        rng=random.Random(1),
        journal=None,
        log=LOG,
    )
    names.attach(lambda channel, user: Unheard())
    names.address = ("127.0.0.1", 53)
    async with served(names=names) as address:
        await replay("http-transcript.dns", address)
    await names.stop()


async def test_names_are_removed_by_what_is_asked_for_alone() -> None:
    """A name in a body counts, and a request that names nothing does not remove everything."""
    names = NameService(
        PeerName(1),
        NameSettings(),
        known=lambda name: True,
        clock=lambda: NOW,
        rng=random.Random(1),
        journal=None,
        log=LOG,
    )
    names.attach(lambda channel, user: Unheard())
    for hostname in ("a", "b", "c"):
        names.add(f"{hostname}.weave.local.", "ctr1", "10.32.0.1")

    def alive() -> set[str]:
        return {entry.hostname[0] for entry in names.entries() if not entry.tombstone}

    async with served(names=names) as address:
        assert (await ask(address, "DELETE", "/name", body="fqdn=a.weave.local"))[0] == "204 No Content"
        assert alive() == {"b", "c"}
        status, text = await ask(address, "DELETE", "/name")
        assert (status, alive()) == ("400 Bad Request", {"b", "c"})
        assert "all=true" in text
        assert (await ask(address, "DELETE", "/name?all=true"))[0] == "204 No Content"
        assert alive() == set()
    await names.stop()


async def test_who_hangs_up_gets_no_address() -> None:
    """A request that waits for consensus ends with its client; the next one is not in its way."""
    async with hub("consensus=3") as made, served(ipam=made.peers[1]) as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /ip/gone HTTP/1.1\r\nHost: x\r\n\r\n")

        def waiting() -> list[str]:
            return [one["Ident"] for one in made.peers[1].report()["Waiting"] or ()]

        async with asyncio.timeout(10):
            while waiting() != ["gone"]:
                await asyncio.sleep(0.01)
            writer.close()
            while waiting():
                await asyncio.sleep(0.01)
        assert "quorum" in str(made.peers[1].report()["Paxos"]).lower()


async def test_a_limited_wait_ends_with_its_reason() -> None:
    async with hub("consensus=3") as made, served(ipam=made.peers[1]) as address:
        for method, path in [("POST", "/ip/a"), ("PUT", "/ip/a/10.32.0.7/24"), ("GET", "/ring")]:
            status, text = await ask(address, method, f"{path}?timeout=0.05")
            assert status == "503 Service Unavailable"
            assert "2" in text and len(text.splitlines()) == 1
        assert (await ask(address, "POST", "/ip/a?timeout=soon"))[0] == "400 Bad Request"
        overview = status_text.overview({**captures.report("idle-single"), "IPAM": made.peers[1].report()})
        assert "Waiting" not in overview


async def test_who_left_the_ring_says_so() -> None:
    async with alone() as (_, ipam), served(ipam=ipam) as address:
        assert await ask(address, "POST", "/ip/a") == ("200 OK", "10.32.0.1/12")
        assert (await ask(address, "DELETE", "/peer/nosuchpeer")) == ("200 OK", "0 IPs taken over from nosuchpeer\n")
        assert (await ask(address, "DELETE", "/peer"))[0] == "204 No Content"
        status, text = await ask(address, "POST", "/ip/b")
        assert status == "503 Service Unavailable"
        assert "left the ring" in text


async def test_a_peer_that_lives_is_taken_over_by_force_alone() -> None:
    async with hub("consensus=2", "consensus=2") as made, served(ipam=made.peers[1]) as address:
        made.gossip()
        await made.peers[1].allocate("a")
        status, text = await ask(address, "DELETE", "/peer/host2")
        assert status == "400 Bad Request"
        assert text.endswith("stop it first, or --force\n")
        assert await ask(address, "DELETE", "/peer/host2?force=true") == ("200 OK", "128 IPs taken over from host2\n")


async def test_what_is_off_is_not_there() -> None:
    async with served() as address:
        for method, path in [("GET", "/ring"), ("POST", "/ip/x"), ("GET", "/domain"), ("GET", "/name")]:
            assert (await ask(address, method, path))[0] == "404 Not Found"
        assert await ask(address, "DELETE", "/peer/host2") == ("200 OK", "")


def document(name: str) -> Any:
    """A captured report, with traffic on its connections."""
    report = captures.report(name)
    for row in report["Router"]["Connections"] or ():
        counters = dict.fromkeys(("BytesIn", "BytesOut", "PacketsIn", "PacketsOut", "FramesIn", "FramesOut"), 5)
        row["Counters"] = {"Peer": "00:00:00:00:00:02", "ControlBytesIn": 7, "ControlBytesOut": 8, **counters}
        break
    report["Router"]["Frames"] = {"injected": 3}
    return report


def samples(text: str) -> dict[str, float]:
    """Our own metrics, by name and labels."""
    rows = [line.rpartition(" ") for line in text.splitlines() if line.startswith("weave_")]
    return {name: float(value) for name, _, value in rows}


def name_figures(own: int) -> NameFigures:
    """Figures of a name service that did something."""
    return NameFigures(own, 9, {"udp-queries": 9}, 2, [(0.01, 3), (math.inf, 1)], 1.5)


@pytest.mark.parametrize("name", ["3-nodes-ready", "dns-entries", "encrypted", "pending"])
def test_metrics_have_the_reference_names_and_values(name: str) -> None:
    theirs = captures.text(f"metrics.{name}")
    wanted = samples(theirs)
    figures = {key.partition("{")[0]: value for key, value in wanted.items()}
    own = figures.get("weave_dns_entries")
    names = None if own is None else name_figures(int(own))
    report = document(name) if name != "encrypted" else encrypted()
    ours = metrics.text(lambda: report, figures, names).decode()
    found = {re.sub(r"\{(.*)\}", sorted_labels, key): value for key, value in samples(ours).items()}
    assert {key: found.get(key) for key in wanted} == wanted
    for line in re.findall(r"(?m)^# (?:HELP|TYPE) weave_.*$", theirs):
        assert line in ours
    assert "_created" not in ours
    assert "python_info" in ours and "process_resident_memory_bytes" in ours


def sorted_labels(labels: re.Match[str]) -> str:
    return "{" + ",".join(sorted(labels[1].split(","))) + "}"


def encrypted() -> Any:
    """One of two connections is encrypted, as when the metrics were captured."""
    report = document("encrypted")
    rows = report["Router"]["Connections"]
    for row, secret in zip(rows, (True, False), strict=True):
        row["Attrs"].pop("encrypted", None)
        if secret:
            row["Attrs"]["encrypted"] = True
    return report


def test_promtool_finds_nothing_but_the_name_that_stays() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    figures = samples(captures.text("metrics.3-nodes-ready"))
    figures = {key.partition("{")[0]: value for key, value in figures.items()}
    text = metrics.text(lambda: document("3-nodes-ready"), {**figures, "weave_ipam_disputes": 0}, name_figures(1))
    found = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    complaints = [line for line in (found.stdout + found.stderr).decode().splitlines() if "weave_" in line]
    assert complaints == [line for line in complaints if line.startswith("weave_ipam_unreachable_count")]
    assert len(complaints) == 1
