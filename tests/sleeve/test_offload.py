"""Plain Python's offloads: frames are cut as the reference of `tests.sleeve.offload` cuts them, and joined again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.frames import Run, frames_of
from sleeve.offload import Joiner, OffloadError, finish, joined
from tests.sleeve.offload import TCP4, UDP, Packet, Vnet, cut

A, B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"

packets = st.builds(
    Packet,
    st.just(A),
    st.just(B),
    st.binary(min_size=1, max_size=4000),
    v6=st.booleans(),
    ident=st.integers(0, 0xFFFF),
    df=st.booleans(),
    sequence=st.integers(0, 0xFFFFFFFF),
    acknowledged=st.integers(0, 0xFFFFFFFF),
    flags=st.sampled_from([0x10, 0x18, 0x11, 0x90]),
    options=st.sampled_from([b"", b"\1\1\x08\x0a" + bytes(8), b"\1" * 40]),
    window=st.integers(0, 0xFFFF),
    tos=st.integers(0, 255),
    checksum=st.just(False),
)


@given(packets, st.integers(1, 2000))
def test_segments_are_cut_as_the_kernel_cuts_them(packet: Packet, size: int) -> None:
    raw = packet.unfinished(size)
    head, frame = raw[: Vnet.SIZE], raw[Vnet.SIZE :]
    assert frames_of(finish(head, frame)) == cut(Vnet.read(head), frame)
    raw = packet.unfinished()
    assert finish(raw[: Vnet.SIZE], raw[Vnet.SIZE :]) == cut(Vnet.read(raw), raw[Vnet.SIZE :])[0]


@given(packets, st.integers(100, 2000))
def test_what_was_cut_is_joined_again(packet: Packet, size: int) -> None:
    raw = packet.unfinished(size)
    frames = cut(Vnet.read(raw), raw[Vnet.SIZE :])
    joiner = Joiner()
    complete = [done for frame in frames for done in joiner.push(frame)]
    complete += joiner.pull()
    assert [frame for done in complete for frame in frames_of(done)] == frames, "in order, unchanged"
    for done in complete:
        if isinstance(done, Run):
            written = b"".join(joined(done))
            assert cut(Vnet.read(written), written[Vnet.SIZE :]) == done.frames
    if packet.flags == 0x10 and len(frames) > 1:
        assert len(complete) <= 1 + len(frames) // 2, "they were joined indeed"


@given(st.binary(max_size=10), st.binary(max_size=200))
def test_headers_that_no_kernel_writes_cost_an_error(head: bytes, frame: bytes) -> None:
    try:
        finish(head, frame)
    except OffloadError:
        return


@pytest.mark.parametrize("kind", [UDP, TCP4 + 1, 77])
def test_kinds_that_were_not_asked_for_are_refused(kind: int) -> None:
    with pytest.raises(OffloadError):
        finish(Vnet(1, kind, 0, 100, 34, 16).octets(), bytes(1000))
