"""Questions for others: which server is asked when, what is passed on, what is kept."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dnslib
import pytest
from dnslib import RR, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dns.forwarder import MOST_PENDING, MOST_WAITING, Forwarder
from dns.message import MessageError, Query, error_reply, parse_query
from dns.reply import parse_reply
from dns.resolv_conf import Server
from tests.dns.test_answers import question
from tests.mesh.sim import Clock

ONE, TWO = Server("192.0.2.1"), Server("192.0.2.2")


@dataclass
class Asker:
    """A client (`dns.seams.Client`)."""

    tcp: bool = False
    replies: list[bytes] = field(default_factory=list)

    def send(self, reply: bytes) -> None:
        self.replies.append(reply)

    @property
    def reply(self) -> DNSRecord:
        (reply,) = self.replies
        return DNSRecord.parse(reply)


class Net:
    """A forwarder, and what it sends (`dns.forwarder.Upstream`). Probes for loops are apart."""

    def __init__(self, *servers: Server, timeout: float = 5.0) -> None:
        self.clock = Clock()
        self.sent: list[tuple[Server, bytes]] = []
        self.probes: list[tuple[Server, bytes]] = []
        self.tcp: list[tuple[Server, bytes, Callable[[bytes | None], None]]] = []
        self.counts: Counter[str] = Counter()
        self.forwarder = Forwarder(
            self,
            self.clock,
            timeout=timeout,
            domain=b"\x05weave\x05local\0",
            entropy=os.urandom,
            counts=self.counts,
            log=logging.getLogger("dns"),
        )
        self.forwarder.set_servers(servers)

    def send(self, server: Server, message: bytes) -> None:
        (self.probes if b"weave-loop-" in message else self.sent).append((server, message))

    def ask_tcp(self, server: Server, message: bytes, done: Callable[[bytes | None], None]) -> None:
        self.tcp.append((server, message, done))

    def ask(self, name: str = "a.example.com", rtype: str = "A", *, tcp: bool = False, **edns: Any) -> Asker:
        query = parse_query(question(name, rtype, **edns))
        assert query is not None
        asker = Asker(tcp)
        self.forwarder.ask(query, asker, 2)
        return asker

    def asked(self) -> list[Server]:
        """Who was asked since the last call of `take`."""
        return [server for server, _ in self.sent]

    def take(self) -> tuple[Server, DNSRecord]:
        """The oldest question on its way."""
        server, message = self.sent.pop(0)
        return server, DNSRecord.parse(message)

    def answer(self, *records: str, rcode: int = 0, tc: int = 0, opt: bool = True) -> None:
        """Answer the oldest question."""
        server, query = self.take()
        self.forwarder.received(server, answer(query, *records, rcode=rcode, tc=tc, opt=opt))


def answer(query: DNSRecord, *records: str, rcode: int = 0, tc: int = 0, opt: bool = True) -> bytes:
    """A server's answer; records with `!` in front go to the authority section."""
    reply = query.reply(aa=0)
    reply.rr.clear()
    reply.header.rcode, reply.header.tc = rcode, tc
    for text in records:
        (record,) = RR.fromZone(text.removeprefix("!"))
        reply.add_auth(record) if text.startswith("!") else reply.add_answer(record)
    if opt:
        reply.add_ar(dnslib.EDNS0(udp_len=4096))
    return bytes(reply.pack())


def texts(record: DNSRecord) -> list[str]:
    return [str(rr.rdata) for rr in record.rr]


def test_a_question_goes_out_with_our_edns_and_an_id_of_its_own() -> None:
    net = Net(ONE)
    plain, wide = net.ask(), net.ask("b.example.com", udp_len=4096, flags="do")
    for client, dnssec_ok in ((plain, 0), (wide, 0x8000)):
        server, query = net.take()
        assert server == ONE
        assert query.header.rd == 1
        (opt,) = query.ar
        assert (opt.rclass, opt.ttl & 0x8000) == (1232, dnssec_ok)
        net.forwarder.received(server, answer(query, f"{query.q.qname} 60 A 10.1.2.3"))
        assert texts(client.reply) == ["10.1.2.3"]
        # The OPT that the client gets is ours, and only if it sent one.
        assert [rr.rclass for rr in client.reply.ar] == [1232] * (client is wide)


def test_servers_are_asked_in_order_when_one_is_silent() -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    assert net.asked() == [ONE]
    net.clock.run(1.3)
    assert net.asked() == [ONE, TWO]
    # The late answer of the first is as good as any.
    net.answer("a.example.com 60 A 10.1.2.3")
    assert texts(client.reply) == ["10.1.2.3"]


def test_a_silent_server_comes_last_for_a_while() -> None:
    net = Net(ONE, TWO)
    net.ask()
    net.clock.run(1.3)
    net.sent.pop(0)
    net.answer("a.example.com 60 A 10.1.2.3")
    net.ask("b.example.com")
    assert net.asked() == [TWO]
    net.clock.run(20)
    net.sent.clear()
    net.ask("c.example.com")
    assert net.asked() == [ONE]


@pytest.mark.parametrize("rcode", [2, 5])
def test_a_server_that_fails_is_no_answer_while_another_may_know(rcode: int) -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    net.answer(rcode=rcode)
    assert net.asked() == [TWO]
    net.answer("a.example.com 60 A 10.1.2.3")
    assert texts(client.reply) == ["10.1.2.3"]


def test_if_all_fail_the_failure_is_passed_on() -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    net.answer(rcode=5)
    net.answer(rcode=5)
    assert client.reply.header.rcode == 5
    assert net.forwarder.pending == 0


def test_if_nobody_is_there_the_client_hears_so_at_once() -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    net.forwarder.failed(ONE)
    net.forwarder.failed(TWO)
    assert client.reply.header.rcode == 2


def test_if_all_are_silent_the_client_hears_in_time() -> None:
    net = Net(ONE, TWO, timeout=3.0)
    client = net.ask()
    net.clock.run(2.9)
    assert client.replies == []
    net.clock.run(0.4)
    assert client.reply.header.rcode == 2
    assert net.forwarder.pending == 0
    # A late answer finds nobody waiting.
    net.answer("a.example.com 60 A 10.1.2.3")
    assert len(client.replies) == 1


def test_a_nonexistent_name_is_an_answer() -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    net.answer("!example.com 60 SOA ns.example.com. h.example.com. 1 2 3 4 9", rcode=3)
    assert client.reply.header.rcode == 3
    assert net.asked() == []


def test_a_server_of_before_edns_is_asked_without() -> None:
    net = Net(ONE)
    client = net.ask()
    net.answer(rcode=1, opt=False)
    server, query = net.take()
    assert (server, query.ar) == (ONE, [])
    net.forwarder.received(server, answer(query, "a.example.com 60 A 10.1.2.3", opt=False))
    assert texts(client.reply) == ["10.1.2.3"]
    net.ask("b.example.com")
    assert net.take()[1].ar == []


def test_replies_are_kept_as_long_as_they_say_and_age() -> None:
    net = Net(ONE)
    net.ask()
    net.answer("a.example.com 60 A 10.1.2.3", "a.example.com 20 A 10.1.2.4")
    net.clock.run(15)
    again = net.ask("A.Example.COM").reply
    assert [(str(rr.rname), rr.ttl) for rr in again.rr] == [("A.Example.COM.", 45), ("A.Example.COM.", 5)]
    net.clock.run(6)
    net.ask()
    assert net.asked() == [ONE]


def test_negative_replies_are_kept_as_their_soa_says() -> None:
    net = Net(ONE)
    net.ask()
    net.answer("!example.com 60 SOA ns.example.com. h.example.com. 1 2 3 4 9", rcode=3)
    net.clock.run(8)
    assert net.ask().reply.header.rcode == 3
    net.clock.run(2)
    net.ask()
    assert net.asked() == [ONE]
    net.answer(rcode=3)
    net.ask()
    assert net.asked() == [ONE], "without an SOA nothing is kept"


def test_one_question_is_asked_once_however_many_wait() -> None:
    net = Net(ONE)
    clients = [net.ask() for _ in range(MOST_WAITING + 5)]
    assert net.asked() == [ONE]
    assert [client.reply.header.rcode for client in clients[MOST_WAITING:]] == [2] * 5
    net.answer("a.example.com 60 A 10.1.2.3")
    assert all(texts(client.reply) == ["10.1.2.3"] for client in clients[:MOST_WAITING])


def test_so_many_questions_are_asked_at_a_time_and_no_more() -> None:
    net = Net(ONE)
    clients = [net.ask(f"n{number}.example.com") for number in range(MOST_PENDING + 5)]
    assert len(net.sent) == MOST_PENDING
    assert [client.reply.header.rcode for client in clients[MOST_PENDING:]] == [2] * 5
    net.clock.run(6)
    assert net.forwarder.pending == 0


def test_a_truncated_reply_is_asked_for_by_tcp() -> None:
    net = Net(ONE)
    udp, tcp = net.ask(), net.ask(tcp=True)
    many = [f"a.example.com 60 A 10.1.2.{number}" for number in range(60)]
    net.answer(tc=1)
    server, message, done = net.tcp.pop()
    assert server == ONE
    done(answer(DNSRecord.parse(message), *many))
    assert len(tcp.reply.rr) == 60
    # What is too much for UDP is cut between two records and marked (DNS spec §14, F10).
    assert udp.reply.header.tc == 1
    assert 0 < len(udp.reply.rr) < 60
    assert len(udp.replies[0]) <= 512
    # The client that comes back by TCP finds it kept.
    assert len(net.ask(tcp=True).reply.rr) == 60


def test_without_tcp_the_truncated_reply_is_passed_on() -> None:
    net = Net(ONE)
    client = net.ask()
    net.answer("a.example.com 60 A 10.1.2.3", tc=1)
    net.tcp.pop()[2](None)
    assert client.reply.header.tc == 1
    assert net.ask().replies == [], "and not kept"


def test_a_reply_counts_only_from_whom_and_to_what_was_asked() -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    server, query = net.take()
    good = answer(query, "a.example.com 60 A 10.1.2.3")
    net.forwarder.received(TWO, good)
    net.forwarder.received(ONE, bytes((good[0] ^ 1,)) + good[1:])
    net.forwarder.received(ONE, good.replace(b"example", b"exbmple"))
    net.forwarder.received(ONE, good[:11])
    assert client.replies == []
    net.forwarder.received(server, good)
    assert texts(client.reply) == ["10.1.2.3"]


def test_a_server_that_asks_us_is_not_asked() -> None:
    net = Net(ONE, TWO)
    client = net.ask()
    assert [server for server, _ in net.probes] == [ONE, TWO]
    # Both of what we sent to the first come back: the question waits for itself, the probe tells.
    looped = net.ask()
    assert net.asked() == [ONE]
    probe = parse_query(net.probes[0][1])
    assert probe is not None
    net.forwarder.probed(probe.name)
    assert net.forwarder.loops == [ONE]
    assert net.asked() == [ONE, TWO]
    net.sent.pop(0)
    net.answer("a.example.com 60 A 10.1.2.3")
    assert texts(client.reply) == texts(looped.reply) == ["10.1.2.3"]
    net.ask("b.example.com")
    assert net.asked() == [TWO]
    # It is tried again: loops are mended, and made, by others.
    net.clock.run(200)
    net.sent.clear()
    net.ask("c.example.com")
    assert net.asked() == [ONE]
    assert len(net.probes) >= 4


def test_with_other_servers_other_answers() -> None:
    net = Net(ONE)
    net.ask()
    net.answer("a.example.com 60 A 10.1.2.3")
    net.forwarder.set_servers([TWO])
    net.ask()
    assert net.asked() == [TWO]
    net.forwarder.set_servers([])
    assert net.ask("b.example.com").reply.header.rcode == 2


def test_a_reply_with_records_behind_its_opt() -> None:
    query = DNSRecord.question("a.example.com")
    reply = query.reply()
    reply.add_answer(*RR.fromZone("a.example.com 60 A 10.1.2.3"))
    reply.add_ar(dnslib.EDNS0(udp_len=4096, ext_rcode=1))
    reply.add_ar(*RR.fromZone("ns.example.com 60 A 10.1.2.9"))
    message = bytes(reply.pack())
    parsed = parse_reply(message, 12 + 19)
    assert (parsed.rcode, parsed.counts) == (16, (1, 0, 1))
    client = parse_query(question("a.example.com"))
    assert client is not None
    passed = DNSRecord.parse(parsed.for_client(client, False))
    assert [str(rr.rdata) for rr in (*passed.rr, *passed.ar)] == ["10.1.2.3", "10.1.2.9"]


@given(st.binary(max_size=200), st.booleans())
def test_any_query_is_read_or_refused(data: bytes, after_header: bool) -> None:
    datagram = b"\x12\x34\x01\0" + data if after_header else data
    try:
        query = parse_query(datagram)
    except MessageError:
        assert len(error_reply(datagram, 1)) == 12
        return
    if query is not None and query.questions:
        assert query.question.lower().startswith(query.name)
        assert query.name.endswith(b"\0")


QUERY = Query(b"\x12\x34", 0x0100, 1, b"\1a\0\0\1\0\1", b"\1a\0", 1, None)


@given(st.binary(max_size=120), st.tuples(*[st.integers(0, 3)] * 3), st.integers(0, 400))
def test_any_reply_is_read_or_refused(data: bytes, counts: tuple[int, int, int], age: int) -> None:
    header = b"\x12\x34\x81\x80\0\1" + b"".join(count.to_bytes(2, "big") for count in counts)
    try:
        reply = parse_reply(header + QUERY.question + data, 12 + len(QUERY.question))
    except MessageError:
        return
    passed = reply.for_client(QUERY, False, age)
    assert len(passed) <= 512
    assert 0 <= reply.ttl <= 300
