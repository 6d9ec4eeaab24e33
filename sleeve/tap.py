"""Frames in and out of the TAP port on the bridge, with virtio-net headers.

No offload is asked for, so the kernel completes checksums and segments before a frame arrives here, and
containers may leave their own offloads on. Source: data plane spec §6.4; Linux tuntap documentation.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable

VNET_HEADER = bytes(10)
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

    def start(self, captured: Callable[[bytes], None], batch_done: Callable[[], None]) -> None:
        """Begin to read."""
        self._captured = captured
        self._batch_done = batch_done
        self._loop.add_reader(self._descriptor, self._readable)

    def close(self) -> None:
        """The device disappears with its descriptor."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def inject(self, frame: bytes) -> None:
        """Put a frame on the bridge; a full queue or a device that is down drops and counts."""
        try:
            os.writev(self._descriptor, (VNET_HEADER, frame))
        except OSError:
            self._counts["tap-write-error"] += 1

    def _readable(self) -> None:
        assert self._captured is not None
        assert self._batch_done is not None
        header = len(VNET_HEADER)
        for _ in range(_BATCH):
            try:
                data = os.read(self._descriptor, _MAX_FRAME)
            except BlockingIOError:
                break
            except OSError:
                # The device is down; reading goes on when it is up again.
                self._counts["tap-read-error"] += 1
                break
            self._captured(data[header:])
        self._batch_done()
