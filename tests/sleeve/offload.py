"""The reference for offloads: what the kernel does with frames that carry a virtio-net header. Slow and plain.

`cut` finishes a frame: checksum and segments; `Packet` makes one, finished or not. Source: virtio 1.2, §5.1.6.2.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar

NEEDS_CSUM = 1
TCP4, TCP6, UDP = 1, 4, 5


def ones_complement(data: bytes) -> int:
    """The internet checksum's sum, folded, in network order."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True, slots=True)
class Vnet:
    """A virtio-net header."""

    flags: int = 0
    gso_type: int = 0
    header: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    SIZE: ClassVar[int] = 10

    @classmethod
    def read(cls, data: bytes) -> "Vnet":
        return cls(*struct.unpack_from("=BBHHHH", data))

    def octets(self) -> bytes:
        return struct.pack(
            "=BBHHHH", self.flags, self.gso_type, self.header, self.gso_size, self.csum_start, self.csum_offset
        )


def pseudo(frame: bytes, l3: int, protocol: int, size: int) -> bytes:
    """The pseudo header of TCP or UDP over the IP header at `l3`."""
    if frame[l3] >> 4 == 6:
        return frame[l3 + 8 : l3 + 40] + struct.pack(">II", size, protocol)
    return frame[l3 + 12 : l3 + 20] + struct.pack(">HH", protocol, size)


def _put(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


def cut(head: Vnet, frame: bytes) -> list[bytes]:
    """The frames that an unfinished one stands for."""
    kind = head.gso_type & 0x7F
    if not kind:
        if not head.flags & NEEDS_CSUM:
            return [frame]
        check = ones_complement(frame[head.csum_start :]) ^ 0xFFFF
        return [_put(frame, head.csum_start + head.csum_offset, check or 0xFFFF)]
    assert head.flags & NEEDS_CSUM
    l3, l4 = 14, head.csum_start
    while frame[l3 - 2 : l3] in (b"\x81\0", b"\x88\xa8"):
        l3 += 4
    udp = kind == UDP
    protocol = 17 if udp else 6
    header = l4 + (8 if udp else (frame[l4 + 12] >> 4) * 4)
    payload = frame[header:]
    pieces = []
    parts = [payload[at : at + head.gso_size] for at in range(0, len(payload), head.gso_size)]
    for number, part in enumerate(parts):
        piece = frame[:header] + part
        if frame[l3] >> 4 == 6:
            piece = _put(piece, l3 + 4, len(piece) - l3 - 40)
        else:
            piece = _put(piece, l3 + 2, len(piece) - l3)
            piece = _put(piece, l3 + 4, (int.from_bytes(piece[l3 + 4 : l3 + 6], "big") + number) & 0xFFFF)
            piece = _put(piece, l3 + 10, 0)
            piece = _put(piece, l3 + 10, ones_complement(piece[l3:l4]) ^ 0xFFFF)
        if udp:
            piece = _put(piece, l4 + 4, 8 + len(part))
        else:
            sequence = (int.from_bytes(piece[l4 + 4 : l4 + 8], "big") + number * head.gso_size) & 0xFFFFFFFF
            flags = piece[l4 + 13]
            if number + 1 < len(parts):
                flags &= ~0x09
            if number:
                flags &= ~0x80
            piece = piece[: l4 + 4] + sequence.to_bytes(4, "big") + piece[l4 + 8 :]
            piece = piece[: l4 + 13] + bytes((flags,)) + piece[l4 + 14 :]
        field = l4 + (6 if udp else 16)
        piece = _put(piece, field, 0)
        check = ones_complement(pseudo(piece, l3, protocol, len(piece) - l4) + piece[l4:]) ^ 0xFFFF
        pieces.append(_put(piece, field, check or (0xFFFF if udp else 0)))
    return pieces


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP or UDP frame to build. `checksum`: False leaves only the pseudo header's sum, as an offload does."""

    destination: bytes
    source: bytes
    payload: bytes
    v6: bool = False
    udp: bool = False
    ident: int = 0
    df: bool = True
    sequence: int = 0
    acknowledged: int = 0
    flags: int = 0x10
    options: bytes = b""
    ports: tuple[int, int] = (1000, 2000)
    window: int = 500
    tos: int = 0
    vlan: bytes = b""
    checksum: bool = True

    @property
    def l4(self) -> int:
        return 14 + len(self.vlan) + (40 if self.v6 else 20)

    def octets(self) -> bytes:
        if self.udp:
            head = struct.pack(">HHHH", *self.ports, (8 + len(self.payload)) & 0xFFFF, 0)
        else:
            offset = (20 + len(self.options)) // 4 << 4
            head = struct.pack(
                ">HHIIBBHHH", *self.ports, self.sequence, self.acknowledged, offset, self.flags, self.window, 0, 0
            )
        body = head + self.options * (not self.udp) + self.payload
        protocol = 17 if self.udp else 6
        if self.v6:
            ip = struct.pack(">IHBB", 6 << 28 | self.tos << 20, len(body), protocol, 64)
            ip += b"\xfd" + bytes(14) + b"\1" + b"\xfd" + bytes(14) + b"\2"
        else:
            ip = struct.pack(
                ">BBHHHBBH4s4s",
                0x45, self.tos, (20 + len(body)) & 0xFFFF, self.ident, 0x4000 if self.df else 0, 64, protocol, 0,
                b"\x0a\x20\0\1", b"\x0a\x20\0\2",
            )  # fmt: skip
            ip = _put(ip, 10, ones_complement(ip) ^ 0xFFFF)
        frame = self.destination + self.source + self.vlan + (b"\x86\xdd" if self.v6 else b"\x08\0") + ip + body
        field = self.l4 + (6 if self.udp else 16)
        head_sum = pseudo(frame, 14 + len(self.vlan), protocol, len(body))
        if not self.checksum:
            return _put(frame, field, ones_complement(head_sum))
        check = ones_complement(head_sum + frame[self.l4 :]) ^ 0xFFFF
        return _put(frame, field, check or (0xFFFF if self.udp else 0))

    def unfinished(self, gso_size: int = 0) -> bytes:
        """The frame as a TAP hands it over: with its header, checksum and segments left to do."""
        kind = 0 if not gso_size else UDP if self.udp else TCP6 if self.v6 else TCP4
        head = Vnet(NEEDS_CSUM, kind, 0, gso_size, self.l4, 6 if self.udp else 16)
        frame = self.octets()
        return head.octets() + frame
