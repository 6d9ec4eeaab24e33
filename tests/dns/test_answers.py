"""What the server answers: the reference's cases, and where the cures of DNS spec §14 make them better."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import dnslib
import pytest
import uvloop
from dnslib import QTYPE, RCODE, DNSRecord

from dns.service import NameSettings
from tests.dns.names import Node, cases, serving

Run = Callable[[Coroutine[Any, Any, None]], None]
RECORDS = [("one.weave.local", "10.32.0.1"), ("MiXed.weave.local", "10.32.0.2"), ("sub.zone.weave.local", "10.32.0.3")]
RECORDS += [("weave.local", "10.32.0.4"), *(("three.weave.local", f"10.32.1.{n}") for n in (1, 2, 3))]
RECORDS += [("many.weave.local", f"10.33.0.{n}") for n in range(1, 121)]
# Answers to these are better than the reference's (DNS spec §14, F7: the apex has an SOA and a server).
BETTER = {"soa_apex": 1, "ns_apex": 1}


def register(node: Node) -> None:
    """The records of dns_answers.json."""
    for name, address in RECORDS:
        assert node.service.add(name, "c1", address)
    node.service.add("gone.weave.local", "c1", "10.32.0.9")
    node.service.delete(hostname="gone.weave.local")


async def ask(node: Node, query: bytes, tcp: bool = False) -> bytes:
    """One query over the network."""
    assert node.service.address is not None
    host, port = node.service.address
    if tcp:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(len(query).to_bytes(2, "big") + query)
        reply = await asyncio.wait_for(reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), 5)
        writer.close()
        return reply
    loop = asyncio.get_running_loop()
    replies: asyncio.Queue[bytes] = asyncio.Queue()

    class Asking(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            replies.put_nowait(data)

    transport, _ = await loop.create_datagram_endpoint(Asking, remote_addr=(host, port))
    transport.sendto(query)
    try:
        return await asyncio.wait_for(replies.get(), 5)
    finally:
        transport.close()


def question(name: str, rtype: str = "A", **edns: Any) -> bytes:
    query = DNSRecord.question(name, rtype)
    if edns:
        query.add_ar(dnslib.EDNS0(**edns))
    return bytes(query.pack())


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in cases("dns_answers.json")])
async def test_the_reference_s_answers(case: dict[str, Any]) -> None:
    async with serving() as node:
        register(node)
        query = bytes.fromhex(case["query_hex"])
        for _ in range(2):
            # The second time it may come from what was kept of the first.
            check(case, query, await ask(node, query, case["transport"] == "tcp"))


def check(case: dict[str, Any], query: bytes, raw: bytes) -> None:
    """One answer against the reference's."""
    reply = DNSRecord.parse(raw)
    header = reply.header
    assert RCODE[header.rcode] == case["rcode"]
    assert (header.qr, header.opcode, header.id) == (1, query[2] >> 3 & 15, 0x1234)
    for flag in ("aa", "ra", "rd"):
        # The reference says of a query without a question that nobody recurses.
        assert bool(getattr(header, flag)) == case[flag] or (flag, case["name"]) == ("ra", "no_question")
    answers = sorted(" ".join(str(rr).split()) for rr in reply.rr)
    limit = 65535 if case["transport"] == "tcp" else max(512, edns_size(query))
    assert len(raw) <= limit
    if case["name"].startswith("a_many"):
        # All that fits, which compressed is more than the reference's; none twice.
        assert bool(header.tc) == (len(answers) < 120)
        assert case["answer_count"] <= len(answers) == len(set(answers))
        assert len(answers) == 120 or len(raw) + 16 > limit
    else:
        assert len(answers) == BETTER.get(case["name"], case["answer_count"])
        if case["name"] not in BETTER:
            assert answers == case["answers_sorted"]
        assert not header.tc
    if reply.questions:
        assert str(reply.q.qname) == str(DNSRecord.parse(query).q.qname)
    # OPT is answered with OPT (RFC 6891), and only so.
    assert [rr.rtype for rr in reply.ar] == [QTYPE.OPT] * (query[11] > 0)
    # Whatever is not there says for how long (RFC 2308), where it is ours to say.
    ours = str(reply.q.qname).lower().endswith("weave.local.") if reply.questions else False
    negative = ours and not answers and case["rcode"] in ("NXDOMAIN", "NOERROR") and case["name"] != "two_questions"
    assert [rr.rtype for rr in reply.auth] == [QTYPE.SOA] * negative


def edns_size(query: bytes) -> int:
    return next((rr.rclass for rr in DNSRecord.parse(query).ar if rr.rtype == QTYPE.OPT), 0)


async def test_addresses_come_in_every_order() -> None:
    async with serving() as node:
        register(node)
        first = set()
        for _ in range(60):
            reply = DNSRecord.parse(await ask(node, question("three.weave.local")))
            first.add(str(reply.rr[0].rdata))
        assert first == {"10.32.1.1", "10.32.1.2", "10.32.1.3"}


async def test_an_answer_that_was_kept_goes_with_its_name() -> None:
    async with serving() as node:

        async def addresses(name: str) -> list[str]:
            return sorted(str(rr.rdata) for rr in DNSRecord.parse(await ask(node, question(name))).rr)

        for name in ("web.weave.local", "web", "WEB.weave.LOCAL"):
            assert await addresses(name) == []
            node.service.add("web.weave.local", "c1", "10.32.0.1")
            assert await addresses(name) == ["10.32.0.1"]
            node.service.add("Web.weave.local", "c2", "10.32.0.2")
            assert await addresses(name) == ["10.32.0.1", "10.32.0.2"]
            node.service.container_died("c1")
            assert await addresses(name) == ["10.32.0.2"]
            node.service.delete(address="10.32.0.2")
            assert await addresses(name) == []


async def test_ipv6_names_and_their_addresses() -> None:
    async with serving() as node:
        node.service.add("six.weave.local", "c1", "fd00::1")
        node.service.add("both.weave.local", "c1", "fd00::2")
        node.service.add("both.weave.local", "c1", "10.32.0.1")
        six = DNSRecord.parse(await ask(node, question("six.weave.local", "AAAA")))
        assert [str(rr.rdata) for rr in six.rr] == ["fd00::1"]
        none = DNSRecord.parse(await ask(node, question("six.weave.local", "A")))
        assert (RCODE[none.header.rcode], none.rr) == ("NOERROR", [])
        for rtype, text in (("A", "10.32.0.1"), ("AAAA", "fd00::2")):
            both = DNSRecord.parse(await ask(node, question("both.weave.local", rtype)))
            assert [str(rr.rdata) for rr in both.rr] == [text]
        reverse = "1." + "0." * 27 + "0.0.d.f.ip6.arpa"
        ptr = DNSRecord.parse(await ask(node, question(reverse, "PTR")))
        assert [str(rr.rdata) for rr in ptr.rr] == ["six.weave.local."]


async def test_a_negative_answer_names_the_zone_as_it_was_asked() -> None:
    async with serving() as node:
        reply = DNSRecord.parse(await ask(node, question("nope.weave.local")))
        (soa,) = reply.auth
        assert (str(soa.rname), soa.ttl, soa.rdata.times[4]) == ("weave.local.", 1, 1)
        assert str(soa.rdata.mname) == "ns.weave.local."


async def test_an_edns_version_that_nobody_has_is_refused() -> None:
    async with serving() as node:
        reply = DNSRecord.parse(await ask(node, question("one.weave.local", udp_len=4096, version=1)))
        (opt,) = reply.ar
        assert (reply.header.rcode | opt.ttl >> 24 << 4, opt.ttl >> 16 & 255) == (16, 0)


async def several_on_one_connection() -> None:
    async with serving() as node:
        register(node)
        assert node.service.address is not None
        reader, writer = await asyncio.open_connection(*node.service.address)
        query = question("one.weave.local")
        for _ in range(200):
            writer.write(len(query).to_bytes(2, "big") + query)
        received = await asyncio.wait_for(reader.read(-1), 10)
        writer.close()
        size = int.from_bytes(received[:2], "big") + 2
        assert len(received) == 128 * size


async def many_connections() -> None:
    async with serving() as node:
        register(node)
        assert node.service.address is not None
        made = [await asyncio.open_connection(*node.service.address) for _ in range(80)]
        try:
            assert await asyncio.wait_for(made[-1][0].read(1), 5) == b""
        except ConnectionResetError:
            pass
        finally:
            for _, writer in made:
                writer.close()
        assert node.service.counts["connections-refused"] == 16


async def a_client_that_does_not_read() -> None:
    async with serving() as node:
        register(node)
        assert node.service.address is not None
        sock = socket.create_connection(node.service.address)
        query = question("many.weave.local")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(120):
            sock.sendall(len(query).to_bytes(2, "big") + query)
        # Others are served meanwhile.
        assert DNSRecord.parse(await ask(node, question("one.weave.local"), True)).rr
        sock.close()


LOOPS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]


@pytest.mark.parametrize("run", LOOPS)
def test_several_queries_on_one_connection_and_no_more_than_enough(run: Run) -> None:
    run(several_on_one_connection())


@pytest.mark.parametrize("run", LOOPS)
def test_a_host_has_room_for_so_many_connections_only(run: Run) -> None:
    run(many_connections())


@pytest.mark.parametrize("run", LOOPS)
def test_who_does_not_read_holds_up_nobody(run: Run) -> None:
    run(a_client_that_does_not_read())


async def test_answers_leave_from_the_address_that_was_asked() -> None:
    async with serving(host="0.0.0.0") as node:
        register(node)
        assert node.service.address is not None
        node.service.address = ("127.0.0.7", node.service.address[1])
        for _ in range(2):
            assert DNSRecord.parse(await ask(node, question("one.weave.local"))).rr


@pytest.mark.parametrize("host", ["::1", "::"])
async def test_over_ipv6(host: str) -> None:
    async with serving(host=host) as node:
        register(node)
        assert node.service.address is not None
        node.service.address = ("::1", node.service.address[1])
        for name, count in (("one.weave.local", 1), ("none.weave.local", 0), ("many.weave.local", 29)):
            for _ in range(2):
                assert len(DNSRecord.parse(await ask(node, question(name))).rr) == count


async def test_a_run_of_queries_of_many_kinds() -> None:
    """Each gets its own answer, whether on the spot or not."""
    async with serving() as node:
        register(node)
        names = ["one.weave.local", "none.weave.local", "three.weave.local", "many.weave.local", "one", "a.example.com"]
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        expected: list[dict[int, str]] = [{}, {}, {}]
        for number in range(300):
            name = names[number % len(names)]
            query = DNSRecord.question(name)
            query.header.id = number
            sockets[number % 3].sendto(bytes(query.pack()), node.service.address or ("", 0))
            expected[number % 3][number] = name + "."
        for sock, wanted in zip(sockets, expected, strict=True):
            sock.setblocking(False)
            while wanted:
                reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2000), 5)
                parsed = DNSRecord.parse(reply)
                assert str(parsed.q.qname) == wanted.pop(parsed.header.id)
            sock.close()


@pytest.mark.parametrize("length", [20, 100, 180])
async def test_a_long_domain(length: int) -> None:
    """What was said of its SOA may be too much for a datagram."""
    domain = ".".join("d" * 40 for _ in range(length // 40 + 1))[:length].rstrip(".") + "."
    async with serving(NameSettings(domain=domain)) as node:
        node.service.add(f"web.{domain}", "c1", "10.32.0.1")
        for name, count in (("web", 1), ("n" * 50, 0)):
            for _ in range(2):
                raw = await ask(node, question(f"{name}.{domain}"))
                assert len(raw) <= 512
                assert len(DNSRecord.parse(raw).rr) == count


async def test_a_name_ends_where_its_first_empty_label_is() -> None:
    """What follows only looks like a name of ours; the kept answers see that as the whole parser does."""
    async with serving() as node:
        junk = b"\x03sub\0\0\0\0\0\0\0\0\0\x04zone\x05weave\x05local\0\0\1\0\1"
        query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + junk
        assert node.service.answers.quick(query) is None
        assert (await ask(node, query))[12:].startswith(b"\x03sub\0")
