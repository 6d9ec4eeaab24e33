"""The replay window: every number once, in any order, within two windows of 2^20.

Like RFC 6479 a block-wise window, with sets of bits as Weave Net's are: the current window and the one before.
Source: data plane spec §3.4.
"""

WINDOW_BITS = 20
_SIZE_BYTES = 1 << (WINDOW_BITS - 3)


class ReplayWindow:
    """Which sequence numbers of one counter were seen. A window's 128 KiB are made when its first number comes."""

    __slots__ = ("_current", "_number", "_previous")

    def __init__(self) -> None:
        self._number = 0
        self._current: bytearray | None = None
        self._previous: bytearray | None = None

    def accept(self, sequence: int) -> bool:
        """Note an authenticated number; False if it was seen before, or is too old to know."""
        number = sequence >> WINDOW_BITS
        if number > self._number:
            self._previous = self._current if number == self._number + 1 else None
            self._current = None
            self._number = number
        elif number < self._number - 1:
            return False
        seen = self._window(current=number == self._number)
        offset = sequence & ((1 << WINDOW_BITS) - 1)
        byte, bit = offset >> 3, 1 << (offset & 7)
        if seen[byte] & bit:
            return False
        seen[byte] |= bit
        return True

    def _window(self, *, current: bool) -> bytearray:
        if current:
            if self._current is None:
                self._current = bytearray(_SIZE_BYTES)
            return self._current
        if self._previous is None:
            self._previous = bytearray(_SIZE_BYTES)
        return self._previous
