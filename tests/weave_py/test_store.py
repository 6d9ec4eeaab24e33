"""The store: what is written is there again, in order, from any thread, and only one process has it."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ipam.seams import Change, Cidr, JournalError, Owned, Saved
from mesh.names import PeerName
from weave_py.store import Exposed, Name, Store, StoreError
from weave_py.store_ipam import IpamJournal
from weave_py.store_schema import LATEST, climb
from weave_py.weave_net import Held


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "weave")


def test_the_list_survives(tmp_path: Path) -> None:
    prefix = str(tmp_path / "deep" / "weave")
    store = Store(prefix)
    assert store.direct_peers() == []
    store.set_direct_peers(["10.0.0.2", "host:7000"])
    store.set_direct_peers(["host:7000", "10.0.0.3"])
    store.close()
    again = Store(prefix)
    assert again.direct_peers() == ["host:7000", "10.0.0.3"]
    again.close()
    assert (tmp_path / "deep" / "weavedata.sqlite").exists()


def test_everything_survives(prefix: str) -> None:
    store = Store(prefix)
    assert (store.peer_name(), store.ring(), store.owned(), store.names(), store.exposed()) == (None, None, {}, [], [])
    store.set_peer_name(PeerName(0xFFFF_FFFF_FFFF))
    store.commit_addresses(b"\x00ring\xff", {"b": Held(True, ("10.32.0.2/12", "10.40.0.1/24")), "a": Held(False, ())})
    store.commit_addresses(None, {"b": Held(True, ("10.32.0.9/12",)), "c": Held(False, ("fd00::1/64",)), "a": None})
    store.add_name("db.weave.local.", "weave:extern", "10.32.0.7")
    store.add_name("api.weave.local.", "c1", "10.32.0.8")
    store.add_name("db.weave.local.", "weave:extern", "10.32.0.7")
    store.add_name("gone.weave.local.", "c1", "10.32.0.8")
    store.remove_name("gone.weave.local.", "c1", "10.32.0.8")
    store.set_exposed("10.32.0.1/12", True)
    store.set_exposed("10.40.0.1/24", True)
    store.set_exposed("10.32.0.1/12", False)
    store.set_exposed("10.50.0.1/24", True)
    store.remove_exposed("10.50.0.1/24")
    store.set_flag("peer-reclaim", "ok")
    store.close()

    store = Store(prefix)
    assert store.peer_name() == 0xFFFF_FFFF_FFFF
    assert store.ring() == b"\x00ring\xff"
    assert list(store.owned().items()) == [
        ("b", Held(True, ("10.32.0.9/12",))),
        ("c", Held(False, ("fd00::1/64",))),
    ]
    assert store.names() == [
        Name("db.weave.local.", "weave:extern", "10.32.0.7"),
        Name("api.weave.local.", "c1", "10.32.0.8"),
    ]
    assert store.exposed() == [Exposed("10.32.0.1/12", False), Exposed("10.40.0.1/24", True)]
    assert store.flag("peer-reclaim") == "ok"
    assert (store.lost, store.imported) == (None, None)
    store.close()


def test_the_journal(prefix: str) -> None:
    store = Store(prefix)
    journal = IpamJournal(store)
    assert journal.load() is None
    one, six = Cidr.parse("10.32.0.1/12"), Cidr.parse("fd00::1/64")
    journal.commit(Change(owned={"c1": Owned(True, (one, six)), "c2": Owned(False, ())}))
    assert journal.load() == Saved(None, {"c1": Owned(True, (one, six)), "c2": Owned(False, ())})
    journal.commit(Change(ring=b"ring", owned={"c2": None}))
    journal.commit(Change())
    store.close()
    store = Store(prefix)
    journal = IpamJournal(store)
    assert journal.load() == Saved(b"ring", {"c1": Owned(True, (one, six))})
    store.commit_addresses(None, {"odd": Held(True, ("10.32.0.1/99",))})
    with pytest.raises(JournalError, match=r"unable to read .*data\.sqlite: invalid CIDR address: 10\.32\.0\.1/99"):
        journal.load()
    store.close()
    with pytest.raises(JournalError, match="unable to write"):
        journal.commit(Change(ring=b"late"))


def test_a_discarded_ring_is_lost_until_that_of_others_is_known(prefix: str) -> None:
    store = Store(prefix)
    IpamJournal(store).commit(Change(ring=b"empty", rejoins=True))
    word = "the ring of this host was discarded to join that of others"
    assert store.lost == word
    store.close()
    store = Store(prefix)
    assert store.lost == word
    store.clear_lost()
    store.close()
    store = Store(prefix)
    assert store.lost is None
    store.close()


def test_addresses_belong_to_a_name(prefix: str) -> None:
    store = Store(prefix)
    assert store.set_peer_name(PeerName(1)) is None
    store.commit_addresses(b"ring", {"c": Held(True, ("10.32.0.1/12",))})
    store.set_direct_peers(["10.0.0.2"])
    assert store.set_peer_name(PeerName(1)) is None
    assert store.ring() == b"ring"
    copy = store.set_peer_name(PeerName(2))
    assert copy == f"{prefix}data.sqlite.000000000001"
    assert (store.peer_name(), store.ring(), store.owned(), store.direct_peers()) == (2, None, {}, ["10.0.0.2"])
    assert store.set_peer_name(PeerName(1)) is None, "there is nothing to copy"
    store.commit_addresses(b"ring again", {})
    store.set_peer_name(PeerName(3))
    store.close()
    Path(copy).rename(f"{prefix}-copydata.sqlite")
    store = Store(f"{prefix}-copy")
    assert (store.peer_name(), store.ring(), list(store.owned())) == (1, b"ring", ["c"])
    store.close()


def test_the_restart_marker(prefix: str) -> None:
    store = Store(prefix)
    store.set_running(True)
    assert not store.was_running(), "a marker without a list says nothing"
    store.set_direct_peers(["10.0.0.2"])
    store.close()
    store = Store(prefix)
    assert store.was_running()
    store.set_running(False)
    store.close()
    store = Store(prefix)
    assert not store.was_running()
    store.close()


def test_threads_take_turns(prefix: str) -> None:
    store = Store(prefix)

    def work(number: int) -> None:
        for count in range(20):
            store.commit_addresses(b"%d" % count, {f"{number}-{count}": Held(True, ("10.32.0.2/12",))})
            store.set_direct_peers([f"{number}", f"{count}"])
            assert len(store.direct_peers()) == 2

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.owned()) == 80
    store.close()


def test_a_second_router_is_refused(prefix: str) -> None:
    script = (
        "import sys; from weave_py.store import Store\n"
        "store = Store(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, prefix], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(StoreError) as refused:
            Store(prefix)
        assert str(refused.value) == (
            f"{prefix}data.sqlite is in use by another router (pid {first.pid}): "
            "stop it first, or choose another --db-prefix"
        )
        first.kill()
    Store(prefix).close()


def test_a_tool_that_holds_the_file_is_said(prefix: str) -> None:
    store = Store(prefix)
    with sqlite3.connect(prefix + "data.sqlite") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"unable to write .*: database is locked"):
            store.set_direct_peers(["a"])
        other.rollback()
    store.set_direct_peers(["a"])
    assert store.direct_peers() == ["a"]
    store.close()


def test_what_cannot_be_stored_is_said(prefix: str) -> None:
    store = Store(prefix)
    with pytest.raises(StoreError, match="unable to write"):
        store.add_name("lone \ud800 surrogate", "c", "10.32.0.1")
    assert store.names() == []
    store.close()


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"unable to open .*data\.sqlite: (not a directory|file exists)"):
        Store(str(tmp_path / "file" / "weave"))


def test_a_later_schema_is_left_alone(prefix: str) -> None:
    Store(prefix).close()
    with sqlite3.connect(prefix + "data.sqlite") as connection:
        connection.execute("PRAGMA user_version=99")
    before = Path(prefix + "data.sqlite").read_bytes()
    with pytest.raises(StoreError) as refused:
        Store(prefix)
    assert str(refused.value) == (
        f"{prefix}data.sqlite was written by a later version (its schema is 99, the latest known here is {LATEST}): "
        f"start that version, or give its state back with its 'weave hand-back --schema {LATEST}'"
    )
    assert Path(prefix + "data.sqlite").read_bytes() == before


def test_up_from_schema_1_and_down_again(prefix: str) -> None:
    with sqlite3.connect(prefix + "data.sqlite") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(
            "BEGIN; CREATE TABLE direct_peers (position INTEGER PRIMARY KEY, peer TEXT NOT NULL);"
            "INSERT INTO direct_peers VALUES (0, '10.0.0.2'); PRAGMA user_version=1; COMMIT"
        )
    connection.close()
    store = Store(prefix)
    assert store.direct_peers() == ["10.0.0.2"]
    assert (store.lost, store.peer_name()) == (None, None)
    store.set_peer_name(PeerName(7))
    store.close()
    store = Store(prefix)
    assert store.peer_name() == 7
    store.go_down(1)
    store.close()
    with sqlite3.connect(prefix + "data.sqlite") as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert (connection.execute("PRAGMA user_version").fetchone()[0], tables) == (1, {"direct_peers"})
        assert connection.execute("SELECT peer FROM direct_peers").fetchall() == [("10.0.0.2",)]
    connection.close()


def test_every_step_goes_back() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    shapes = []
    for schema in range(LATEST + 1):
        climb(connection, schema)
        shapes.append(connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall())
    for schema in range(LATEST, -1, -1):
        climb(connection, schema)
        assert connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == shapes[schema]


@pytest.mark.parametrize("schema", [0, LATEST + 1])
def test_no_such_schema(prefix: str, schema: int) -> None:
    store = Store(prefix)
    with pytest.raises(StoreError, match=f"there is no schema {schema}"):
        store.go_down(schema)
    store.close()
