"""Virtio-net headers in plain Python: super-frames of the TAP are cut into frames, and frames of one flow joined.

Only TCP is joined, over IPv4 without options or IPv6 without extension headers, where all but lengths, numbers and
payload are equal and every checksum is right (`sleeve/core/merge.c` has the same rules, and UDP's).
Checksums are remainders: a number's digits to the base 2^16 add up, modulo 2^16 - 1, to the number itself. numpy, where
it is installed, adds them faster for many segments at once.
Source: virtio 1.2, §5.1.6; RFC 1071; RFC 9293.
"""

import contextlib
import importlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from overlay.frames import Run

numpy: Any = None
with contextlib.suppress(ImportError):
    numpy = importlib.import_module("numpy")

VNET = struct.Struct("=BBHHHH")
_TCP = struct.Struct(">4sI5sB2sH")
_IPV4 = struct.Struct(">HH4sH")
NO_OFFLOAD = bytes(VNET.size)
_NEEDS_CSUM = 1
_TCP4, _TCP6, _ECN = 1, 4, 0x80
_FIN, _PSH, _ACK, _ECE, _CWR = 0x01, 0x08, 0x10, 0x40, 0x80
_MAX_MERGED = 64
_MAX_IP = 65535
_IPV4_AT, _IPV6_AT = 34, 54
# Where the IP header says how long the packet is, and how many octets that leaves out.
_LENGTH = {_IPV4_AT: (16, 14), _IPV6_AT: (18, 54)}
_TCP_HEADER = 20
_OTHER_FLAGS = 0xFF & ~(_ACK | _PSH | _FIN | _ECE)


class OffloadError(Exception):
    """A header that says what cannot be."""


def _remainder(octets: bytes) -> int:
    """The sum of 16-bit words, in one's complement; 0 and 0xffff are the same there."""
    number = int.from_bytes(octets, "big")
    return (number << 8 if len(octets) & 1 else number) % 0xFFFF


def _swapped(words: int) -> int:
    """Two octets in the other order."""
    return (words & 0xFF) << 8 | words >> 8


def _remainders(frame: bytes, start: int, size: int) -> list[int]:
    """The sums of the payloads of `size` octets from `start` on, the last of which may be shorter."""
    whole = (len(frame) - start) // size if numpy is not None and not size & 1 else 0
    sums: list[int] = []
    if whole > 1:
        words = numpy.frombuffer(frame, "<u2", whole * size // 2, start).reshape(whole, -1)
        sums = [_swapped(total % 0xFFFF) for total in words.sum(axis=1, dtype=numpy.uint64).tolist()]
        start += whole * size
    return sums + [_remainder(frame[at : at + size]) for at in range(start, len(frame), size)]


def _complement(words: int) -> int:
    """The checksum over words that are not all zero, as additions would have left it."""
    return 0xFFFF - (words % 0xFFFF or 0xFFFF)


def _pseudo(frame: bytes, l4: int, size: int) -> int:
    """The pseudo header's sum, unfolded, of `size` octets of TCP."""
    addresses = frame[26:34] if l4 == _IPV4_AT else frame[22:54]
    return int.from_bytes(addresses, "big") % 0xFFFF + 6 + size


def finish(head: bytes, frame: bytes) -> bytes:
    """The frame that a TAP's one stands for, a `Run` where it stands for several. Raises OffloadError."""
    if len(head) < VNET.size:
        raise OffloadError("no header")
    flags, kind, _, size, start, offset = VNET.unpack(head)
    kind &= ~_ECN
    if not kind:
        if not flags & _NEEDS_CSUM:
            return frame
        field = start + offset
        if field + 2 > len(frame):
            raise OffloadError("a checksum beyond the frame")
        check = 0xFFFF - _remainder(frame[start:])
        return frame[:field] + (check or 0xFFFF).to_bytes(2, "big") + frame[field + 2 :]
    if kind not in (_TCP4, _TCP6) or not flags & _NEEDS_CSUM or not size or len(frame) < start + _TCP_HEADER:
        raise OffloadError(f"segments of kind {kind}, {size} octets each")
    return _cut(frame, start, size, v6=kind == _TCP6)


def _cut(frame: bytes, l4: int, size: int, *, v6: bool) -> bytes:
    """Segments of `size` octets: the header of all, with lengths, numbers, flags and checksums of their own."""
    header = l4 + (frame[l4 + 12] >> 4) * 4
    l3 = l4 - (40 if v6 else 20)
    if l3 < 14 or header < l4 + _TCP_HEADER or header >= len(frame) or frame[l3] >> 4 != (6 if v6 else 4):
        raise OffloadError("headers that do not fit together")
    ident, sequence, flags = _number(frame, l3 + 4, 2), _number(frame, l4 + 4, 4), frame[l4 + 13]
    # Sums over what is the same in all: their fields that differ count as zero.
    addresses = _remainder(frame[l3 + 8 : l4] if v6 else frame[l3 + 12 : l4])
    same = addresses + 6 + _remainder(frame[l4 : l4 + 4] + frame[l4 + 8 : l4 + 12] + frame[l4 + 14 : l4 + 16])
    same += (frame[l4 + 12] << 8) + _remainder(frame[l4 + 20 : header]) + header - l4
    ip = addresses + _remainder(frame[l3 : l3 + 2] + frame[l3 + 6 : l3 + 10])
    start, middle = (frame[: l3 + 4], frame[l3 + 6 : l4]) if v6 else (frame[: l3 + 2], frame[l3 + 6 : l3 + 10])
    middle6, addresses4 = (middle, b"") if v6 else (b"", frame[l3 + 12 : l4])
    ports, ahead = frame[l4 : l4 + 4], frame[l4 + 8 : l4 + 13]
    window, options = frame[l4 + 14 : l4 + 16], b"\0\0" + frame[l4 + 20 : header]
    sums = _remainders(frame, header, size)
    made = []
    for number, at in enumerate(range(header, len(frame), size)):
        payload = frame[at : at + size]
        length = header - l4 + len(payload)
        mine = flags if at + size >= len(frame) else flags & ~(_FIN | _PSH)
        if number:
            mine &= ~_CWR
        place = (sequence + at - header) & 0xFFFFFFFF
        check = _complement(same + len(payload) + (place >> 16) + (place & 0xFFFF) + mine + sums[number])
        tcp = _TCP.pack(ports, place, ahead, mine, window, check) + options
        if v6:
            made.append(b"".join((start, length.to_bytes(2, "big"), middle6, tcp, payload)))
        else:
            mark, total = (ident + number) & 0xFFFF, length + 20
            numbers = _IPV4.pack(total, mark, middle, _complement(ip + total + mark))
            made.append(b"".join((start, numbers, addresses4, tcp, payload)))
    return Run.of(made)


def _number(frame: bytes, at: int, size: int) -> int:
    return int.from_bytes(frame[at : at + size], "big")


@lru_cache(64)
def _same(l4: int, header: int) -> int:
    """Which bits of the headers must be equal in all: not lengths, numbers and checksums, nor what the last may set."""
    mask = bytearray(b"\xff" * header)
    for at, size in ((16, 4), (24, 2)) if l4 == _IPV4_AT else ((18, 2),):
        mask[at : at + size] = bytes(size)
    mask[l4 + 4 : l4 + 8] = bytes(4)
    mask[l4 + 13] = 0xFF & ~(_FIN | _PSH)
    mask[l4 + 16 : l4 + 18] = bytes(2)
    return int.from_bytes(mask, "big")


@dataclass(slots=True)
class _Open:
    """A run that may go on: what the next frame must look like."""

    frames: list[bytes]
    l4: int
    header: int
    payload: int
    sequence: int
    ident: int
    total: int
    mask: int
    same: int
    closed: bool = False


class Joiner:
    """Joins frames of one flow that follow each other directly. What comes out is in the order in which it went in."""

    def __init__(self) -> None:
        self._open: _Open | None = None

    def push(self, frame: bytes) -> Sequence[bytes]:
        """One more frame. What is complete is returned; `frame` itself may wait for others, see `pull`."""
        known = self._open
        if known is not None and self._follows(known, frame):
            return ()
        done = self.pull()
        self._open = _begin(frame)
        return done if self._open is not None else (*done, frame)

    def pull(self) -> Sequence[bytes]:
        """What waits: a run, or its frames where not all checksums are right."""
        known, self._open = self._open, None
        if known is None:
            return ()
        if len(known.frames) > 1 and not _all_sound(known.frames, known.l4):
            return known.frames
        return (Run.of(known.frames),)

    def _follows(self, known: _Open, frame: bytes) -> bool:
        l4, header = known.l4, known.header
        length_at, before = _LENGTH[l4]
        payload = len(frame) - header
        if (
            known.closed
            or not 0 < payload <= known.payload
            or int.from_bytes(frame[:header], "big") & known.mask != known.same
            or _number(frame, l4 + 4, 4) != known.sequence
            or known.total + payload > _MAX_IP
            or (l4 == _IPV4_AT and _number(frame, 18, 2) != known.ident)
            or _number(frame, length_at, 2) + before != len(frame)
        ):
            return False
        known.frames.append(frame)
        known.sequence = (known.sequence + payload) & 0xFFFFFFFF
        known.ident = (known.ident + 1) & 0xFFFF
        known.total += payload
        known.closed = (
            payload < known.payload or bool(frame[l4 + 13] & (_FIN | _PSH)) or len(known.frames) == _MAX_MERGED
        )
        return True


def _begin(frame: bytes) -> _Open | None:
    """A frame that others may follow; None for any other."""
    kind = frame[12:15]
    if kind == b"\x08\0\x45":
        l4, total, protocol = _IPV4_AT, 14 + int.from_bytes(frame[16:18], "big"), frame[23:24]
    elif kind[:2] == b"\x86\xdd" and frame[14:15] and frame[14] >> 4 == 6:
        l4, total, protocol = _IPV6_AT, 54 + int.from_bytes(frame[18:20], "big"), frame[20:21]
    else:
        return None
    size = len(frame)
    if protocol != b"\x06" or total != size:
        return None
    header = l4 + (frame[l4 + 12] >> 4) * 4 if size >= l4 + _TCP_HEADER else size
    joinable = (
        size > header >= l4 + _TCP_HEADER
        and (l4 == _IPV6_AT or not int.from_bytes(frame[20:22], "big") & 0xBFFF)
        and not frame[l4 + 12] & 0x0F
        and not frame[l4 + 13] & (_OTHER_FLAGS | _PSH | _FIN)
        and bool(frame[l4 + 13] & _ACK)
    )
    if not joinable:
        return None
    payload = size - header
    return _Open(
        [frame],
        l4,
        header,
        payload,
        _number(frame, l4 + 4, 4) + payload & 0xFFFFFFFF,
        _number(frame, 18, 2) + 1 & 0xFFFF,
        size - 14,
        mask := _same(l4, header),
        int.from_bytes(frame[:header], "big") & mask,
    )


def _sound(frame: bytes, l4: int) -> bool:
    """Whether checksums are right. TCP follows the addresses, so one sum is over both."""
    # In the other order an odd octet needs no place; the pseudo header's numbers are turned instead.
    words = int.from_bytes(frame[26 if l4 == _IPV4_AT else 22 :], "little") + _swapped(6 + len(frame) - l4)
    return words % 0xFFFF == 0 and (l4 == _IPV6_AT or _number(frame, 14, 20) % 0xFFFF == 0)


def _all_sound(frames: Sequence[bytes], l4: int) -> bool:
    """Whether all are, of which only the last may be shorter than the first."""
    size, start = len(frames[0]), 26 if l4 == _IPV4_AT else 22
    if numpy is None or size & 1:
        return all(_sound(frame, l4) for frame in frames)
    words = numpy.frombuffer(b"".join(frames[:-1]), "<u2").reshape(-1, size // 2)
    sums = words[:, start // 2 :].sum(axis=1, dtype=numpy.uint64) + _swapped(6 + size - l4)
    headers = words[:, 7:17].sum(axis=1, dtype=numpy.uint64) if l4 == _IPV4_AT else sums
    return not (sums % 0xFFFF).any() and not (headers % 0xFFFF).any() and _sound(frames[-1], l4)


def joined(run: Run) -> list[bytes]:
    """A run as it is written to a TAP: virtio-net header, headers, and payload of each. Runs are a `Joiner`'s."""
    first, last = run.frames[0], run.frames[-1]
    l4 = _IPV4_AT if first[12:14] == b"\x08\0" else _IPV6_AT
    header = l4 + (first[l4 + 12] >> 4) * 4
    payloads = [frame[header:] for frame in run.frames]
    size = header + sum(map(len, payloads))
    head = VNET.pack(_NEEDS_CSUM, _TCP4 if l4 == _IPV4_AT else _TCP6, header, len(payloads[0]), l4, 16)
    part = (_pseudo(first, l4, size - l4) % 0xFFFF).to_bytes(2, "big")
    tcp = first[l4 : l4 + 13] + bytes((first[l4 + 13] | last[l4 + 13],)) + first[l4 + 14 : l4 + 16]
    tcp += part + first[l4 + 18 : header]
    if l4 == _IPV4_AT:
        ip = first[14:16] + (size - 14).to_bytes(2, "big") + first[18:24]
        check = _complement(int.from_bytes(ip + first[26:34], "big"))
        ip += check.to_bytes(2, "big") + first[26:34]
    else:
        ip = first[14:18] + (size - 54).to_bytes(2, "big") + first[20:54]
    return [head, first[:14] + ip + tcp, *payloads]
