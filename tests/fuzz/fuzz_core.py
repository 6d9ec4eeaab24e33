"""Coverage-guided input for the comparison of the core with plain Python (`tests.sleeve.differ`).

    python -m tests.fuzz.fuzz_core -max_total_time=300         libFuzzer's flags

The fuzzer's bytes are what is drawn; it sees the branches that plain Python takes, which are the core's. The core's own
memory is watched by the sanitizers of `tests/sleeve/test_core_differs.py`, with which libFuzzer does not get along.
"""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["overlay", "sleeve"]):
    from tests.sleeve import differ, stacks

assert stacks, "it is imported late, and must be instrumented"
_STEPS = 4


class Drawn(Random):
    """Chance out of bytes; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    def random(self) -> float:
        return self.getrandbits(16) / 65536

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        taken = self._data[self._at : self._at + size].ljust(size, b"\0")
        self._at += size
        return int.from_bytes(taken, "big") >> (8 * size - k)


def one_input(data: bytes) -> None:
    """What the fuzzer calls."""
    if not data:
        return
    made = differ.Differ(data[0] & 1, Drawn(data[1:]))
    try:
        for _ in range(_STEPS):
            made.step()
    finally:
        made.close()


def main() -> None:
    """Run until a finding, or for as long as the flags say."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
