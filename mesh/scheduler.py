"""Time, as the mesh's core sees it: a clock and a list of things to do later.

The core never looks at a clock of its own. The asyncio shell hands it the event loop's time; a test hands it a
virtual one and runs three hours of timers in a second.
"""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is yet to come."""

    def cancel(self) -> None:
        """Never make the call; harmless when it was made already."""


class Scheduler(Protocol):
    """A monotonic clock in seconds and delayed calls on it, all on one thread."""

    def now(self) -> float: ...

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer: ...


class Coalesced:
    """A call that many may ask for and that is made once: `delay` seconds after the first request."""

    __slots__ = ("_call", "_delay", "_scheduler", "_timer")

    def __init__(self, scheduler: Scheduler, delay: float, call: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._delay = delay
        self._call = call
        self._timer: Timer | None = None

    @property
    def pending(self) -> bool:
        return self._timer is not None

    def request(self, delay: float | None = None) -> None:
        """Ask for the call; later requests before it is made change nothing."""
        if self._timer is None:
            self._timer = self._scheduler.call_later(self._delay if delay is None else delay, self._fire)

    def run_now(self) -> None:
        """Make the call at once if it was asked for."""
        if self._timer is not None:
            self._timer.cancel()
            self._fire()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._call()
