"""Frames of the TAP are taken in turns, each flow's in its order: who sends much does not displace who sends little."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.sleeve.nodes import NO_CORE
from tests.sleeve.offload import Packet, Vnet
from tests.sleeve.stacks import FAR, LOCAL, REMOTE, Stack

lib = pytest.importorskip("sleeve._sleeve", reason=NO_CORE).lib


@pytest.fixture
def stack() -> Iterator[Stack]:
    made = Stack("native")
    made.heard()
    yield made
    made.close()


def frame(port: int, number: int, *, to: bytes = REMOTE, size: int = 1000, v6: bool = False) -> bytes:
    """A frame of the flow from this port; its payload begins with its number."""
    payload = number.to_bytes(4, "big").ljust(size, b"\0")
    return Packet(to, LOCAL, payload, udp=True, v6=v6, ports=(port, 9)).octets()


def give(stack: Stack, frames: list[bytes]) -> None:
    for each in frames:
        stack.tap.send(Vnet().octets() + each)


def step(stack: Stack) -> None:
    assert lib.core_step_tx(stack.path.core) >= 0  # type: ignore[attr-defined]


def numbers(stack: Stack, *, v6: bool = False) -> list[tuple[int, int]]:
    """(port, number) of what arrived at the neighbours, in the order of each."""
    at = 54 if v6 else 34
    sent = [frame for *_, frame in stack.heard()]
    return [(int.from_bytes(f[at : at + 2], "big"), int.from_bytes(f[at + 8 : at + 12], "big")) for f in sent]


@pytest.mark.parametrize("v6", [False, True])
def test_a_flow_behind_a_larger_one_gets_its_turn(stack: Stack, v6: bool) -> None:
    give(stack, [frame(1, number, v6=v6) for number in range(200)])
    give(stack, [frame(2, number, v6=v6) for number in range(10)])
    stack.settle()
    arrived = numbers(stack, v6=v6)
    assert arrived.index((2, 9)) < 145
    for port, count in ((1, 200), (2, 10)):
        assert [number for of, number in arrived if of == port] == list(range(count))


def test_a_new_flow_goes_before_old_ones_which_get_on(stack: Stack) -> None:
    give(stack, [frame(port, number) for port in (1, 2) for number in range(200)])
    step(stack)
    step(stack)
    numbers(stack)
    give(stack, [frame(port, number, size=400) for port in range(3, 9) for number in range(100)])
    step(stack)
    arrived = Counter(port for port, _ in numbers(stack))
    # Two of the old ones' frames are as long as five of the others.
    assert arrived[3] + arrived[4] > 80
    assert arrived[1] + arrived[2] > 20


def test_flows_to_one_host_have_their_turns_one_after_another(stack: Stack) -> None:
    segments = b"".join(number.to_bytes(4, "big").ljust(1000, b"\0") for number in range(40))
    for port in range(1, 9):
        for _ in range(24):
            large = Packet((REMOTE, FAR)[port % 2], LOCAL, segments, udp=True, checksum=False, ports=(port, 9))
            stack.tap.send(large.unfinished(1000))
    turns: list[set[int]] = []
    while not turns or turns[-1]:
        step(stack)
        turns.append({port % 2 for port, _ in numbers(stack)})
    assert sum(len(hosts) == 1 for hosts in turns) > len(turns) // 4


def test_the_longest_queue_loses(stack: Stack) -> None:
    give(stack, [frame(1, number, size=100) for number in range(30)])
    for port in range(100, 200):
        give(stack, [frame(1, 1000 + port * 50 + more, size=100) for more in range(25)])
        give(stack, [frame(port, number, size=100) for number in range(2)])
    # More is read in a turn than is sent.
    stack.settle()
    arrived = Counter(port for port, _ in numbers(stack))
    assert all(arrived[port] == 2 for port in range(100, 200))
    lost = 2530 - arrived[1]
    assert lost > 0
    assert stack.path.counts["tap-queue-full"] == lost


def test_peers_take_turns_like_flows(stack: Stack) -> None:
    give(stack, [frame(1, number, to=REMOTE) for number in range(60)])
    give(stack, [frame(1, number, to=FAR) for number in range(60)])
    stack.settle()
    assert Counter(numbers(stack)) == Counter({(1, number): 2 for number in range(60)})
