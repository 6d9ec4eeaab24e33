"""Targets of attach: pids, names, paths and containers' ids."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host import netns
from host.errors import HostError
from tests.namespaces import namespace, within


@contextmanager
def process_in(name: str) -> Iterator[int]:
    """A process in a namespace; its pid."""
    child = subprocess.Popen(
        ["ip", "netns", "exec", name, "sh", "-c", "echo in; exec sleep 60"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def inode(path: str) -> int:
    return os.stat(path).st_ino


def test_every_kind_of_target_leads_to_the_namespace() -> None:
    with namespace() as container, process_in(container) as pid:
        named = f"/run/netns/{container}"
        for target, identity in (
            (container, container),
            (named, container),
            (str(pid), str(pid)),
            (f"/proc/{pid}/ns/net", str(pid)),
        ):
            with netns.opened(target) as found:
                assert os.fstat(found.descriptor).st_ino == inode(named)
                assert found.identity == identity


def test_a_name_of_digits_is_a_name_where_no_such_process_is(tmp_path: Path) -> None:
    (tmp_path / "netns").mkdir()
    (tmp_path / "netns/99999999").touch()
    assert netns._resolve("99999999", tmp_path) == (f"{tmp_path}/netns/99999999", "99999999")


@pytest.mark.parametrize(
    "place",
    [
        "containerd/io.containerd.runtime.v2.task/k8s.io/{}/init.pid",
        "docker/containerd/daemon/io.containerd.runtime.v2.task/moby/{}/init.pid",
        "containers/storage/overlay-containers/{}/userdata/pidfile",
    ],
)
def test_a_runtime_wrote_down_the_pid(tmp_path: Path, place: str) -> None:
    first, second = "ab12" * 16, "ab12ab13" + "0" * 56
    for container, pid in ((first, "41"), (second, "42\n")):
        file = tmp_path / place.format(container)
        file.parent.mkdir(parents=True)
        file.write_text(pid)
    assert netns._resolve(second[:12], tmp_path) == ("/proc/42/ns/net", "42")
    assert netns._resolve(first, tmp_path) == ("/proc/41/ns/net", "41")
    with pytest.raises(HostError, match="several containers begin with 'ab12ab1'"):
        netns._resolve("ab12ab1", tmp_path)


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        ("nosuch", "no container, namespace or process 'nosuch': give a pid"),
        ("--all", "no container, namespace or process '--all'"),
        ("", "is no network namespace|no container"),
        ("/nonexistent", "unable to open the network namespace of '/nonexistent': No such file"),
        ("/etc/hostname", "'/etc/hostname' is no network namespace"),
        ("../x", "no container"),
        ("4194305", "no container"),
    ],
)
def test_what_is_no_target(target: str, refusal: str) -> None:
    with pytest.raises(HostError, match=refusal), netns.opened(target):
        pass


def test_the_host_itself_is_refused() -> None:
    refusal = "host's own network namespace; attaching to it is refused"
    with pytest.raises(HostError, match=refusal), netns.opened(str(os.getpid())):
        pass


def test_the_thread_comes_back_with_result_or_error() -> None:
    with namespace() as container:
        before = inode("/proc/thread-self/ns/net")
        assert within(container, lambda: inode("/proc/thread-self/ns/net")) == inode(f"/run/netns/{container}")
        with pytest.raises(ZeroDivisionError):
            within(container, lambda: 1 // 0)
        assert inode("/proc/thread-self/ns/net") == before
    with pytest.raises(HostError, match="unable to open network namespace"):
        netns.inside("/nonexistent", lambda: None)
    with pytest.raises(HostError, match="unable to enter namespace /etc/hostname: Invalid argument"):
        netns.inside("/etc/hostname", lambda: None)


def test_a_lock_is_for_one_at_a_time() -> None:
    with namespace() as container, netns.opened(container) as first, netns.opened(container) as second:
        order: list[str] = []

        def other() -> None:
            with netns.locked(second):
                order.append("second")

        with netns.locked(first):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(0.1)
            order.append("first")
        thread.join(10)
        assert order == ["first", "second"]
