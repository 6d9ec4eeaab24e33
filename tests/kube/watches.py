"""The watches of the stand-in API server: a stream of lines each, which a test may stall, break or spoil."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from tests.kube.objects import Objects, typed
from tests.kube.patches import Selector
from tests.kube.resources import Object, Resource, StatusError


class Watch:
    """One stream. Orders come on the server's own thread; `run` writes until the stream is over."""

    def __init__(
        self, objects: Objects, resource: Resource, namespace: str, selects: Selector, *, bookmarks: bool
    ) -> None:
        self.objects = objects
        self._resource = resource
        self._selects: Selector = lambda o: namespace in ("", o["metadata"].get("namespace", "")) and selects(o)
        self._bookmarks = bookmarks
        self._lines: deque[bytes] = deque()
        self._sent = 0
        self._begun = False
        self.ending = False
        self._stalled = False
        self._broken = False
        self.wake = asyncio.Event()

    def start(self, version: int | None, *, marked: bool) -> None:
        """After a version, or with all there is; `marked`: then a bookmark that says that was all."""
        if version is not None and not marked:
            self._sent = version
        else:
            with self.objects.lock:
                page = self.objects.page(self._resource, "", self._selects, 0, "")
                self._sent = self.objects.version
            for found in page["items"]:
                self._say({"type": "ADDED", "object": typed(found, self._resource)})
            if marked:
                self.bookmark({"k8s.io/initial-events-end": "true"})
        self._begun = True

    def end(self) -> None:
        self.ending = True
        self.wake.set()

    def stall(self) -> None:
        self._stalled = True

    def reset(self) -> None:
        self._broken = True
        self.wake.set()

    def say(self, line: bytes) -> None:
        self._lines.append(line)
        self.wake.set()

    def fail(self, failure: StatusError) -> None:
        self._say({"type": "ERROR", "object": failure.status()})
        self.end()

    def bookmark(self, annotations: dict[str, str] | None = None) -> None:
        """Everything up to now has been said, and that is which version."""
        if not self._bookmarks:
            return
        if self._begun:
            self._follow()
        meta: Object = {"resourceVersion": str(self._sent), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        self._say({"type": "BOOKMARK", "object": typed({"metadata": meta}, self._resource)})

    async def run(self, write: Callable[[bytes], Awaitable[None]], seconds: float) -> bool:
        """Write for at most that long. Whether the stream ended as it should."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            self.wake.clear()
            if self._broken:
                return False
            if not self.ending and not self._stalled:
                self._follow()
            while self._lines and not self._stalled:
                await write(self._lines.popleft())
            if self._stalled:
                await self.wake.wait()
                continue
            if self.ending or loop.time() >= until:
                return True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), until - loop.time())

    def _say(self, event: Object) -> None:
        self.say(json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def _follow(self) -> None:
        try:
            changes, self._sent = self.objects.since(self._resource, self._sent)
        except StatusError as failure:
            self.fail(failure)
            return
        for change in changes:
            event = change.event(self._selects, self._resource)
            if event is not None:
                self._say(event)


class Watches:
    """Those under way."""

    def __init__(self) -> None:
        self._open: set[Watch] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def order(self, order: Callable[[Watch], None]) -> None:
        """Have each do that; from any thread."""

        def give() -> None:
            for watch in tuple(self._open):
                order(watch)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(give)

    @contextlib.contextmanager
    def holding(self, watch: Watch) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(watch.wake.set)

        unlisten = watch.objects.listen(wake)
        self._open.add(watch)
        try:
            yield
        finally:
            unlisten()
            self._open.discard(watch)
