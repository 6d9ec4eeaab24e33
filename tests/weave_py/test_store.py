"""The store: what is written is there again, and what cannot be is said in one line."""

import sqlite3
from pathlib import Path

import pytest

from weave_py.store import Store, StoreError


def test_the_list_survives(tmp_path: Path) -> None:
    prefix = str(tmp_path / "deep" / "weave")
    store = Store(prefix)
    assert store.direct_peers() == []
    store.set_direct_peers(["10.0.0.2", "host:7000"])
    store.set_direct_peers(["host:7000", "10.0.0.3"])
    # No close: a killed router closes nothing.
    again = Store(prefix)
    assert again.direct_peers() == ["host:7000", "10.0.0.3"]
    again.close()
    assert (tmp_path / "deep" / "weavedata.sqlite").exists()


def test_a_later_schema_is_left_alone(tmp_path: Path) -> None:
    prefix = str(tmp_path / "weave")
    Store(prefix).close()
    with sqlite3.connect(prefix + "data.sqlite") as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="written by a later version"):
        Store(prefix)


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "weavedata.sqlite").write_bytes(b"not a database, not even nearly" * 100)
    with pytest.raises(StoreError, match=r"unable to open .*weavedata\.sqlite: file is not a database"):
        Store(str(tmp_path / "weave"))


def test_a_full_or_locked_file_is_said(tmp_path: Path) -> None:
    prefix = str(tmp_path / "weave")
    store = Store(prefix)
    with sqlite3.connect(prefix + "data.sqlite") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"unable to write .*: database is locked"):
            store.set_direct_peers(["a"])
        other.rollback()
    store.set_direct_peers(["a"])
    assert store.direct_peers() == ["a"]
