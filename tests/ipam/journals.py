"""A journal in memory: what it holds survives the service that wrote it."""

import threading

from ipam.seams import Change, JournalError, Owned, Saved


class MemoryJournal:
    """Counts its commits; fails with `trouble` where that is set; waits where `gate` is closed."""

    def __init__(self) -> None:
        self.ring: bytes | None = None
        self.owned: dict[str, Owned] = {}
        self.commits = 0
        self.trouble: str | None = None
        self.gate = threading.Event()
        self.gate.set()

    def load(self) -> Saved | None:
        return None if self.ring is None and not self.owned else Saved(self.ring, dict(self.owned))

    def commit(self, change: Change) -> None:
        assert self.gate.wait(10)
        if self.trouble is not None:
            raise JournalError(self.trouble)
        self.commits += 1
        self.apply(change)

    def apply(self, change: Change) -> None:
        """What a transaction does."""
        if change.ring is not None:
            self.ring = change.ring
        for ident, each in change.owned.items():
            if each is None:
                self.owned.pop(ident, None)
            else:
                self.owned[ident] = each
