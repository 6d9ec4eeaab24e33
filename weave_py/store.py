"""What must survive a restart: one SQLite file a host. Today it holds the direct peers, as they were typed.

Committed before anybody is told (WAL, synchronous=FULL). The schema has a number, and a file of a later version is
left alone. Source: CLI spec §4; SQLite, "Write-Ahead Logging".
"""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

_SCHEMA = 1
_TIMEOUT = 2.0
_IMAGE_PREFIX = Path("/weavedb/weave")
_HOST_PREFIX = Path("/var/lib/weave/weave")


class StoreError(Exception):
    """The state cannot be read or written: one line, with the file's name."""


def default_prefix() -> str:
    """Where state is kept unless `--db-prefix` says otherwise: 2.8's place in an image, a host's own elsewhere."""
    return str(_IMAGE_PREFIX if _IMAGE_PREFIX.parent.is_dir() else _HOST_PREFIX)


class Store:
    """The state at `prefix` + `data.sqlite`, made if it is not there. Raises StoreError, as every method does."""

    def __init__(self, prefix: str) -> None:
        self.path = f"{prefix}data.sqlite"
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_TIMEOUT, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"unable to open {self.path}: {error}") from error

    def _migrate(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA:
            raise StoreError(f"{self.path} was written by a later version (schema {version}, ours is {_SCHEMA})")
        if version < 1:
            self._connection.executescript(
                "BEGIN; CREATE TABLE direct_peers (position INTEGER PRIMARY KEY, peer TEXT NOT NULL);"
                f"PRAGMA user_version={_SCHEMA}; COMMIT"
            )

    def direct_peers(self) -> list[str]:
        """The peers of the last run, in their order."""
        try:
            rows = self._connection.execute("SELECT peer FROM direct_peers ORDER BY position").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"unable to read {self.path}: {error}") from error
        return [str(row[0]) for row in rows]

    def set_direct_peers(self, peers: Sequence[str]) -> None:
        """Replace the list, durably."""
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("DELETE FROM direct_peers")
                self._connection.executemany("INSERT INTO direct_peers VALUES (?, ?)", enumerate(peers))
        except sqlite3.Error as error:
            raise StoreError(f"unable to write {self.path}: {error}") from error

    def close(self) -> None:
        """Done with it."""
        self._connection.close()
