"""A damaged file: found whatever byte is wrong, moved aside with all that it was, and remembered."""

import random
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from mesh.names import PeerName
from tests.weave_py.test_store_crash import change, check
from weave_py import weave_net
from weave_py.store import Store, StoreError
from weave_py.weave_net import Held, WeaveNetState

TRIES = 300


def filled(prefix: str) -> tuple[object, ...]:
    """A store with something of everything; what it holds."""
    store = Store(prefix)
    store.set_peer_name(PeerName(0x0123_4567_89AB))
    store.set_direct_peers(["10.0.0.2"])
    store.commit_addresses(
        b"ring" * 3000, {f"container-{n}": Held(n % 2 == 0, (f"10.32.0.{n}/12",)) for n in range(100)}
    )
    for number in range(20):
        store.add_name(f"host{number}.weave.local.", "weave:extern", f"10.32.1.{number}")
    store.set_exposed("10.32.0.1/12", True)
    held = content(store)
    store.close()
    return held


def content(store: Store) -> tuple[object, ...]:
    """All that a store holds, but the list of peers: whoever is asked in vain costs nothing."""
    return store.peer_name(), store.ring(), store.owned(), store.names(), store.exposed()


def moved(path: Path) -> Path:
    """Where a damaged file is now."""
    (aside,) = (found for found in path.parent.glob(f"{path.name}.damaged-*") if not found.name.endswith("-wal"))
    return aside


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a database, not even nearly" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
    ids=["empty", "something else", "cut short", "one page", "zeros"],
)
def test_moved_aside(tmp_path: Path, spoil: object) -> None:
    prefix = str(tmp_path / "weave")
    filled(prefix)
    path = Path(f"{prefix}data.sqlite")
    assert callable(spoil)
    spoil(path)
    damaged = path.read_bytes()
    weave_net.write(f"{prefix}data.db", WeaveNetState(direct_peers=("what Weave Net once knew",)))
    store = Store(prefix)
    aside = moved(path)
    assert aside.read_bytes() == damaged
    assert store.lost is not None and store.lost.startswith(f"{path} was damaged (")
    assert store.lost.endswith(f") and is now {aside}")
    assert content(store) == (None, None, {}, [], []) and store.direct_peers() == []
    store.commit_addresses(b"learned again", {})
    lost = store.lost
    store.close()

    store = Store(prefix)
    assert (store.lost, store.ring()) == (lost, b"learned again")
    with pytest.raises(StoreError, match=r"there is no state to hand back: .*damaged"):
        store.hand_back()
    store.clear_lost()
    assert store.lost is None
    store.close()
    store = Store(prefix)
    assert store.lost is None
    store.close()


def test_the_log_goes_along(tmp_path: Path) -> None:
    """What was committed and not yet carried into the file may be all that can be saved."""
    prefix = str(tmp_path / "weave")
    store = Store(prefix)
    store.commit_addresses(b"ring" * 3000, {})
    log = Path(f"{prefix}data.sqlite-wal").read_bytes()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "weavedata.sqlite").write_bytes(b"damaged")
    (copy / "weavedata.sqlite-wal").write_bytes(log)
    store.close()
    store = Store(str(copy / "weave"))
    (aside,) = copy.glob("weavedata.sqlite.damaged-*-wal")
    assert aside.read_bytes() == log
    assert store.lost is not None and store.ring() is None
    store.close()


def test_a_log_without_its_file(tmp_path: Path) -> None:
    log = tmp_path / "weavedata.sqlite-wal"
    log.write_bytes(b"somebody removed the file alone")
    store = Store(str(tmp_path / "weave"))
    assert store.lost is not None and ".damaged-" in store.lost
    store.close()
    (aside,) = tmp_path.glob("weavedata.sqlite.damaged-*-wal")
    assert aside.read_bytes() == b"somebody removed the file alone"


def test_any_wrong_byte_is_found(tmp_path: Path) -> None:
    """Either nothing that we stored is different, or it is said: nothing wrong is ever believed."""
    original = tmp_path / "original"
    held = filled(str(original / "weave"))
    rng = random.Random(4)
    size = (original / "weavedata.sqlite").stat().st_size
    # The first hundred bytes decide most; the rest are drawn.
    places = [*range(100), *(rng.randrange(size) for _ in range(TRIES))]
    unchanged = lost = 0
    refused: list[str] = []
    for number, place in enumerate(places):
        here = tmp_path / str(number)
        shutil.copytree(original, here)
        path = here / "weavedata.sqlite"
        bad = bytearray(path.read_bytes())
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            store = Store(str(here / "weave"))
        except StoreError as error:
            refused.append(str(error))
            assert path.read_bytes() == bad
            continue
        if store.lost is None:
            assert content(store) == held, f"byte {place} is wrong and believed"
            unchanged += 1
        else:
            assert moved(path).read_bytes() == bad
            lost += 1
        store.close()
        shutil.rmtree(here)
    assert lost > TRIES / 2 and unchanged
    # A later schema, or a format that only a later SQLite writes.
    assert all("data.sqlite" in line and "\n" not in line for line in refused)


def test_any_wrong_byte_in_the_log_is_found(tmp_path: Path) -> None:
    """After a death the log is what was answered last: nothing of it may go unsaid but the very last transaction,
    which might not have been answered."""
    commits = 8
    original = tmp_path / "original"
    store = Store(str(tmp_path / "weave"))
    for count in range(1, commits + 1):
        store.commit_addresses(*change(count))
    original.mkdir()
    for suffix in ("data.sqlite", "data.sqlite-wal"):
        shutil.copy(f"{tmp_path}/weave{suffix}", f"{original}/weave{suffix}")
    store.close()
    size = (original / "weavedata.sqlite-wal").stat().st_size
    rng = random.Random(7)
    outcomes: Counter[str] = Counter()
    for place in (*range(32), *(rng.randrange(size) for _ in range(TRIES))):
        here = tmp_path / str(place)
        shutil.copytree(original, here, dirs_exist_ok=True)
        log = here / "weavedata.sqlite-wal"
        bad = bytearray(log.read_bytes())
        bad[place] ^= 1 << rng.randrange(8)
        log.write_bytes(bad)
        store = Store(str(here / "weave"))
        if store.lost is None:
            outcomes[f"{check(store, {}) - commits}"] += 1
        else:
            assert log.with_name(f"{moved(here / 'weavedata.sqlite').name}-wal").read_bytes() == bad
            outcomes["lost"] += 1
        store.close()
        shutil.rmtree(here)
    assert set(outcomes) <= {"0", "-1", "lost"}, outcomes
    assert outcomes["lost"] > TRIES / 2


def test_a_value_changed_with_a_tool(tmp_path: Path) -> None:
    prefix = str(tmp_path / "weave")
    filled(prefix)
    with sqlite3.connect(f"{prefix}data.sqlite") as connection:
        connection.execute("UPDATE owned SET cidrs = '10.32.0.99/12' WHERE ident = 'container-7'")
    connection.close()
    store = Store(prefix)
    assert store.lost is not None and "a row of owned does not have its sum" in store.lost
    store.close()


def test_damage_under_a_running_router(tmp_path: Path) -> None:
    """What SQLite has not at hand any more: a ring larger than its cache."""
    prefix = str(tmp_path / "weave")
    store = Store(prefix)
    store.commit_addresses(bytes(8 << 20), {})
    store.close()
    store = Store(prefix)
    path = Path(f"{prefix}data.sqlite")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StoreError, match=r"unable to read .*; the next start of the router moves the file aside"):
        store.ring()
    store.close()
    store = Store(prefix)
    assert store.lost is not None
    store.close()
