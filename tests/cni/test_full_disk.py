"""A disk without room, for the courier's spool and for the router's state: whoever asks is told, in one line, and asks
again; what was begun ends as soon as there is room."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.spool import Spool
from cni.wire import Role, spool_name
from lab.router import RANGE, wait_until
from tests.clusters import cluster
from tests.cni.plugin import Plugin
from tests.disks import PAGE, fill, small_disk
from tests.namespaces import namespace, run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small") as place:
        yield place


def test_the_courier(disk: Path, tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, tmp_path / "nobody.sock", disk / "cni")
    plugin.delete("c1")
    ballast = disk / "ballast"
    fill(ballast)
    for _ in range(2):
        done = plugin.call("DEL", "c2")
        assert (done.status, done.document["code"]) == (1, 11)
        assert done.document["msg"].endswith(f"unable to leave the release in {plugin.spool}: No space left on device")
    assert os.listdir(plugin.spool) == [spool_name(Role.NET, "c1", "eth0")], "nothing half, and what waited waits"
    ballast.unlink()
    assert "the release waits for it" in plugin.delete("c2").notes
    spool = Spool(plugin.spool)
    assert {spool.read(name).variable("CONTAINERID") for name in spool.waiting()} == {"c1", "c2"}


def test_the_router(disk: Path) -> None:
    with cluster(ipam=RANGE) as made, namespace() as pod, namespace() as other:
        socket = made.directory / "weaver.sock"
        router = made.start(1, [], "--socket", str(socket), "--db-prefix", f"{disk}/weave")
        plugin = Plugin(made.directory, socket, made.directory / "unused")
        plugin.add("c1", pod)
        owned = router.owned()
        ballast = disk / "ballast"
        fill(ballast)
        for command, container, where in (("ADD", "c2", other), ("DEL", "c1", pod), ("DEL", "c1", pod)):
            done = plugin.call(command, container, where)
            assert (done.status, done.document["code"]) == (1, 11), done
            assert "no space left on the disk" in done.document["msg"] and "\n" not in done.document["msg"]
        assert router.owned() == owned, "what cannot be stored is not done"
        assert "eth0" not in run("ip", "-n", other, "link"), "an ADD that fails leaves nothing"
        assert "unable to write down a release, so it is waited for: [Errno 28] No space left on device" in router.log
        # Room for the release, though not for what follows from it.
        os.truncate(ballast, ballast.stat().st_size - PAGE)
        plugin.delete("c1", pod)
        wait_until("it is said", lambda: "no space left on the disk" in router.log.rpartition("tried again")[0], 10)
        assert os.listdir(disk / "cni") == [spool_name(Role.NET, "c1", "eth0")], "it waits"
        assert router.owned() == owned
        ballast.unlink()
        plugin.add("c2", other)
        # The release of the same interface comes first.
        plugin.add("c1", pod)
        assert os.listdir(disk / "cni") == []
        assert set(router.owned()) == {"c1", "c2", "weave:expose"}
        plugin.delete("c1", pod)
        wait_until("the address is free", lambda: "c1" not in router.owned(), 10)
        assert "unexpected" not in router.log and "Traceback" not in router.log
