"""ICMP answers to frames that do not fit a link: how senders learn the overlay's MTU.

Built as if the destination had sent them. Source: data plane spec §3.9; RFC 792, RFC 1191 (fragmentation needed),
RFC 4443 §2.4 and §3.2 (packet too big).
"""

import struct

from overlay.frames import ETHERNET_HEADER, IPV6_HEADER, checksum, ipv4_header, is_ipv6

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_ICMP = struct.Struct(">BBHHH")
_ICMP6 = struct.Struct(">BBHI")
_IPV6 = struct.Struct(">IHBB16s16s")
_TTL = 64
_ICMP_PROTOCOL = 1
_ICMPV6_PROTOCOL = 58
_QUOTED = 8
_IPV6_MIN_MTU = 1280
_ICMPV6_ERRORS = range(128)


def frag_needed(frame: bytes, mtu: int) -> bytes | None:
    """The answer to an IPv4 frame with DF over `mtu` (bytes of IP packet); None for other frames."""
    header = ipv4_header(frame)
    if header is None:
        return None
    packet = frame[ETHERNET_HEADER:]
    body = packet[: header.header + _QUOTED]
    icmp = _ICMP.pack(3, 4, 0, 0, mtu) + body
    icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
    source, destination = packet[12:16], packet[16:20]
    total = _IPV4.size + len(icmp)
    ip = _IPV4.pack(0x45, packet[1], total, 0, 0, _TTL, _ICMP_PROTOCOL, 0, destination, source)
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    return _answer(frame) + ip + icmp


def packet_too_big(frame: bytes, mtu: int) -> bytes | None:
    """The answer to an IPv6 frame over `mtu`; None for other frames, for errors, and below IPv6's least MTU."""
    if not is_ipv6(frame) or mtu < _IPV6_MIN_MTU:
        return None
    packet = frame[ETHERNET_HEADER:]
    source, destination = packet[8:24], packet[24:40]
    # Never in answer to an error, nor to a source that is no single host.
    if packet[6] == _ICMPV6_PROTOCOL and len(packet) > IPV6_HEADER and packet[IPV6_HEADER] in _ICMPV6_ERRORS:
        return None
    if source[0] == 0xFF or not any(source):
        return None
    # An answer must come from an address of one host; a group has none.
    if destination[0] == 0xFF:
        return None
    body = packet[: _IPV6_MIN_MTU - IPV6_HEADER - _ICMP6.size]
    icmp = _ICMP6.pack(2, 0, 0, mtu) + body
    pseudo = destination + source + struct.pack(">II", len(icmp), _ICMPV6_PROTOCOL)
    icmp = icmp[:2] + checksum(pseudo + icmp).to_bytes(2, "big") + icmp[4:]
    ip = _IPV6.pack(6 << 28, len(icmp), _ICMPV6_PROTOCOL, _TTL, destination, source)
    return _answer(frame) + ip + icmp


def _answer(frame: bytes) -> bytes:
    return frame[6:12] + frame[:6] + frame[12:14]
