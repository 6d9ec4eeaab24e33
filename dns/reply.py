"""What upstream servers answer: read as far as it must be to keep it, to age it and to cut it to size.

A reply is kept behind its question and without its OPT record, which is between two neighbours only. Names may be
compressed, but point backwards only, so that a reply can be cut between two records.
Source: RFC 1035 §4.1, RFC 2308 §5, RFC 6891 §6; DNS spec §8, §14 (F10).
"""

import struct
from dataclasses import dataclass

import dnslib

from dns.message import (
    CHECKING_DISABLED,
    HEADER,
    NOERROR,
    NXDOMAIN,
    OPCODE,
    OPT,
    RCODE,
    RECURSION_AVAILABLE,
    RECURSION_DESIRED,
    RESPONSE,
    SOA,
    TRUNCATED,
    UNREADABLE,
    MessageError,
    Query,
    opt_record,
)

_RECORD = struct.Struct(">HHIH")
_TTL = struct.Struct(">I")
_OF_CLIENT = RECURSION_DESIRED | CHECKING_DISABLED
# An answer is forgotten after this many seconds, whatever it says of itself.
_MAX_TTL, _MAX_NEGATIVE_TTL = 300, 30


@dataclass(slots=True)
class Reply:
    """One reply. `body`: its records without OPT; `ttls`: where in it time-to-lives are; `ends`: of its answers.

    `ttl`: seconds to keep it, 0 for not at all. `rcode` has all its bits.
    """

    flags: int
    rcode: int
    counts: tuple[int, int, int]
    body: bytes
    ttls: list[int]
    ends: list[int]
    ttl: int

    def for_client(self, query: Query, tcp: bool, age: int = 0) -> bytes:
        """As one client asked: its id, its spelling, no larger than it can take, `age` seconds old."""
        opt = b"" if query.edns is None else opt_record(query.edns.dnssec_ok, self.rcode)
        flags = self.flags & ~_OF_CLIENT | query.flags & _OF_CLIENT
        body = self._aged(age) if age else self.body
        answers, authority, additional = self.counts
        room = query.limit(tcp) - HEADER.size - len(query.question) - len(opt)
        if len(body) > room:
            answers = sum(end <= room for end in self.ends)
            body = body[: self.ends[answers - 1]] if answers else b""
            authority = additional = 0
            flags |= TRUNCATED
        header = struct.pack(">HHHHH", flags, 1, answers, authority, additional + bool(opt))
        return b"".join((query.ident, header, query.question, body, opt))

    def _aged(self, age: int) -> bytes:
        body = bytearray(self.body)
        for position in self.ttls:
            (ttl,) = _TTL.unpack_from(body, position)
            _TTL.pack_into(body, position, max(0, ttl - age))
        return bytes(body)


def parse_reply(message: bytes, start: int) -> Reply:
    """A reply whose records begin at `start`, behind its one question. Raises MessageError."""
    _, flags, _, answers, authority, additional = HEADER.unpack_from(message)
    ttls: list[int] = []
    ends: list[int] = []
    lowest = _MAX_TTL
    negative: int | None = None
    rcode = flags & RCODE
    stop = position = start
    count = answers + authority + additional
    try:
        for number in range(count):
            begin = position
            position = _skip_name(message, position)
            rtype, _, ttl, length = _RECORD.unpack_from(message, position)
            if rtype == OPT and number >= answers + authority:
                rcode |= ttl >> 24 << 4
                if number + 1 < count:
                    return _without_opt(message)
                additional -= 1
                stop = begin
                position += _RECORD.size + length
                break
            ttls.append(position + 4 - start)
            position += _RECORD.size + length
            stop = position
            if number < answers:
                ends.append(position - start)
            elif rtype == SOA and number < answers + authority:
                negative = min(ttl, _TTL.unpack_from(message, position - 4)[0])
            lowest = min(lowest, ttl)
    except (struct.error, IndexError):
        raise MessageError("record goes beyond the reply") from None
    if position > len(message):
        raise MessageError("record goes beyond the reply")
    if not answers or rcode == NXDOMAIN:
        lowest = 0 if negative is None else min(negative, _MAX_NEGATIVE_TTL)
    if rcode not in (NOERROR, NXDOMAIN) or flags & TRUNCATED or lowest & 0x80000000:
        lowest = 0
    kept = RESPONSE | flags & ~(OPCODE | RCODE) | RECURSION_AVAILABLE | rcode & RCODE
    return Reply(kept, rcode, (answers, authority, additional), message[start:stop], ttls, ends, lowest)


def _skip_name(message: bytes, position: int) -> int:
    """Behind a name, which may end in a pointer. Raises IndexError."""
    while length := message[position]:
        if length >= 0xC0:
            return position + 2
        if length > 63:
            raise MessageError("extended label in a reply")
        position += length + 1
    return position + 1


def _without_opt(message: bytes) -> Reply:
    """A reply with more records behind its OPT: what stands behind it may be pointed at, so it is written anew."""
    try:
        parsed = dnslib.DNSRecord.parse(message)
        rcode = [rr.ttl >> 24 << 4 for rr in parsed.ar if rr.rtype == OPT]
        parsed.ar = [rr for rr in parsed.ar if rr.rtype != OPT]
        packed = bytes(parsed.pack())
    except UNREADABLE as error:
        raise MessageError(str(error)) from error
    position = _skip_name(packed, HEADER.size) + 4
    reply = parse_reply(packed, position)
    reply.rcode |= rcode[0]
    return reply
