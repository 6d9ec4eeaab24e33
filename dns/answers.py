"""What we answer ourselves: names of the mesh, and names of its addresses.

An answer that was given once is kept in its wire form, keyed by its question: most queries cost one look-up. It is
dropped when its name or its address changes; only questions for what exists are kept, so there are no more of them
than names. Everything that is not ours comes out as `NotOurs`. Source: DNS spec §7; §14 (F7, F10, F12).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from random import Random

from dns.entries import qualified
from dns.message import (
    AAAA,
    AUTHENTIC,
    BADVERS,
    CHECKING_DISABLED,
    DS,
    HEADER,
    IN,
    MAX_NAME,
    MIN_SIZE,
    NOERROR,
    NS,
    NXDOMAIN,
    PTR,
    RECURSION_DESIRED,
    SERVFAIL,
    SOA,
    TXT,
    A,
    Query,
    build_reply,
    opt_record,
    record,
    reply_flags,
    text_name,
    wire_name,
)
from dns.table import NameTable

# The owner of every answer: a pointer to the question's name.
_ASKED = b"\xc0\x0c"
_REVERSE4, _REVERSE6 = b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"
_OPT_SIZE = 11
_ONE_QUESTION = b"\0\1\0\0\0\0\0\0"
_IN = IN.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class NotOurs:
    """Somebody else's name. `rcode`: what to say where there is nobody to ask."""

    rcode: int


@dataclass(slots=True)
class _Ready:
    """A kept answer of none or several records: its header behind the id by that of the query, and what follows."""

    heads: dict[bytes, bytes]
    answers: list[bytes]
    authority: bytes


class Answers:
    """The domain's answers. `probed(name)` is told names that only a query of our own can hold (DNS spec §14, F9)."""

    def __init__(self, domain: str, ttl: int, rng: Random, probed: Callable[[bytes], None]) -> None:
        wire = wire_name(qualified(domain))
        assert wire is not None, "the domain was not checked"
        self.domain = qualified(domain)
        self.wire = wire.lower()
        self._ttl = ttl
        self._shuffle = rng.shuffle
        self._probed = probed
        self._v4: NameTable | None = None
        self._v6: NameTable | None = None
        # By question, lower-cased. Nearly all answers are one record: these are kept bare, since memory is what a
        # large table costs.
        self._single: dict[bytes, bytes] = {}
        self._ready: dict[bytes, _Ready] = {}
        self._heads: dict[tuple[int, int, int], dict[bytes, bytes]] = {}
        self._ns = b"\x02ns" + wire
        # Lower-cased wire names that have an address, and the apex.
        self._names = {self.wire}
        # Serial, refresh, retry, expire, and how long "there is none" is remembered: as long as an answer.
        self._soa = self._ns + b"\x0ahostmaster" + wire + struct.pack(">IIIII", 1, 3600, 600, 86400, ttl)
        # Our OPT records by a client's, without the size in the middle.
        self._opts = {opt[:3] + opt[5:]: opt for opt in (opt_record(False), opt_record(True))}
        self._single_heads = self._heads_for(NOERROR, 1, 0)
        self._missing_heads = self._heads_for(NXDOMAIN, 0, 1)
        self._missing_ends = tuple(self.wire + rtype.to_bytes(2, "big") + _IN for rtype in (A, AAAA))
        self._missing_tail = record(b"", SOA, ttl, self._soa)
        self._missing_most = min(MAX_NAME + 4, MIN_SIZE - HEADER.size - 2 - len(self._missing_tail))

    def serve(self, v4: NameTable, v6: NameTable) -> None:
        """Say where names are."""
        self._v4, self._v6 = v4, v6

    def changed(self, name: str, address: int, size: int) -> None:
        """Drop what was prepared of a lower-cased name and of an address of `size` bytes."""
        wire = wire_name(name)
        if wire is not None:
            assert self._v4 is not None and self._v6 is not None
            if self._v4.has(name) or self._v6.has(name):
                self._names.add(wire)
            else:
                self._names -= {wire} - {self.wire}
        if wire is not None and (self._single or self._ready):
            names = [wire]
            if wire.endswith(self.wire) and wire[0] + 1 + len(self.wire) == len(wire):
                names.append(wire[: wire[0] + 1] + b"\0")
            for each in names:
                for rtype in (A, AAAA):
                    self._drop(each + rtype.to_bytes(2, "big") + _IN)
        if self._single:
            self._drop(reverse_name(address, size) + PTR.to_bytes(2, "big") + _IN)

    def _drop(self, asked: bytes) -> None:
        self._single.pop(asked, None)
        self._ready.pop(asked, None)

    # --- answering ---

    def quick(self, datagram: bytes) -> bytes | None:
        """The answer to a query that is kept, at most 512 bytes; None where `answer` must be asked."""
        asked = datagram[12:].lower()
        single = self._single.get(asked)
        if single is not None:
            head = self._single_heads.get(datagram[2:12])
            return None if head is None else datagram[:2] + head + datagram[12:] + single
        ready = self._ready.get(asked)
        if ready is None:
            if datagram[11:12] == b"\1":
                return self._quick_edns(datagram)
            return self._quick_missing(datagram, asked)
        head = ready.heads.get(datagram[2:12])
        if head is None:
            return None
        self._shuffle(ready.answers)
        return b"".join((datagram[:2], head, datagram[12:], *ready.answers, ready.authority))

    def _quick_edns(self, datagram: bytes) -> bytes | None:
        """The answer to a query with a bare OPT record behind it: that of the query without, and ours behind it."""
        opt = self._opts.get(datagram[-_OPT_SIZE:-8] + datagram[-6:])
        if opt is None:
            return None
        reply = self.quick(datagram[:11] + b"\0" + datagram[12:-_OPT_SIZE])
        if reply is None or len(reply) + _OPT_SIZE > MIN_SIZE:
            return None
        return b"".join((reply[:11], b"\1", reply[12:], opt))

    def _quick_missing(self, datagram: bytes, asked: bytes) -> bytes | None:
        """The answer about a name of the domain that nobody has: the commonest of questions, since resolvers search."""
        head = self._missing_heads.get(datagram[2:12])
        if head is None or not asked.endswith(self._missing_ends) or len(asked) > self._missing_most:
            return None
        name = asked[:-4]
        if name in self._names or not name.isascii() or not self._at_label(name):
            return None
        owner = (0xC000 + HEADER.size + len(name) - len(self.wire)).to_bytes(2, "big")
        return b"".join((datagram[:2], head, datagram[12:], owner, self._missing_tail))

    def answer(self, query: Query, tcp: bool) -> bytes | NotOurs:
        """The answer, or that it is not ours to give."""
        if query.edns is not None and query.edns.version:
            return build_reply(query, tcp, rcode=BADVERS)
        if not query.questions:
            return build_reply(query, tcp, rcode=SERVFAIL)
        name = query.name
        if query.rtype != DS:
            if name.endswith(self.wire) and self._at_label(name):
                return self._local(query, name, tcp)
            for zone, size, digits in ((_REVERSE4, 4, 4), (_REVERSE6, 16, 32)):
                if name.endswith(zone):
                    return self._reverse(query, _reverse_address(name[: -len(zone)], size, digits), size, tcp)
        if name[0] + 2 >= len(name):
            # One label, or none: it may be short for a name of ours.
            return self._local(query, name[:-1] + self.wire if name[0] else b"", tcp, short=True)
        return NotOurs(SERVFAIL)

    def _at_label(self, name: bytes) -> bool:
        """Whether the domain begins where a label of the name does, and no earlier label ends the name."""
        position, domain = 0, len(name) - len(self.wire)
        while position < domain:
            length = name[position]
            if not length:
                return False
            position += length + 1
        return position == domain

    def _local(self, query: Query, name: bytes, tcp: bool, *, short: bool = False) -> bytes | NotOurs:
        if query.questions != 1:
            return build_reply(query, tcp, rcode=NXDOMAIN)
        assert self._v4 is not None and self._v6 is not None
        text = text_name(name) if name else None
        lower = text.lower() if text is not None else ""
        v4, v6 = self._v4.addresses(lower), self._v6.addresses(lower)
        apex = name == self.wire and not short
        if not v4 and not v6 and not apex:
            if short:
                return NotOurs(NXDOMAIN)
            if query.rtype == TXT:
                self._probed(name)
            return build_reply(query, tcp, rcode=NXDOMAIN, authority=[self._soa_record(query.name)])
        answers: list[bytes] = []
        if query.rtype == A:
            answers = [record(_ASKED, A, self._ttl, address.to_bytes(4, "big")) for address in v4]
        elif query.rtype == AAAA:
            answers = [record(_ASKED, AAAA, self._ttl, address.to_bytes(16, "big")) for address in v6]
        elif apex and query.rtype == SOA:
            answers = [self._soa_record(query.name)]
        elif apex and query.rtype == NS:
            answers = [record(_ASKED, NS, self._ttl, self._ns)]
        keep = query.rtype in (A, AAAA) and name == wire_name(lower)
        return self._give(query, answers, tcp, keep, [] if answers else [self._soa_record(query.name)])

    def _reverse(self, query: Query, address: int | None, size: int, tcp: bool) -> bytes | NotOurs:
        if query.questions != 1:
            return build_reply(query, tcp, rcode=NXDOMAIN)
        if query.rtype != PTR or address is None:
            return NotOurs(NXDOMAIN if size == 4 else SERVFAIL)
        table = self._v4 if size == 4 else self._v6
        assert table is not None
        hostname = table.hostname(address)
        target = wire_name(hostname) if hostname is not None else None
        if target is None:
            return NotOurs(SERVFAIL)
        return self._give(query, [record(_ASKED, PTR, self._ttl, target)], tcp, True, [])

    def _give(self, query: Query, answers: list[bytes], tcp: bool, keep: bool, authority: list[bytes]) -> bytes:
        """An answer of ours about what exists; kept if it is of the usual kind."""
        size = HEADER.size + len(query.question) + sum(map(len, answers)) + sum(map(len, authority))
        if keep and size <= MIN_SIZE and query.question.endswith(_IN):
            asked = query.question.lower()
            if len(answers) == 1 and not authority:
                self._single[asked] = answers[0]
            else:
                heads = self._heads_for(NOERROR, len(answers), len(authority))
                self._ready[asked] = _Ready(heads, list(answers), b"".join(authority))
        if len(answers) > 1:
            self._shuffle(answers)
        return build_reply(query, tcp, authoritative=True, answers=answers, authority=authority)

    def _heads_for(self, rcode: int, answers: int, authority: int) -> dict[bytes, bytes]:
        """Headers behind the id, of queries with one question and of the answers to them."""
        heads = self._heads.get((rcode, answers, authority))
        if heads is None:
            heads = self._heads[rcode, answers, authority] = {}
            counts = b"\0\1" + answers.to_bytes(2, "big") + authority.to_bytes(2, "big") + b"\0\0"
            for bits in product((0, RECURSION_DESIRED), (0, AUTHENTIC), (0, CHECKING_DISABLED)):
                flags = sum(bits)
                answer = reply_flags(flags, rcode, rcode == NOERROR).to_bytes(2, "big") + counts
                heads[flags.to_bytes(2, "big") + _ONE_QUESTION] = answer
        return heads

    def _soa_record(self, asked: bytes) -> bytes:
        """The domain's SOA: how long to remember that something is not there. Its owner points into the question."""
        offset = HEADER.size + len(asked) - len(self.wire)
        owner = (0xC000 | offset).to_bytes(2, "big") if asked.endswith(self.wire) else self.wire
        return record(owner, SOA, self._ttl, self._soa)


def reverse_name(address: int, size: int) -> bytes:
    """The wire form of the name that an address of `size` bytes has in the reverse zones."""
    packed = address.to_bytes(size, "big")
    if size == 4:
        labels = [str(octet).encode() for octet in reversed(packed)]
    else:
        labels = [digit.encode() for digit in reversed(packed.hex())]
    return b"".join(bytes((len(label),)) + label for label in labels) + (_REVERSE4 if size == 4 else _REVERSE6)


def _reverse_address(labels: bytes, size: int, digits: int) -> int | None:
    """The address that labels name, None where they are no whole address."""
    parts = []
    position = 0
    while position < len(labels):
        parts.append(labels[position + 1 : position + 1 + labels[position]])
        position += labels[position] + 1
    if len(parts) != digits or position != len(labels):
        return None
    try:
        if size == 4:
            octets = [int(part) for part in reversed(parts) if part.isdigit() and len(part) <= 3]
            return int.from_bytes(bytes(octets), "big") if len(octets) == 4 else None
        return int(b"".join(reversed(parts)), 16) if all(len(part) == 1 and part.isalnum() for part in parts) else None
    except ValueError:
        return None
