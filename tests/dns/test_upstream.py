"""Which upstream servers there are, and real ones over the loopback."""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dns import upstream as upstream_module
from dns.resolv_conf import Server, parse_resolv_conf, parse_servers
from dns.service import NameSettings
from dns.udp import server_sockets
from dns.upstream import ResolvConf
from tests.dns.names import cases, serving
from tests.dns.test_answers import ask, question
from tests.dns.test_forwarding import ONE, TWO, answer, texts

# --- which servers ---


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in cases("resolv_conf.json")])
def test_what_resolv_conf_says(case: dict[str, Any]) -> None:
    servers = [server.host for server in parse_resolv_conf(case["text"], case["listen_address_filter"])]
    if "panic" in case:
        # The reference's router died of these (DNS spec §14, F1).
        assert servers == [line.split()[1] for line in case["text"].splitlines() if line.startswith("nameserver")]
    else:
        assert servers == case["servers"]


@given(st.text(max_size=300))
def test_no_resolv_conf_is_an_error(text: str) -> None:
    for given_text in (text, f"nameserver {text}\noptions {text}"):
        assert len(parse_resolv_conf(given_text, "")) <= 16


def test_servers_of_the_flag() -> None:
    given_texts = ["192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:54", "[2001:db8::2]"]
    assert [str(server) for server in parse_servers(given_texts)] == [*given_texts[:4], "2001:db8::2"]
    for wrong in ("example.com", "192.0.2.1:0", "192.0.2.1:x", "[::1", ":53"):
        with pytest.raises(ValueError, match="invalid DNS upstream"):
            parse_servers([wrong])


def test_the_file_is_read_again_when_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    conf = ResolvConf(str(path), "", logging.getLogger("dns"))
    assert not conf.check(10)
    path.write_text("nameserver 192.0.2.1\n")
    assert not conf.check(12), "looked at 2 s ago"
    assert conf.check(15) and list(conf.servers) == [ONE]
    assert not conf.check(20)
    path.write_text("nameserver 192.0.2.2 \n")
    assert conf.check(25) and list(conf.servers) == [TWO]
    path.unlink()
    assert not conf.check(30) and list(conf.servers) == [TWO]


# --- over the loopback ---


class RealServer(asyncio.DatagramProtocol):
    """An upstream server on a port of 127.0.0.1, UDP and TCP: 60 addresses for some names."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.asked = 0
        self.ports: set[int] = set()

    async def start(self) -> str:
        udp, tcp = server_sockets("127.0.0.1", 0)
        self.transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=udp)
        self.tcp = await asyncio.start_server(self.connected, sock=tcp)
        port = udp.getsockname()[1]
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        self.transport.close()
        self.tcp.close()

    def reply(self, query: bytes, *, whole: bool) -> bytes:
        record = DNSRecord.parse(query)
        self.asked += "loop" not in str(record.q.qname)
        count = 60 if "many" in str(record.q.qname) else 1
        if count > 1 and not whole:
            return answer(record, tc=1)
        return answer(record, *(f"{record.q.qname} 0 A 10.9.0.{number}" for number in range(count)))

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.ports.add(addr[1])
        self.transport.sendto(self.reply(data, whole=False), addr)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        reply = self.reply(query, whole=True)
        writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()


async def test_questions_reach_a_real_server_and_come_back() -> None:
    upstream = RealServer()
    dead = "127.0.0.1:1"
    settings = NameSettings(upstream=(dead, await upstream.start()))
    async with serving(settings) as node:
        assert texts(DNSRecord.parse(await ask(node, question("one.example.com")))) == ["10.9.0.0"]
        for tcp in (False, True):
            many = DNSRecord.parse(await ask(node, question("many.example.com"), tcp))
            assert (len(many.rr) == 60, many.header.tc) == (tcp, not tcp)
        assert node.service.upstream() == list(settings.upstream)
        assert upstream.asked >= 3
        figures = node.service.metrics()
        assert (sum(count for _, count in figures.latency), figures.pending) == (figures.counts["forwarded"], 0)
        assert figures.counts["tcp-queries"] == 1
        # Nothing of ours is asked there, nor what is short for it.
        node.service.add("web.weave.local", "c1", "10.32.0.1")
        before = upstream.asked
        for name in ("web.weave.local", "web", "none.weave.local"):
            await ask(node, question(name))
        assert upstream.asked == before
        for name, rtype in (("intranet", "A"), ("32.10.in-addr.arpa", "NS"), ("weave.local", "DS")):
            await ask(node, question(name, rtype))
        assert upstream.asked == before + 3
    upstream.stop()


async def test_a_server_that_is_ourselves_is_found_out() -> None:
    async with serving() as node:
        assert node.service.address is not None
        host, port = node.service.address
        node.service.follow([Server(host, port)])
        reply = DNSRecord.parse(await ask(node, question("a.example.com")))
        assert reply.header.rcode == 2
        assert node.service.report()["UpstreamLoops"] == [f"{host}:{port}"]


async def test_ports_change_and_late_answers_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_LIFE", -1.0)
    upstream = RealServer()
    async with serving(NameSettings(upstream=(await upstream.start(),), timeout=0.5)) as node:
        ports = upstream.ports
        for number in range(5):
            assert texts(DNSRecord.parse(await ask(node, question(f"n{number}.example.com")))) == ["10.9.0.0"]
        assert len(ports) >= 5
        files = len(os.listdir("/proc/self/fd"))
        await asyncio.sleep(0.8)
        assert len(os.listdir("/proc/self/fd")) <= files - 8, "old sockets are closed"
    upstream.stop()
