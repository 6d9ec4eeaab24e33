"""Frames in and out of the TAP port on the bridge, with virtio-net headers.

The kernel is asked to hand over TCP unfinished, one read for many segments, and is given runs of them so; where it
knows no offloads it finishes frames itself. Either way containers leave their own offloads on. Source: data plane
spec §6.4; Linux tuntap documentation.
"""

import asyncio
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Sequence

from overlay.frames import Run, frames_of
from sleeve.offload import NO_OFFLOAD, VNET, OffloadError, finish, joined

# <linux/if_tun.h>
_TUNSETOFFLOAD = 0x400454D0
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
TCP_OFFLOADS = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6
UDP_OFFLOADS = _TUN_F_USO4 | _TUN_F_USO6
_BATCH = 64
_MAX_FRAME = 65536 + 64


class TapPort:
    """The bridge's TAP port (`overlay.seams.Bridge`); `captured` gets each frame, `batch_done` is called after."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, counts: Counter[str]) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._counts = counts
        self._captured: Callable[[bytes], None] | None = None
        self._batch_done: Callable[[], None] | None = None
        self._offloads = 0

    def start(self, captured: Callable[[bytes], None], batch_done: Callable[[], None]) -> None:
        """Begin to read."""
        self._captured = captured
        self._batch_done = batch_done
        self.ask_for(TCP_OFFLOADS, 0)
        self._loop.add_reader(self._descriptor, self._readable)

    def ask_for(self, *wishes: int) -> int:
        """Ask for frames with the first of these sets of offloads that the kernel knows; which it was."""
        self._offloads = 0
        for flags in wishes:
            try:
                fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, flags)
            except OSError:
                continue
            self._offloads = flags
            break
        return self._offloads

    def close(self) -> None:
        """The device disappears with its descriptor."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def inject(self, frame: bytes) -> None:
        """Put a frame on the bridge; a full queue or a device that is down drops and counts."""
        if isinstance(frame, Run) and self._offloads:
            self._write(joined(frame))
            return
        for each in frames_of(frame):
            self._write((NO_OFFLOAD, each))

    def _write(self, parts: Sequence[bytes]) -> None:
        try:
            os.writev(self._descriptor, parts)
        except OSError:
            self._counts["tap-write-error"] += 1

    def _readable(self) -> None:
        assert self._captured is not None
        assert self._batch_done is not None
        header = VNET.size
        for _ in range(_BATCH):
            try:
                data = os.read(self._descriptor, _MAX_FRAME)
            except BlockingIOError:
                break
            except OSError:
                # The device is down; reading goes on when it is up again.
                self._counts["tap-read-error"] += 1
                break
            try:
                self._captured(finish(data[:header], data[header:]))
            except OffloadError:
                self._counts["tap-malformed"] += 1
        self._batch_done()
