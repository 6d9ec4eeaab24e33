"""The file under the store: who may open it, what becomes of a damaged one, how a transaction is made.

One process at a time (a lock that dies with it). WAL and synchronous=FULL: what is committed is on the disk. A file
appears whole, by a rename, so an empty one was never ours. A damaged one is moved aside, never overwritten, and that
is remembered in its successor until somebody says that what was lost is known again.
Source: CLI spec §4; SQLite, "Write-Ahead Logging", "How To Corrupt An SQLite Database File".
"""

import contextlib
import fcntl
import glob
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from weave_py.store_schema import LATEST, climb, damage, version
from weave_py.store_wal import passed_over

# Seconds to wait for somebody who reads the file with a tool.
_TIMEOUT = 2.0
_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT))
_UNREADABLE = (sqlite3.Error, UnicodeError, OverflowError)
_ASIDE = ".damaged-"
Fill = Callable[[sqlite3.Connection, str | None], None]


class StoreError(Exception):
    """The state cannot be read or written: one line, with the file's name."""


class _DamagedError(Exception):
    """The content of the file is not what was written."""


class StateFile:
    """`prefix` + `data.sqlite`, made if it is not there.

    `fill(connection, lost)` writes what a new file begins with, in the transaction that makes it; `lost` says what
    became of an earlier file that could not be read. Raises StoreError, as every method does.
    """

    def __init__(self, prefix: str, fill: Fill) -> None:
        self.path = f"{prefix}data.sqlite"
        self._fill = fill
        self._turn = threading.RLock()
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        except OSError as error:
            raise StoreError(f"unable to open {self.path}: {_reason(error)}") from error
        self._lock = _locked(f"{prefix}data.lock", self.path)
        try:
            self._connection = self._opened()
        except BaseException:
            os.close(self._lock)
            raise

    # --- use ---

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._turn:
            try:
                return self._connection.execute(query, values).fetchall()
            except _UNREADABLE as error:
                raise StoreError(f"unable to read {self.path}: {_reason(error)}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on the disk when it ends. From any thread, one at a time."""
        with self._turn:
            try:
                with _transaction(self._connection):
                    yield self._connection
            except _UNREADABLE as error:
                raise StoreError(f"unable to write {self.path}: {_reason(error)}") from error

    def copy(self, word: str) -> str:
        """A copy of the file as it is now, beside it; its name, which ends in the word."""
        with self._turn:
            name, count = f"{self.path}.{word}", 1
            while os.path.lexists(name):
                name, count = f"{self.path}.{word}.{count}", count + 1
            try:
                self._connection.execute("VACUUM INTO ?", (name,))
                _sync(name)
            except (OSError, *_UNREADABLE) as error:
                raise StoreError(f"unable to write {name}: {_reason(error)}") from error
            return name

    def close(self) -> None:
        """Done with it; others may open it."""
        with self._turn:
            self._connection.close()
            os.close(self._lock)

    # --- opening ---

    def _opened(self) -> sqlite3.Connection:
        try:
            for leftover in glob.glob(f"{glob.escape(self.path)}.new*"):
                os.unlink(leftover)
            if not os.path.exists(self.path):
                self._make(self._lost_before())
            try:
                return self._checked()
            except _DamagedError as error:
                self._make(f"{self.path} was damaged ({error}) and is now {self._move_aside()}")
            return self._checked()
        except (OSError, sqlite3.Error, _DamagedError) as error:
            raise StoreError(f"unable to open {self.path}: {_reason(error)}") from error

    def _checked(self) -> sqlite3.Connection:
        """The file, opened, of our schema, and sound. Raises _DamagedError, StoreError, sqlite3.Error."""
        try:
            # Without the right to write: closing would carry the log into a file that is damaged, and remove it.
            with contextlib.closing(_connect(self.path, "ro")) as connection:
                self._examine(connection)
            connection = _connect(self.path)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                if version(connection) < LATEST:
                    with _transaction(connection):
                        climb(connection)
            except BaseException:
                connection.close()
                raise
        except UnicodeError as error:
            raise _DamagedError("it holds text that is none") from error
        except sqlite3.Error as error:
            if _code(error) in _DAMAGED:
                raise _DamagedError(str(error)) from error
            raise
        return connection

    def _examine(self, connection: sqlite3.Connection) -> None:
        at = version(connection)
        if at > LATEST:
            raise StoreError(
                f"{self.path} was written by a later version (its schema is {at}, the latest known here is {LATEST}): "
                f"start that version, or give its state back with its 'weave hand-back --schema {LATEST}'"
            )
        # A file appears with its schema, so one without was never ours.
        found = "it is empty" if at == 0 else damage(connection, at)
        if found is None and passed_over(self.path) > 1:
            found = "its log is broken in the middle"
        if found is not None:
            raise _DamagedError(found)

    def _make(self, lost: str | None) -> None:
        """A new file under another name, whole and on the disk, before it gets its own."""
        connection = sqlite3.connect(f"{self.path}.new", isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            with _transaction(connection):
                climb(connection)
                self._fill(connection, lost)
        finally:
            connection.close()
        os.rename(f"{self.path}.new", self.path)
        _sync(self.path)

    def _lost_before(self) -> str | None:
        """A start may have ended between moving a damaged file aside and making the next: then that is still true."""
        if os.path.exists(f"{self.path}-wal"):
            # SQLite would take this log for the next file's.
            self._move_aside()
        aside = sorted(glob.glob(f"{glob.escape(self.path)}{_ASIDE}*"))
        return f"{self.path} is gone; what was there before is {aside[-1]}" if aside else None

    def _move_aside(self) -> str:
        """Give the file, and its log, a name that says what they are; that name."""
        name = base = f"{self.path}{_ASIDE}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        count = 1
        while os.path.lexists(name) or os.path.lexists(f"{name}-wal"):
            name, count = f"{base}.{count}", count + 1
        # The file first: without its log it might look sound, and be old.
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + suffix, name + suffix)
        # An index of the log, which SQLite makes anew.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}-shm")
        return name


def _connect(path: str, mode: str = "rw") -> sqlite3.Connection:
    """A connection to a file that is there; mode `ro` or `rw`."""
    address = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already gone back after some errors, a full disk among them.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _locked(path: str, of: str) -> int:
    """The lock of a file, held until the process ends or closes it. Raises StoreError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"unable to open {of}: {_reason(error)}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        who = f"another router (pid {holder})" if holder.isdecimal() else "another router"
        raise StoreError(f"{of} is in use by {who}: stop it first, or choose another --db-prefix") from error
    # Only for that message: the lock is what counts, so a full disk may keep the pid out.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _sync(path: str) -> None:
    """A file whose content may still be on its way, and the directory that names it."""
    for place, flags in ((path, os.O_RDONLY), (os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(place, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _code(error: sqlite3.Error) -> int:
    """The primary result code: how SQLite names the kind of error."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, sqlite3.Error):
        # The index of the log is made first, and is the first that does not fit.
        no_index = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
        if no_index or _code(error) == sqlite3.SQLITE_FULL:
            return "no space left on the disk; nothing was changed, and it goes on when there is"
        if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return f"{error}; the next start of the router moves the file aside"
    return str(error)
