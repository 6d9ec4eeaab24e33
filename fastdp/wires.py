"""Transmit devices: a plain VXLAN device for each of the nearest neighbours, for what was captured here for them.

The program of the bridge's VXLAN device could address those frames too, as it does all others, but a key that a program
sets makes the kernel look up a route for every packet; such a device remembers its own. Which frames it sends, to whom
and under which identifier is fixed: anything else needs another device. So one that fits no more is first not used any
more, and removed a look later; until its successor is there the program addresses the frames. Devices are made and
removed one at a time and in a thread, as netlink takes milliseconds. They stay when the router ends.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fastdp.kernel import KernelError, present

# Further neighbours do without: each device is an interface that tools list, and some kilobytes.
LIMIT = 64
_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class Wire:
    """What a device is for: our address, the neighbour's and its UDP port, the network identifier."""

    local: str
    remote: str
    port: int
    vni: int

    def text(self) -> str:
        return f"{self.local} {self.remote} {self.port} {self.vni}"

    @classmethod
    def parse(cls, text: str) -> "Wire":
        """Raises ValueError."""
        local, remote, port, vni = text.split()
        return cls(local, remote, int(port), int(vni))


@dataclass(frozen=True, slots=True)
class _Made:
    """A device that is there."""

    wire: Wire
    number: int
    index: int


class Transmitters(Protocol):
    """Transmit devices of this host, known by numbers. All raise KernelError."""

    def found(self) -> Sequence[tuple[int, int, str]]:
        """(number, index, what it is for) of those that are there; without the last, it is not complete."""

    def make(self, number: int, wire: Wire) -> int:
        """A device in place of any other of this number; its index. It is down."""

    def remove(self, number: int) -> None: ...


class Wires:
    """All of them. `seal` puts the program that refuses before a device, given by its index, and sets the device up.

    `changed` is called when one is there that was not, or is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        devices: Transmitters,
        seal: Callable[[int], None],
        changed: Callable[[], None],
        log: logging.Logger,
    ) -> None:
        self._loop = loop
        self._devices = devices
        self._seal = seal
        self._changed = changed
        self._log = log
        self._made: dict[Wire, _Made] = {}
        self._unused: set[Wire] = set()
        self._job: asyncio.Future[_Made | None] | None = None
        self._retry = 0.0
        self.problem = ""
        # Netlink brings a loop of its own, which cannot run inside ours.
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._adopt).result()

    def index(self, wire: Wire) -> int:
        """The device's index; 0 where there is none."""
        made = self._made.get(wire)
        return 0 if made is None else made.index

    def indices(self) -> Collection[int]:
        """Of all that are there."""
        return {made.index for made in self._made.values()}

    def follow(self, wanted: Collection[Wire], used: Collection[int]) -> None:
        """Do the next thing to have those that are `wanted`; `used` are indices of such as are still sent by.

        To be called now and then.
        """
        lost = [wire for wire, made in self._made.items() if not present(made.index)]
        for wire in lost:
            del self._made[wire]
        if lost:
            self._changed()
        if self._job is not None:
            return
        unused = {wire for wire, made in self._made.items() if wire not in wanted and made.index not in used}
        over = next(iter(unused & self._unused), None)
        missing = next((wire for wire in wanted if wire not in self._made), None)
        self._unused = unused
        if over is not None:
            self._begin(partial(self._devices.remove, self._made.pop(over).number))
        elif missing is not None and len(self._made) < LIMIT and self._loop.time() >= self._retry:
            taken = {made.number for made in self._made.values()}
            self._begin(partial(self._make, missing, next(free for free in range(LIMIT) if free not in taken)))

    def close(self) -> None:
        """Leave them as they are."""
        self._changed = _nothing
        self._thread.shutdown()

    # --- in the thread ---

    def _adopt(self) -> None:
        """Take over what another daemon left."""
        try:
            for number, index, text in self._devices.found():
                try:
                    wire = Wire.parse(text)
                    self._seal(index)
                    self._made[wire] = _Made(wire, number, index)
                except (KernelError, ValueError):
                    self._devices.remove(number)
        except KernelError as error:
            self.problem = str(error)

    def _make(self, wire: Wire, number: int) -> _Made:
        index = self._devices.make(number, wire)
        try:
            self._seal(index)
        except KernelError:
            self._devices.remove(number)
            raise
        return _Made(wire, number, index)

    # --- jobs ---

    def _begin(self, work: Callable[[], _Made | None]) -> None:
        self._job = self._loop.run_in_executor(self._thread, work)
        self._job.add_done_callback(self._done)

    def _done(self, job: asyncio.Future[_Made | None]) -> None:
        self._job = None
        try:
            made = job.result()
        except KernelError as error:
            self._retry = self._loop.time() + _RETRY
            if str(error) != self.problem:
                self._log.warning("fastdp: a neighbour has no transmit device: %s", error)
            self.problem = str(error)
            return
        if made is not None:
            self.problem = ""
            self._made[made.wire] = made
            self._changed()


def _nothing() -> None:
    """After the end nobody is told."""
