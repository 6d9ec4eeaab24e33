"""The store through deaths at any moment and through a full disk.

A death is SIGKILL to a process of its own; what it was told is committed, it tells by a pipe. A full disk is a small
tmpfs of a mount namespace of its own.
"""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from weave_py import weave_net
from weave_py.store import Exposed, Store, StoreError
from weave_py.weave_net import Held, WeaveNetState

KILLS = 200
HOLDERS = 3


def change(count: int) -> tuple[bytes, dict[str, Held | None]]:
    """The change number `count`: every holder speaks of the same number as the ring, one is new, one goes."""
    held: dict[str, Held | None] = {f"holder-{n}": Held(True, (f"10.32.{n}.1/12", f"n{count}")) for n in range(HOLDERS)}
    held[f"at-{count}"] = Held(True, (f"n{count}",))
    held[f"at-{count - 5}"] = None
    return b"%d " % count * 2000, held


def check(store: Store, answered: dict[str, int]) -> int:
    """What must hold after any death; the number of the last change that is there."""
    ring, owned = store.ring(), store.owned()
    assert store.lost is None
    if ring is None:
        assert not owned and "ring" not in answered
        return 0
    count = int(ring.split()[0])
    assert ring == b"%d " % count * 2000, "the ring is half of one and half of another"
    expected = {ident: held for ident, held in change(count)[1].items() if held is not None}
    expected |= {f"at-{n}": Held(True, (f"n{n}",)) for n in range(max(1, count - 4), count)}
    assert owned == expected, "ring and holders are of different changes"
    assert answered.get("ring", 0) <= count, "an answered change is gone"
    names, exposed = store.names(), store.exposed()
    assert len(names) >= answered.get("name", 0)
    assert {name.container for name in names} == {str(number) for number in range(1, len(names) + 1)}
    assert len(exposed) <= 1
    assert not exposed or int(exposed[0].cidr.split(".")[3].split("/")[0]) >= answered.get("exposed", 0) % 250
    return count


def load(prefix: str, begun: int, named: int, answers: int) -> None:
    """The life of a victim: one thread commits addresses, another names and exposure; each answer is told."""
    store = Store(prefix)
    os.write(answers, b"open 0\n")

    def addresses() -> None:
        count = begun
        while True:
            count += 1
            store.commit_addresses(*change(count))
            os.write(answers, b"ring %d\n" % count)

    threading.Thread(target=addresses, daemon=True).start()
    number = named
    while True:
        number += 1
        store.add_name(f"host{number}.weave.local.", str(number), "10.32.0.1")
        os.write(answers, b"name %d\n" % number)


def victim(work: Callable[[int], None]) -> tuple[int, int]:
    """A process that does some work with the end of a pipe to tell of it; its pid, and the other end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            work(writing)
        finally:
            os._exit(1)
    os.close(writing)
    return pid, reading


def test_killed_at_any_moment(tmp_path: Path) -> None:
    prefix = str(tmp_path / "weave")
    rng = random.Random(20)
    count, named, changes, opened = 0, 0, 0, 0
    for _ in range(KILLS):
        pid, reading = victim(partial(load, prefix, count, named))
        time.sleep(rng.uniform(0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open(reading, "rb") as told:
            answered = {
                kind: int(number) for kind, number in (line.split() for line in told.read().decode().splitlines())
            }
        opened += answered.pop("open", 1)
        store = Store(prefix)
        before, count = count, check(store, answered)
        named = len(store.names())
        changes += count - before
        store.close()
    # It was alive, and under load, in most lives.
    assert KILLS - opened > KILLS / 2 and changes > KILLS


def dies_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Make this process end at the n-th call of a function of the operating system."""
    real, left = getattr(os, name), [call]

    def deadly(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            os._exit(77)
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, deadly)


@pytest.mark.parametrize("name", ["rename", "fsync", "unlink"])
def test_death_while_a_damaged_file_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """However far it came: no file of ours is left that looks like a first start."""
    died = 0
    for call in range(6):
        prefix = str(tmp_path / str(call) / "weave")
        store = Store(prefix)
        store.commit_addresses(*change(1))
        path, log = Path(f"{prefix}data.sqlite"), Path(f"{prefix}data.sqlite-wal")
        committed = log.read_bytes()
        store.close()
        path.write_bytes(b"damaged")
        log.write_bytes(committed[:-1])
        weave_net.write(f"{prefix}data.db", WeaveNetState(ring=None, direct_peers=("older",)))

        def work(answers: int, prefix: str = prefix, call: int = call) -> None:
            dies_at(monkeypatch, name, call)
            Store(prefix)
            os._exit(0)

        pid, reading = victim(work)
        os.close(reading)
        died += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 77
        store = Store(prefix)
        assert store.lost is not None and ".damaged-" in store.lost
        assert (store.ring(), store.direct_peers(), store.imported) == (None, [], None)
        (kept,) = path.parent.glob("*.damaged-*-wal")
        assert kept.read_bytes() == committed[:-1]
        store.close()
        # The fact outlives further starts.
        store = Store(prefix)
        assert store.lost is not None
        store.clear_lost()
        store.close()
        store = Store(prefix)
        assert store.lost is None
        store.close()
    assert died or name == "unlink"


@pytest.mark.parametrize("name", ["rename", "fsync", "unlink", "link"])
def test_death_while_handing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whichever of the two files is then believed says the same."""
    for call in range(4):
        prefix = str(tmp_path / str(call) / "weave")
        os.makedirs(tmp_path / str(call))
        weave_net.write(f"{prefix}data.db", WeaveNetState(direct_peers=("first",)))
        store = Store(prefix)
        assert store.imported == f"{prefix}data.db"
        store.set_direct_peers(["second"])
        store.close()

        def work(answers: int, prefix: str = prefix, call: int = call) -> None:
            store = Store(prefix)
            dies_at(monkeypatch, name, call)
            store.hand_back()
            os._exit(0)

        pid, reading = victim(work)
        os.close(reading)
        os.waitpid(pid, 0)
        assert weave_net.read(f"{prefix}data.db").direct_peers in (("first",), ("second",))
        store = Store(prefix)
        assert store.direct_peers() == ["second"]
        store.close()


FULL = """
    import os, sys
    from pathlib import Path
    from tests.weave_py.test_store_crash import change, check
    from weave_py.store import Store, StoreError

    prefix = sys.argv[1] + "/weave"
    store = Store(prefix)
    count = 0
    for _ in range(10):
        count += 1
        store.commit_addresses(*change(count))
    ballast = Path(sys.argv[1] + "/ballast")
    refused = []
    for round in range(3):
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        answered = count
        try:
            for _ in range(5000):
                count += 1
                store.commit_addresses(*change(count))
                answered = count
        except StoreError as error:
            refused.append(str(error))
        count = answered
        # What cannot be written says so, every time; what is there can be read, and is whole.
        assert check(store, {"ring": count}) == count
        if round == 1:
            store.close()
            try:
                store = Store(prefix)
            except StoreError as error:
                refused.append(str(error))
                ballast.unlink()
                store = Store(prefix)
            assert check(store, {"ring": count}) == count
        ballast.unlink(missing_ok=True)
        count += 1
        store.commit_addresses(*change(count))
        assert check(store, {"ring": count}) == count
    # After a power cut there is a log and no index of it.
    import shutil
    os.mkdir(sys.argv[1] + "/cut")
    for suffix in ("data.sqlite", "data.sqlite-wal"):
        shutil.copy(prefix + suffix, sys.argv[1] + "/cut/weave" + suffix)
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    try:
        Store(sys.argv[1] + "/cut/weave")
    except StoreError as error:
        cut = str(error)
    ballast.unlink()
    again = Store(sys.argv[1] + "/cut/weave")
    assert check(again, {"ring": count}) == count
    print("\\n".join([*refused, cut]))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=12m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, textwrap.dedent(FULL)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 4
    assert lines.pop().startswith(f"unable to open {tmp_path}/cut/weavedata.sqlite: no space left on the disk")
    for line in lines:
        assert line.startswith(f"unable to write {tmp_path}/weavedata.sqlite: no space left on the disk"), line


def test_a_file_that_may_not_be_changed(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/weave"
    store = Store(prefix)
    store.set_exposed("10.32.0.1/12", True)
    store.close()
    script = (
        f'mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && exec {sys.executable} -c "$0"'
    )
    code = f"from weave_py.store import Store; Store({prefix!r})"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(f"unable to open {prefix}data.sqlite: read-only file system")
    store = Store(prefix)
    assert store.exposed() == [Exposed("10.32.0.1/12", True)]
    store.close()
    with pytest.raises(StoreError):
        store.names()
