"""The core's loops in their threads: one for both ways where cores are few, else one for each."""

import time
from collections.abc import Callable

import pytest

from mesh.names import PeerName
from sleeve.datagram import frame_header
from tests.sleeve.nodes import NO_CORE
from tests.sleeve.offload import Packet, Vnet
from tests.sleeve.stacks import LOCAL, OURSELF, REMOTE, Stack

native = pytest.importorskip("sleeve.native", reason=NO_CORE)


def gather(take: Callable[[], list[bytes]], count: int) -> list[bytes]:
    """So many frames; a minute without them is a failure."""
    end = time.monotonic() + 60
    frames = take()
    while len(frames) < count:
        assert time.monotonic() < end
        time.sleep(0.01)
        frames += take()
    return frames


@pytest.mark.parametrize(("few", "threads"), [(10_000, 1), (0, 2)])
def test_both_ways_until_it_is_closed(monkeypatch: pytest.MonkeyPatch, few: int, threads: int) -> None:
    monkeypatch.setattr(native, "_FEW_CORES", few)
    monkeypatch.setattr(
        "tests.sleeve.stacks._path", lambda name, loop: native.NativePath(loop, OURSELF, "127.0.0.1", 0)
    )
    stack = Stack("threads")
    try:
        running = list(stack.path._threads)  # type: ignore[attr-defined]
        assert len(running) == threads
        out = [Packet(REMOTE, LOCAL, bytes((number,)) * 100, udp=True).octets() for number in range(50)]
        back = [Packet(LOCAL, REMOTE, bytes((number,)) * 100, udp=True).octets() for number in range(50)]
        for one, other in zip(out, back, strict=True):
            stack.tap.send(Vnet().octets() + one)
            stack.ears[2].send(frame_header(PeerName(2), PeerName(1), len(other)) + other)
        assert gather(lambda: [sent[4] for sent in stack.heard()], 50) == out
        assert gather(stack.injected, 50) == back
    finally:
        stack.close()
    assert not any(thread.is_alive() for thread in running)
