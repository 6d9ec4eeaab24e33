"""Questions for others: whom to ask, when to ask the next one, and which answer is the answer.

One question is asked once, however many clients wait for it; that also ends a loop, since what comes back to us waits
for itself. Servers are asked in their order. The next one is asked as well when an answer takes long, and at once when
one refuses or fails; the first good answer counts. A server that was slow comes last for a while. One that sends our
questions back to us (a probe tells) is not asked. Nothing a client sends makes more than a bounded number of questions
wait. Source: DNS spec §8, §14 (F9, F10, F13); RFC 5452, RFC 7766, RFC 9520.
"""

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dns.cache import ReplyCache
from dns.message import (
    CHECKING_DISABLED,
    FORMERR,
    NOTIMP,
    OPCODE,
    RCODE,
    RECURSION_DESIRED,
    REFUSED,
    SERVFAIL,
    TRUNCATED,
    TXT,
    MessageError,
    Query,
    build_reply,
    opt_record,
)
from dns.reply import parse_reply
from dns.resolv_conf import Server
from dns.seams import Client
from mesh.scheduler import Scheduler, Timer

MOST_PENDING = 1000
MOST_WAITING = 100
MOST_TCP = 64
_PATIENCE = 1.0
_TICK = 0.25
_MOST_TRIES = 6
_SLOW_FOR = 10.0
_PROBE_EVERY, _LOOP_FOR = 60.0, 130.0
_FAILURES = (FORMERR, SERVFAIL, NOTIMP, REFUSED)
_FORWARDED = RECURSION_DESIRED | CHECKING_DISABLED
_WITH_OPT, _WITHOUT = b"\0\1\0\0\0\0\0\1", b"\0\1\0\0\0\0\0\0"
_OPT, _OPT_DO = opt_record(False), opt_record(True)
BUCKETS = (0.002, 0.01, 0.05, 0.2, 1.0, 5.0)


class Upstream(Protocol):
    """What a forwarder sends with."""

    def send(self, server: Server, message: bytes) -> None:
        """One datagram; what is answered, or that nobody is there, comes back to the forwarder."""

    def ask_tcp(self, server: Server, message: bytes, done: Callable[[bytes | None], None]) -> None:
        """One message over TCP; `done` is called once, with the answer or None."""


@dataclass(slots=True)
class _Pending:
    """A question that is being asked. `tries`: the servers that have not answered, by the id they were given."""

    key: bytes
    query: Query
    order: list[Server]
    since: float
    next_at: float
    waiting: list[tuple[Query, Client]]
    tries: dict[int, Server] = field(default_factory=dict)
    asked: int = 0
    tcp: int = 0
    failure: bytes | None = None


class Forwarder:
    """Asks upstream servers. `entropy(n)` gives n bytes that nobody can guess; `domain` is ours, in wire form."""

    def __init__(
        self,
        upstream: Upstream,
        scheduler: Scheduler,
        *,
        timeout: float,
        domain: bytes,
        entropy: Callable[[int], bytes],
        counts: Counter[str],
        log: logging.Logger,
    ) -> None:
        self._upstream = upstream
        self._scheduler = scheduler
        self._timeout = timeout
        self._domain = domain
        self._entropy = entropy
        self._counts = counts
        self._log = log
        self._random = b""
        self.servers: tuple[Server, ...] = ()
        self._slow: dict[Server, float] = {}
        self._plain: set[Server] = set()
        self._loops: dict[Server, float] = {}
        self._probes: dict[bytes, Server] = {}
        self._probe_at = 0.0
        self._pending: dict[bytes, _Pending] = {}
        self._by_id: dict[int, _Pending] = {}
        self._tcp = 0
        self._cache = ReplyCache()
        self._timer: Timer | None = None
        # Answers by the time they took, in BUCKETS and above; and that time in all.
        self.latency = [0] * (len(BUCKETS) + 1)
        self.latency_sum = 0.0

    # --- servers ---

    def set_servers(self, servers: Sequence[Server]) -> None:
        """Ask these from now on."""
        if tuple(servers) != self.servers:
            self.servers = tuple(servers)
            self._cache.clear()
            self._slow.clear()
            self._plain.clear()
            self._probe_at = self._scheduler.now()

    @property
    def loops(self) -> list[Server]:
        """Servers that are not asked, because they ask us."""
        oldest = self._scheduler.now() - _LOOP_FOR
        return [server for server in self.servers if self._loops.get(server, -_LOOP_FOR) > oldest]

    @property
    def pending(self) -> int:
        """Questions that are being asked."""
        return len(self._pending)

    def probed(self, name: bytes) -> None:
        """A question came in that only we ask: whom we asked it, asks us."""
        server = self._probes.get(name)
        if server is None:
            return
        if server not in self.loops:
            self._log.warning("upstream DNS server %s asks this one: it is not asked", server)
        self._loops[server] = self._scheduler.now()
        self.failed(server)

    def _probe(self, now: float) -> None:
        self._probe_at = now + _PROBE_EVERY
        self._probes.clear()
        for server in self.servers:
            label = b"weave-loop-" + self._entropy(8).hex().encode()
            name = bytes((len(label),)) + label + self._domain
            self._probes[name] = server
            question = name + TXT.to_bytes(2, "big") + b"\0\1"
            self._upstream.send(server, self._entropy(2) + b"\x01\0" + _WITHOUT + question)

    # --- questions ---

    def ask(self, query: Query, client: Client, rcode: int) -> None:
        """Answer a client, now or later; with `rcode` where there is nobody to ask."""
        if query.flags & OPCODE or query.questions != 1:
            client.send(build_reply(query, client.tcp, rcode=NOTIMP if query.flags & OPCODE else FORMERR))
            return
        key = query.question.lower() + (query.flags & _FORWARDED).to_bytes(2, "big")
        if query.edns is not None and query.edns.dnssec_ok:
            key += b"D"
        now = self._scheduler.now()
        kept = self._cache.get(key, now)
        if kept is not None:
            self._counts["cached"] += 1
            client.send(kept[0].for_client(query, client.tcp, kept[1]))
            return
        pending = self._pending.get(key)
        if pending is None:
            if now >= self._probe_at and self.servers:
                self._probe(now)
            order = self._order(now)
            if not order or len(self._pending) >= MOST_PENDING:
                self._counts["no-upstream" if not order else "too-many-pending"] += 1
                client.send(build_reply(query, client.tcp, rcode=SERVFAIL if order else rcode))
                return
            pending = self._pending[key] = _Pending(key, query, order, now, now + _PATIENCE, [(query, client)])
            self._counts["forwarded"] += 1
            self._try(pending)
            if self._timer is None:
                self._timer = self._scheduler.call_later(_TICK, self._tick)
        elif len(pending.waiting) < MOST_WAITING:
            pending.waiting.append((query, client))
        else:
            self._counts["too-many-waiting"] += 1
            client.send(build_reply(query, client.tcp, rcode=SERVFAIL))

    def _order(self, now: float) -> list[Server]:
        """Whom to ask, first to last."""
        if not self._slow and not self._loops:
            return list(self.servers)
        loops = self.loops
        servers = [server for server in self.servers if server not in loops]
        return sorted(servers, key=lambda server: self._slow.get(server, 0.0) > now)

    def _message(self, query: Query, server: Server, number: int) -> bytes:
        head = number.to_bytes(2, "big") + (query.flags & _FORWARDED).to_bytes(2, "big")
        if server in self._plain:
            return head + _WITHOUT + query.question
        opt = _OPT_DO if query.edns is not None and query.edns.dnssec_ok else _OPT
        return head + _WITH_OPT + query.question + opt

    def _number(self) -> int:
        """An id that is not in use and cannot be guessed."""
        while True:
            if not self._random:
                self._random = self._entropy(512)
            number = int.from_bytes(self._random[:2], "big")
            self._random = self._random[2:]
            if number not in self._by_id:
                return number

    def _try(self, pending: _Pending, again: Server | None = None) -> bool:
        """Ask the next server, or one once more; False where all were asked often enough."""
        if pending.asked >= _MOST_TRIES or (again is None and pending.asked >= 2 * len(pending.order)):
            return False
        server = again or pending.order[pending.asked % len(pending.order)]
        pending.asked += 1
        number = self._number()
        pending.tries[number] = server
        self._by_id[number] = pending
        self._upstream.send(server, self._message(pending.query, server, number))
        return True

    # --- what comes back ---

    def received(self, server: Server, datagram: bytes) -> None:
        """A datagram from a server."""
        pending = self._by_id.get(int.from_bytes(datagram[:2], "big"))
        if pending is None or len(datagram) < 12 or not datagram[2] & 0x80:
            return
        number = int.from_bytes(datagram[:2], "big")
        question = pending.query.question
        whole = datagram[12 : 12 + len(question)] == question or self._matches(datagram, question)
        if pending.tries[number] != server or not whole:
            self._counts["reply-mismatch"] += 1
            return
        del pending.tries[number], self._by_id[number]
        if server in self._slow:
            del self._slow[server]
            self._log.info("upstream DNS server %s answers again", server)
        if datagram[2] & TRUNCATED >> 8 and not datagram[3] & RCODE:
            self._retry_by_tcp(pending, server, datagram)
        else:
            self._judge(pending, server, datagram)

    @staticmethod
    def _matches(datagram: bytes, question: bytes) -> bool:
        """Whether a reply is to this question: in another spelling, or a refusal that does not repeat it."""
        if datagram[4:6] == b"\0\0":
            return datagram[3] & RCODE in _FAILURES
        return datagram[12 : 12 + len(question)].lower() == question.lower()

    def _retry_by_tcp(self, pending: _Pending, server: Server, truncated: bytes) -> None:
        if self._tcp >= MOST_TCP:
            self._counts["too-many-tcp"] += 1
            self._judge(pending, server, truncated)
            return
        self._tcp += 1
        pending.tcp += 1
        self._counts["tcp-retries"] += 1
        message = self._message(pending.query, server, self._number())

        def done(reply: bytes | None) -> None:
            self._tcp -= 1
            pending.tcp -= 1
            if self._pending.get(pending.key) is not pending:
                return
            good = reply is not None and reply[:2] == message[:2] and len(reply) > 12 and reply[2] & 0x80
            question = pending.query.question
            if good and reply is not None and self._matches(reply, question):
                self._judge(pending, server, reply)
            else:
                self._judge(pending, server, truncated)

        self._upstream.ask_tcp(server, message, done)

    def _judge(self, pending: _Pending, server: Server, reply: bytes) -> None:
        """Deliver a reply, unless another server may know better."""
        rcode = reply[3] & RCODE
        if rcode in _FAILURES:
            self._counts["upstream-failures"] += 1
            if rcode in (FORMERR, NOTIMP) and server not in self._plain:
                # A server of before EDNS.
                self._plain.add(server)
                if self._try(pending, server):
                    return
            self._failure(pending, reply)
            return
        try:
            parsed = parse_reply(reply, 12 + len(pending.query.question))
        except MessageError:
            self._counts["malformed-replies"] += 1
            self._failure(pending, None)
            return
        now = self._scheduler.now()
        took = now - pending.since
        self.latency[bisect_left(BUCKETS, took)] += 1
        self.latency_sum += took
        if pending.key[-1:] == b"D" or pending.query.flags & RECURSION_DESIRED:
            self._cache.put(pending.key, parsed, now)
        self._end(pending)
        for query, client in pending.waiting:
            client.send(parsed.for_client(query, client.tcp))

    def failed(self, server: Server) -> None:
        """Nobody is there: whatever was asked there is asked elsewhere."""
        for pending in list(self._pending.values()):
            numbers = [number for number, asked in pending.tries.items() if asked == server]
            for number in numbers:
                del pending.tries[number], self._by_id[number]
            if numbers:
                self._mark_slow(server)
                self._failure(pending, None)

    def _failure(self, pending: _Pending, reply: bytes | None) -> None:
        """One answer less to wait for."""
        pending.failure = reply or pending.failure
        now = self._scheduler.now()
        fresh = pending.asked < len(pending.order)
        if fresh and self._try(pending):
            pending.next_at = now + _PATIENCE
        elif not pending.tries and not pending.tcp:
            self._give_up(pending)

    def _give_up(self, pending: _Pending) -> None:
        self._end(pending)
        rcode = SERVFAIL if pending.failure is None else pending.failure[3] & RCODE
        for query, client in pending.waiting:
            client.send(build_reply(query, client.tcp, rcode=rcode))

    def _end(self, pending: _Pending) -> None:
        del self._pending[pending.key]
        for number in pending.tries:
            del self._by_id[number]
        pending.tries.clear()

    # --- time ---

    def _tick(self) -> None:
        now = self._scheduler.now()
        for pending in list(self._pending.values()):
            if now >= pending.since + self._timeout:
                self._counts["timeouts"] += 1
                self._late(pending)
                self._give_up(pending)
            elif now >= pending.next_at:
                self._late(pending)
                pending.next_at = now + _PATIENCE
                self._try(pending)
        self._timer = self._scheduler.call_later(_TICK, self._tick) if self._pending else None

    def _late(self, pending: _Pending) -> None:
        for server in set(pending.tries.values()):
            self._mark_slow(server)

    def _mark_slow(self, server: Server) -> None:
        if server not in self._slow:
            self._log.info("upstream DNS server %s does not answer", server)
        self._slow[server] = self._scheduler.now() + _SLOW_FOR

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
