"""Frames and ICMP answers against the reference's results, and with arbitrary bytes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.frames import checksum, ipv4_header, is_ipv6, is_special
from overlay.icmp import frag_needed, packet_too_big
from tests.overlay.fakes import document


@pytest.mark.parametrize("case", document("frame-classify.json")["cases"], ids=lambda case: case["description"])
def test_classification(case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["frame"])
    header = ipv4_header(frame)
    if case["decoded_layers"] == 0:
        assert len(frame) < 14
        return
    assert (header is not None) == (case["decoded_layers"] == 2)
    assert (header is not None and header.df) == case["df"]
    assert is_special(frame) == case["special"]


@pytest.mark.parametrize("case", document("icmp-frag-needed.json")["cases"], ids=lambda case: case["description"])
def test_frag_needed(case: dict[str, Any]) -> None:
    answer = frag_needed(bytes.fromhex(case["frame"]), case["mtu"])
    assert answer is not None
    assert answer.hex() == case["icmp_frame"]


def test_packet_too_big() -> None:
    source, destination = bytes(15) + b"\1", bytes(15) + b"\2"
    packet = (6 << 28).to_bytes(4, "big") + (1460).to_bytes(2, "big") + b"\x11\x40" + source + destination + bytes(1460)
    frame = bytes.fromhex("02bb00000002" + "02aa00000001" + "86dd") + packet
    answer = packet_too_big(frame, 1400)
    assert answer is not None
    assert answer[:14].hex() == "02aa00000001" + "02bb00000002" + "86dd"
    ip, icmp = answer[14:54], answer[54:]
    assert ip[8:24] == destination
    assert ip[24:40] == source
    assert icmp[:2] == b"\2\0"
    assert int.from_bytes(icmp[4:8], "big") == 1400
    assert len(answer) - 14 <= 1280
    assert checksum(ip[8:40] + len(icmp).to_bytes(4, "big") + b"\0\0\0\x3a" + icmp) == 0
    assert packet_too_big(answer, 1400) is None, "never an error about an error"
    assert packet_too_big(frame, 1200) is None


def ipv6(next_header: int, source: bytes, destination: bytes, body: bytes) -> bytes:
    packet = (6 << 28).to_bytes(4, "big") + len(body).to_bytes(2, "big") + bytes((next_header, 64))
    return bytes.fromhex("02bb0000000202aa0000000186dd") + packet + source + destination + body


HOST = bytes.fromhex("fe80") + bytes(13) + b"\1"
GROUP = bytes.fromhex("ff02") + bytes(13) + b"\1"
ECHO = b"\x80" + bytes(1459)
UNREACHABLE = b"\1" + bytes(1459)


@pytest.mark.parametrize(
    ("frame", "answered"),
    [
        pytest.param(ipv6(58, HOST, HOST, ECHO), True, id="an echo request"),
        pytest.param(ipv6(17, HOST, HOST, b""), True, id="a header and nothing behind it"),
        pytest.param(ipv6(58, HOST, HOST, b""), True, id="ICMPv6 without a type"),
        pytest.param(ipv6(58, HOST, HOST, UNREACHABLE), False, id="an ICMPv6 error"),
        pytest.param(ipv6(17, bytes(16), HOST, ECHO), False, id="from the unspecified address"),
        pytest.param(ipv6(17, GROUP, HOST, ECHO), False, id="from a group"),
        pytest.param(ipv6(17, HOST, GROUP, ECHO), False, id="to a group: nobody to answer as"),
        pytest.param(ipv6(17, HOST, HOST, ECHO)[:53], False, id="a cut header"),
    ],
)
def test_what_gets_a_packet_too_big(frame: bytes, answered: bool) -> None:
    assert (packet_too_big(frame, 1400) is not None) == answered


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0xFFFF), (b"\0\1\xf2\3\xf4\xf5\xf6\xf7", 0x220D), (b"\1", 0xFEFF), (b"\xff" * 60000, 0)],
    ids=["nothing", "the example of RFC 1071", "an odd byte", "large"],
)
def test_checksum(data: bytes, expected: int) -> None:
    assert checksum(data) == expected


ETHERNET = st.tuples(st.binary(min_size=12, max_size=12), st.sampled_from([b"\x08\0", b"\x86\xdd", b"\x81\0"]))


@given(ETHERNET, st.binary(max_size=100), st.integers(0, 65535))
def test_any_bytes_get_a_sound_answer_or_none(ethernet: tuple[bytes, bytes], body: bytes, mtu: int) -> None:
    macs, kind = ethernet
    for version in (body, b"\x45\0" + body, b"\x60" + body):
        frame = macs + kind + version
        answer = frag_needed(frame, mtu)
        assert (answer is None) == (ipv4_header(frame) is None)
        if answer is not None:
            assert checksum(answer[14:34]) == 0
            assert checksum(answer[34:]) == 0
            assert answer[42:] == frame[14 : 14 + len(answer) - 42], "it quotes the header and eight bytes"
        big = packet_too_big(frame, mtu)
        if big is not None:
            assert is_ipv6(frame)
            assert len(big) <= 1280 + 14
            assert big[62:] == frame[14 : 14 + len(big) - 62]
