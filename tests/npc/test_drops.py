"""Dropped packets: what their first bytes say, what is told of them and what is only counted."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npc.drops import OTHER, Drops, Judged
from npc.packet import Packet, parse
from npc.plan import Direction

A, B = ip_address("10.32.0.1").packed, ip_address("10.32.0.2").packed
A6, B6 = ip_address("fd00::1").packed, ip_address("fd00::2").packed
PORTS = (40000).to_bytes(2, "big") + (80).to_bytes(2, "big")
SYN, SYN_ACK, RESET = (PORTS + bytes(9) + bytes((flags,)) + bytes(6) for flags in (0x02, 0x12, 0x04))


def four(protocol: int, rest: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    header = bytes((0x40 | 5 + len(options) // 4, 0, 0, 0, 0, 0)) + fragment.to_bytes(2, "big")
    return header + bytes((64, protocol, 0, 0)) + A + B + options + rest


def six(protocol: int, rest: bytes) -> bytes:
    return bytes((0x60, 0, 0, 0, 0, 0, protocol, 64)) + A6 + B6 + rest


HOP_BY_HOP = bytes((6, 0)) + bytes(6)
FRAGMENT, LATER_FRAGMENT = bytes((17, 0, 0, 1)) + bytes(4), bytes((17, 0, 0x01, 0)) + bytes(4)
PACKETS = [
    ("tcp", four(6, SYN), Packet(A, B, 6, 40000, 80, True)),
    ("an answer", four(6, SYN_ACK), Packet(A, B, 6, 40000, 80, False)),
    ("options", four(17, PORTS, options=bytes(8)), Packet(A, B, 17, 40000, 80, True)),
    ("a later fragment", four(17, PORTS, fragment=0x0010), Packet(A, B, 17)),
    ("a first fragment", four(17, PORTS, fragment=0x2000), Packet(A, B, 17, 40000, 80, True)),
    ("icmp", four(1, b"\x08\0"), Packet(A, B, 1)),
    ("sctp init", four(132, PORTS + bytes(8) + b"\1"), Packet(A, B, 132, 40000, 80, True)),
    ("sctp data", four(132, PORTS + bytes(8) + b"\0"), Packet(A, B, 132, 40000, 80, False)),
    ("six", six(6, SYN), Packet(A6, B6, 6, 40000, 80, True)),
    ("extensions", six(0, HOP_BY_HOP + SYN), Packet(A6, B6, 6, 40000, 80, True)),
    ("six, first fragment", six(44, FRAGMENT + PORTS), Packet(A6, B6, 17, 40000, 80, True)),
    ("six, later fragment", six(44, LATER_FRAGMENT + PORTS), Packet(A6, B6, 17)),
    ("cut", four(6, b"")[:19], None),
    ("nothing", b"", None),
    ("no IP", bytes(60), None),
]


@pytest.mark.parametrize(("packet", "expected"), [row[1:] for row in PACKETS], ids=[row[0] for row in PACKETS])
def test_the_first_bytes_of_a_packet(packet: bytes, expected: Packet | None) -> None:
    assert parse(packet) == expected


@given(st.binary(max_size=120), st.sampled_from((b"", b"\x45", b"\x60" + bytes(5), b"\x4f")))
def test_no_bytes_are_too_strange(packet: bytes, start: bytes) -> None:
    parse(start + packet)


def drops() -> Drops:
    return Drops(lambda direction, address: Judged(str(ip_address(address)), (direction.name,)))


def test_a_connection_that_tries_again_is_told_once_a_minute() -> None:
    seen = drops()
    first = seen.see("wnpc:i:x", four(6, SYN), 100.0)
    assert first is not None and str(first) == (
        "TCP connection from 10.32.0.1:40000 to 10.32.0.2:80 blocked by Weave NPC. "
        "(ingress 10.32.0.2, policies: INGRESS)"
    )
    assert seen.see("wnpc:i:x", four(6, SYN), 159.0) is None
    other = seen.see("wnpc:e:x", four(6, SYN), 159.0)
    assert other is not None and (other.direction, other.isolated) == (Direction.EGRESS, "10.32.0.1")
    assert seen.see("wnpc:i:x", four(6, SYN), 161.0) is not None
    assert seen.blocked == {("tcp", "80"): 4}
    assert len(seen.between(A, B)) == 3 and not seen.between(B, A)


def test_what_opens_no_connection_is_not_counted() -> None:
    seen = drops()
    for packet in (four(6, RESET), four(6, SYN_ACK), four(1, b"\x08\0"), b"\0"):
        seen.see("wnpc:i:x", packet, 1.0)
    assert not seen.blocked
    assert [one.packet.protocol for one in seen.last] == [1]
    for prefix in ("", "wnpc:", "wnpc:x:y", "other:i:x"):
        assert seen.see(prefix, four(6, SYN), 1.0) is None


def test_ports_are_bounded() -> None:
    seen = drops()
    for port in range(1, 400):
        seen.see("wnpc:i:x", four(17, (9).to_bytes(2, "big") + port.to_bytes(2, "big")), 1.0)
    assert len(seen.blocked) == 201
    assert seen.blocked["udp", OTHER] == 199
