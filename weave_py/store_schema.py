"""The tables of the store, as a ladder: each step leads from one schema to the next, and back.

A step that was released never changes; what comes later is another step. Every row of tables since schema 2 carries a
sum of its values, since SQLite notices a damaged page but not a damaged number in a sound one.
Source: CLI spec §4; IPAM spec §14.
"""

import sqlite3
import zlib
from dataclasses import dataclass

Value = str | int | bytes


@dataclass(frozen=True, slots=True)
class Step:
    """The statements of one step, up and down."""

    up: tuple[str, ...]
    down: tuple[str, ...]


STEPS = (
    Step(
        up=("CREATE TABLE direct_peers (position INTEGER PRIMARY KEY, peer TEXT NOT NULL)",),
        down=("DROP TABLE direct_peers",),
    ),
    Step(
        up=(
            "CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE owned (ident TEXT PRIMARY KEY, is_container INTEGER NOT NULL, cidrs TEXT NOT NULL,"
            " sum INTEGER NOT NULL)",
            "CREATE TABLE names (hostname TEXT NOT NULL, container TEXT NOT NULL, address TEXT NOT NULL,"
            " sum INTEGER NOT NULL, PRIMARY KEY (hostname, container, address))",
            "CREATE TABLE exposed (cidr TEXT PRIMARY KEY, masquerade INTEGER NOT NULL, sum INTEGER NOT NULL)",
        ),
        down=("DROP TABLE exposed", "DROP TABLE names", "DROP TABLE owned", "DROP TABLE facts"),
    ),
)
LATEST = len(STEPS)
_SUMMED = ("facts", "owned", "names", "exposed")


def checksum(*values: Value) -> int:
    """The sum of a row's other values, in their order. Text and bytes of the same content differ."""
    total = 0
    for value in values:
        if isinstance(value, bytes):
            kind, content = b"b", value
        elif isinstance(value, str):
            kind, content = b"s", value.encode()
        else:
            kind, content = b"i", b"%d" % value
        total = zlib.crc32(b"%s%d:%s" % (kind, len(content), content), total)
    return total


def version(connection: sqlite3.Connection) -> int:
    """The schema of a file; 0 where it has none."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def climb(connection: sqlite3.Connection, to: int = LATEST) -> None:
    """Go up or down to a schema, inside the caller's transaction. Raises sqlite3.Error."""
    at = version(connection)
    statements = [statement for step in STEPS[at:to] for statement in step.up]
    statements += [statement for step in reversed(STEPS[to:at]) for statement in step.down]
    for statement in statements:
        connection.execute(statement)
    # Part of the transaction, as the header of the file is.
    connection.execute(f"PRAGMA user_version={to:d}")


def damage(connection: sqlite3.Connection, schema: int) -> str | None:
    """What is wrong with the content of a file of some schema, or None. Raises sqlite3.Error."""
    # A page that a stray write hit is found by SQLite, a value by its sum.
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        return str(verdict).splitlines()[-1]
    there = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master")}
    if not there.issuperset(statement for step in STEPS[:schema] for statement in step.up):
        return "its tables are not the ones that were made"
    for table in _SUMMED if schema > 1 else ():
        for row in connection.execute(f"SELECT * FROM {table}"):
            if row[-1] != checksum(*row[:-1]):
                return f"a row of {table} does not have its sum"
    return None
