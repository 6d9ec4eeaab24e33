"""When a link wants to be woken next: a core names the time, an event loop keeps it."""

from collections.abc import Callable
from typing import Protocol


class Link(Protocol):
    """A state machine with timers. Times are the loop's, in seconds."""

    def next_timer(self) -> float | None: ...

    def tick(self, now: float) -> None: ...


class Handle(Protocol):
    """A call that is to come."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """As much of an event loop as this needs (`asyncio.AbstractEventLoop`)."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle: ...


class Alarm:
    """Wakes one link. `settle` follows then, as it does every event of the link, and is to arm it again."""

    def __init__(self, loop: Loop, link: Link, settle: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._link = link
        self._settle = settle or self.arm
        self._handle: Handle | None = None
        self._stopped = False

    def arm(self) -> None:
        """The link's next timer may be another now."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        at = self._link.next_timer()
        if at is not None and not self._stopped:
            self._handle = self._loop.call_at(at, self._ring)

    def stop(self) -> None:
        """Wake nobody any more."""
        self._stopped = True
        self.arm()

    def _ring(self) -> None:
        self._handle = None
        # Timers of an event loop may fire a clock tick early: the link must see its time as come.
        self._link.tick(max(self._loop.time(), self._link.next_timer() or 0.0))
        self._settle()
