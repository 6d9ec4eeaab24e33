"""One at a time for each container."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """Whose turn it is. Who comes first is first; a container that nobody waits for takes no room."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def busy(self, container: str) -> bool:
        """Whether something is under way for it."""
        return container in self._locks

    @contextlib.asynccontextmanager
    async def of(self, container: str) -> AsyncIterator[None]:
        """Have the turn of a container meanwhile."""
        lock, count = self._locks.get(container, (asyncio.Lock(), 0))
        self._locks[container] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            _, count = self._locks.pop(container)
            if count > 1:
                self._locks[container] = (lock, count - 1)
