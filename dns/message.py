"""DNS messages, as far as they must be understood: a query by hand in its usual shape, in any other by dnslib.

What stub resolvers send is one question and at most an OPT record; anything else that dnslib can read is reduced to
its first question. Names are compared in their wire form, lower-cased: a length byte is below 64 and is no letter.
Source: RFC 1035 §4, RFC 6891; DNS spec §7.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import dnslib
from dnslib.label import DNSLabelError

HEADER = struct.Struct(">HHHHHH")
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16
A, NS, SOA, PTR, TXT, AAAA, OPT, DS = 1, 2, 6, 12, 16, 28, 41, 43
IN = 1
# Flags of the header's second and third byte.
RESPONSE, AUTHORITATIVE, TRUNCATED, RECURSION_DESIRED, RECURSION_AVAILABLE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
AUTHENTIC, CHECKING_DISABLED, OPCODE, RCODE = 0x0020, 0x0010, 0x7800, 0x000F
MIN_SIZE = 512
OUR_SIZE = 1232
MAX_NAME = 255
_OPT_FIXED = struct.Struct(">BHHBBHH")
_DNSSEC_OK = 0x8000
_MARKER = struct.Struct(">HHIH")


# What dnslib raises for bytes that it cannot read.
UNREADABLE = (dnslib.DNSError, dnslib.BufferError, DNSLabelError, ValueError, IndexError, struct.error)


class MessageError(Exception):
    """Bytes that are no DNS message."""


class Edns(NamedTuple):
    """What a query's OPT record says: the largest UDP answer (bytes), the version, the DO bit."""

    size: int
    version: int
    dnssec_ok: bool


class Query(NamedTuple):
    """A query, reduced to its first question.

    `question`: name, type and class as they were asked, empty where there is none; `name`: lower-cased wire form.
    """

    ident: bytes
    flags: int
    questions: int
    question: bytes
    name: bytes
    rtype: int
    edns: Edns | None

    def limit(self, tcp: bool) -> int:
        """The largest answer, bytes."""
        if tcp:
            return 65535
        return MIN_SIZE if self.edns is None else max(MIN_SIZE, self.edns.size)


def parse_query(datagram: bytes) -> Query | None:
    """A query; None for what is none (an answer, or too short to answer). Raises MessageError where FORMERR is due."""
    if len(datagram) < HEADER.size or datagram[2] & 0x80:
        return None
    _, flags, questions, answers, authority, additional = HEADER.unpack_from(datagram)
    if questions == 1 and not answers and not authority and additional <= 1:
        end = name_end(datagram, HEADER.size)
        if end + 4 <= len(datagram):
            edns = None
            if additional:
                edns = _opt(datagram, end + 4)
            if edns is not None or not additional:
                name = datagram[HEADER.size : end].lower()
                rtype = int.from_bytes(datagram[end : end + 2], "big")
                return Query(datagram[:2], flags, 1, datagram[HEADER.size : end + 4], name, rtype, edns)
    return _odd_query(datagram, flags)


def name_end(message: bytes, start: int) -> int:
    """The position behind an uncompressed name. Raises MessageError."""
    position = start
    try:
        while length := message[position]:
            if length > 63:
                raise MessageError("compressed or extended label in a question")
            position += length + 1
    except IndexError:
        raise MessageError("name goes beyond the message") from None
    if position + 1 - start > MAX_NAME:
        raise MessageError("name of more than 255 bytes")
    return position + 1


def _opt(message: bytes, start: int) -> Edns | None:
    """An OPT record that is all the rest of a message."""
    if len(message) < start + _OPT_FIXED.size:
        return None
    root, rtype, size, _, version, flags, length = _OPT_FIXED.unpack_from(message, start)
    if root or rtype != OPT or start + _OPT_FIXED.size + length != len(message):
        return None
    return Edns(size, version, bool(flags & _DNSSEC_OK))


def _odd_query(datagram: bytes, flags: int) -> Query:
    """A query of unusual shape."""
    try:
        parsed = dnslib.DNSRecord.parse(datagram)
        opt = next((rr for rr in parsed.ar if rr.rtype == OPT), None)
        edns = Edns(opt.rclass, opt.ttl >> 16 & 255, bool(opt.ttl & _DNSSEC_OK)) if opt is not None else None
        if not parsed.questions:
            return Query(datagram[:2], flags, 0, b"", b"", 0, edns)
        first = parsed.questions[0]
        name = encode_labels(first.qname.label)
    except UNREADABLE as error:
        raise MessageError(str(error)) from error
    question = name + first.qtype.to_bytes(2, "big") + first.qclass.to_bytes(2, "big")
    return Query(datagram[:2], flags, len(parsed.questions), question, name.lower(), first.qtype, edns)


def encode_labels(labels: Sequence[bytes]) -> bytes:
    """The wire form of a name. Raises ValueError where it has none."""
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError("label of no or more than 63 bytes")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(wire) > MAX_NAME:
        raise ValueError("name of more than 255 bytes")
    return wire


def wire_name(name: str) -> bytes | None:
    """The wire form of a text with its final dot; None where it has none (an empty label, one of 64 bytes)."""
    if name == ".":
        return b"\0"
    try:
        return encode_labels(name.removesuffix(".").encode("utf-8", "surrogateescape").split(b"."))
    except ValueError:
        return None


def text_name(wire: bytes) -> str | None:
    """The text of an uncompressed wire name, with its final dot; None where a label contains one."""
    labels = []
    position = 0
    while length := wire[position]:
        labels.append(wire[position + 1 : position + 1 + length])
        position += length + 1
    text = b".".join(labels) + b"."
    if text.count(b".") != max(1, len(labels)):
        return None
    return text.decode("utf-8", "surrogateescape")


def record(owner: bytes, rtype: int, ttl: int, value: bytes) -> bytes:
    """One resource record of class IN."""
    return owner + _MARKER.pack(rtype, IN, ttl, len(value)) + value


def reply_flags(flags: int, rcode: int, authoritative: bool) -> int:
    """The flags of an answer to a query with `flags`."""
    # Recursion is a matter of queries; other operations are answered like them, as by Weave Net.
    kept = flags & OPCODE or flags & (RECURSION_DESIRED | CHECKING_DISABLED)
    return RESPONSE | kept | RECURSION_AVAILABLE | (AUTHORITATIVE if authoritative else 0) | rcode & RCODE


def opt_record(dnssec_ok: bool, rcode: int = 0) -> bytes:
    """Our OPT record. `rcode`: its upper bits travel here."""
    return _OPT_FIXED.pack(0, OPT, OUR_SIZE, rcode >> 4, 0, _DNSSEC_OK if dnssec_ok else 0, 0)


def build_reply(
    query: Query,
    tcp: bool,
    *,
    rcode: int = NOERROR,
    authoritative: bool = False,
    answers: Sequence[bytes] = (),
    authority: Sequence[bytes] = (),
) -> bytes:
    """An answer that the client can take: as many answers as fit, marked if some do not (RFC 6891)."""
    opt = b"" if query.edns is None else opt_record(query.edns.dnssec_ok, rcode)
    flags = reply_flags(query.flags, rcode, authoritative)
    room = query.limit(tcp) - HEADER.size - len(query.question) - len(opt)
    fitting: list[bytes] = []
    for answer in answers:
        room -= len(answer)
        if room < 0:
            flags |= TRUNCATED
            break
        fitting.append(answer)
    if sum(map(len, authority)) > room:
        # Nothing is missed without: it says only how long to remember.
        authority = ()
    counts = (1 if query.question else 0, len(fitting), len(authority), 1 if opt else 0)
    header = query.ident + flags.to_bytes(2, "big") + struct.pack(">HHHH", *counts)
    return b"".join((header, query.question, *fitting, *authority, opt))


def error_reply(datagram: bytes, rcode: int) -> bytes:
    """An answer to a message of which only the header can be trusted."""
    flags = int.from_bytes(datagram[2:4], "big")
    return datagram[:2] + reply_flags(flags, rcode, False).to_bytes(2, "big") + bytes(8)
