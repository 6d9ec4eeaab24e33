"""Keeps registered names over restarts: rows go to the journal one after the other, on a worker thread.

The event loop never waits for a disk. What a journal cannot keep is said once each time, and costs only that it is
not kept. Source: DNS spec §14 (F6).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from dns.seams import NameJournal

Row = tuple[str, str, str]


class Keeper:
    """The journal's one writer. Without a journal nothing is kept."""

    def __init__(self, journal: NameJournal | None, log: logging.Logger) -> None:
        self._journal = journal
        self._log = log
        self._rows: list[Row] = []
        self._kept: set[Row] = set()
        self._due: list[tuple[Callable[[str, str, str], None], Row]] = []
        self._writer: asyncio.Task[None] | None = None
        self._error: str | None = None

    async def load(self) -> Sequence[Row]:
        """The rows of former runs; none where they cannot be read."""
        if self._journal is None:
            return []
        try:
            rows = [(str(h), str(c), str(a)) for h, c, a in await asyncio.to_thread(self._journal.names)]
        except Exception as error:
            self._log.error("%s; names of former runs are not registered", error)
            return []
        self._kept = set(rows)
        return rows

    def add(self, hostname: str, container: str, address: str) -> None:
        """Keep a row."""
        row = (hostname, container, address)
        if self._journal is not None and row not in self._kept:
            self._kept.add(row)
            self._do(self._journal.add_name, row)

    def remove(self, hostname: str, container: str, address: str) -> None:
        """Forget a row."""
        row = (hostname, container, address)
        if self._journal is not None and row in self._kept:
            self._kept.discard(row)
            self._do(self._journal.remove_name, row)

    async def settled(self) -> str | None:
        """Wait for what is due; why something of it, or of what was due before, could not be kept."""
        while self._writer is not None:
            await asyncio.wait([self._writer])
        error, self._error = self._error, None
        return error

    def _do(self, write: Callable[[str, str, str], None], row: Row) -> None:
        self._due.append((write, row))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._due:
            due, self._due = self._due, []
            for write, row in due:
                try:
                    await asyncio.to_thread(write, *row)
                except Exception as error:
                    self._kept.discard(row)
                    self._error = str(error)
                    self._log.error("%s; the name %s of %s is not stored", error, row[0], row[2])
        self._writer = None
