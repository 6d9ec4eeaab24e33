"""Ethernet frames as the overlay reads them: addresses, IPv4's DF flag, internet checksums.

"IPv4" means EtherType 0800 directly behind the MACs and a header that is all there; tagged and other frames are
frames and nothing more. Source: data plane spec §3.4, §3.8; RFC 1071 (checksum).
"""

import sys
from dataclasses import dataclass

ETHERNET_HEADER = 14
ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"
IPV6_HEADER = 40
_SPECIAL = bytes(ETHERNET_HEADER)
_MIN_IPV4 = 20
_DF = 0x40


class Run(bytes):
    """Frames of one flow in order, which go the same way: as bytes it is the first of them, the longest."""

    frames: list[bytes]

    @classmethod
    def of(cls, frames: list[bytes]) -> bytes:
        """A run, or the only frame."""
        if len(frames) == 1:
            return frames[0]
        made = cls(frames[0])
        made.frames = frames
        return made


def frames_of(frame: bytes) -> list[bytes]:
    """All frames of a run, or the one that it is."""
    return frame.frames if isinstance(frame, Run) else [frame]


def is_special(frame: bytes) -> bool:
    """Whether all of the Ethernet header is zero: such frames are the data paths' own."""
    return frame.startswith(_SPECIAL)


@dataclass(frozen=True, slots=True)
class IPv4Header:
    """Where things are in an IPv4 frame. Lengths in bytes; `total` as the header says it, unchecked."""

    header: int
    total: int
    df: bool


def ipv4_header(frame: bytes) -> IPv4Header | None:
    """The IPv4 header of a frame; None if it has none that can be read."""
    if frame[12:14] != ETHERTYPE_IPV4 or len(frame) < ETHERNET_HEADER + _MIN_IPV4:
        return None
    first = frame[ETHERNET_HEADER]
    header = (first & 0x0F) * 4
    if header < _MIN_IPV4 or len(frame) < ETHERNET_HEADER + header:
        return None
    total = int.from_bytes(frame[16:18], "big")
    if total < header:
        return None
    return IPv4Header(header, total, bool(frame[20] & _DF))


def is_ipv6(frame: bytes) -> bool:
    """Whether the frame carries a whole IPv6 header, untagged."""
    return frame[12:14] == ETHERTYPE_IPV6 and len(frame) >= ETHERNET_HEADER + IPV6_HEADER


def checksum(data: bytes, start: int = 0) -> int:
    """The internet checksum of `data`, 16 bits, host order; `start` is a sum to go on from."""
    if len(data) & 1:
        data += b"\0"
    total = start + sum(memoryview(data).cast("H"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # The words were added in this machine's order: the checksum does not care, its bytes do.
    return int.from_bytes((~total & 0xFFFF).to_bytes(2, sys.byteorder), "big")
