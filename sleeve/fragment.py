"""IPv4 fragmentation of frames that fit no link, where the underlay is not trusted to fragment for us.

Source: data plane spec §3.10; RFC 791.
"""

from overlay.frames import ETHERNET_HEADER, checksum, ipv4_header

_MF = 0x2000
_OFFSET = 0x1FFF
_MIN_FRAME = 60


def fragment(frame: bytes, mtu: int) -> list[bytes]:
    """The pieces of an IPv4 frame, none over `mtu` bytes of IP packet; nothing for a frame that has none."""
    header = ipv4_header(frame)
    if header is None:
        return []
    ethernet = frame[:ETHERNET_HEADER]
    ip = frame[ETHERNET_HEADER : ETHERNET_HEADER + header.header]
    payload = frame[ETHERNET_HEADER + header.header : ETHERNET_HEADER + header.total]
    step = (mtu - header.header) & ~7
    if step <= 0:
        return []
    flags = int.from_bytes(ip[6:8], "big")
    pieces = []
    for position in range(0, len(payload), step):
        part = payload[position : position + step]
        last = position + step >= len(payload)
        field = ((flags & ~_OFFSET) | (flags & _OFFSET) + position // 8) if last else (
            (flags & ~_OFFSET) | _MF | (flags & _OFFSET) + position // 8
        )
        new = ip[:2] + (len(ip) + len(part)).to_bytes(2, "big") + ip[4:6] + field.to_bytes(2, "big") + ip[8:]
        new = new[:10] + b"\0\0" + new[12:]
        new = new[:10] + checksum(new).to_bytes(2, "big") + new[12:]
        pieces.append((ethernet + new + part).ljust(_MIN_FRAME, b"\0"))
    return pieces
