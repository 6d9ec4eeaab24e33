"""Network namespaces: finding the one that is meant, holding it open, and doing something in it.

A thread enters, never the process: the rest of the program stays where it is. A namespace is held by descriptor, so
that a pid which is used anew meanwhile cannot lead elsewhere. Source: setns(2), namespaces(7).
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from host.errors import HostError

_RUNTIME_TIMEOUT = 5.0
_LOCK_TIMEOUT = 20.0
_LOCK_POLL = 0.02
_RUN = Path("/run")
_PID_FILES = (
    "containerd/io.containerd.runtime.v2.task/*/{}*/init.pid",
    "docker/containerd/daemon/io.containerd.runtime.v2.task/*/{}*/init.pid",
    "containers/storage/overlay-containers/{}*/userdata/pidfile",
)
_INSPECT = (
    (("docker", "inspect"), ("State", "Pid")),
    (("podman", "inspect"), ("State", "Pid")),
    (("crictl", "inspect"), ("info", "pid")),
    (("crictl", "inspectp"), ("info", "pid")),
)
_CONTAINER_ID = re.compile(r"[0-9a-f]{7,64}")
_PROCESS_PATH = re.compile(r"/proc/(\d+)/ns/net")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A container's network namespace, held open. `identity` names its interface on the host."""

    descriptor: int
    identity: str


@contextlib.contextmanager
def opened(target: str | int) -> Iterator[Namespace]:
    """A pid, a namespace's name or path, or a container's id or name where a runtime is present. Raises HostError.

    Or an open descriptor of a namespace: it comes from where no path leads.
    """
    if isinstance(target, int):
        _check(target, "the container")
        yield Namespace(target, str(os.fstat(target).st_ino))
        return
    path, identity = _resolve(target)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"unable to open the network namespace of {target!r}: {error.strerror}") from error
    try:
        _check(descriptor, repr(target))
        yield Namespace(descriptor, identity)
    finally:
        os.close(descriptor)


def _resolve(target: str, run: Path = _RUN) -> tuple[str, str]:
    """Path and identity."""
    if target.isdecimal() and Path("/proc", target).exists():
        return f"/proc/{target}/ns/net", target
    if target.startswith("/"):
        process = _PROCESS_PATH.fullmatch(target)
        return target, process[1] if process else Path(target).name
    if "/" not in target and (run / "netns" / target).exists():
        return str(run / "netns" / target), target
    pid = _recorded_pid(target, run) or _inspected_pid(target)
    if pid is None:
        raise HostError(
            f"no container, namespace or process {target!r}: give a pid, a name from 'ip netns', a path, "
            "or the id of a running container"
        )
    return f"/proc/{pid}/ns/net", str(pid)


def _check(descriptor: int, target: str) -> None:
    theirs = os.fstat(descriptor)
    for host in ("/proc/1/ns/net", f"/proc/self/task/{threading.get_native_id()}/ns/net"):
        try:
            ours = os.stat(host)
        except OSError:
            # Process 1 is not always ours to look at; our own namespace is.
            continue
        if ours.st_dev != theirs.st_dev:
            raise HostError(f"{target} is no network namespace")
        if ours.st_ino == theirs.st_ino:
            raise HostError(f"{target} runs in the host's own network namespace; attaching to it is refused")


def _recorded_pid(container: str, run: Path) -> int | None:
    """The pid that a runtime wrote down for a container's id, whole or its first digits. Raises HostError."""
    if not _CONTAINER_ID.fullmatch(container):
        return None
    found = {path.parent: path for pattern in _PID_FILES for path in run.glob(pattern.format(container))}
    if len(found) > 1:
        raise HostError(f"several containers begin with {container!r}: give more digits")
    for path in found.values():
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    return None


def _inspected_pid(container: str) -> int | None:
    """The pid of a running container, from whichever runtime's program is here and knows it."""
    if container.startswith("-"):
        return None
    for command, keys in _INSPECT:
        if shutil.which(command[0]) is None:
            continue
        try:
            answer = subprocess.run((*command, container), capture_output=True, timeout=_RUNTIME_TIMEOUT, check=True)
            document = json.loads(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
        inspected = document[0] if isinstance(document, list) and document else document
        for key in keys:
            inspected = inspected.get(key) if isinstance(inspected, dict) else None
        if isinstance(inspected, int) and inspected > 0:
            return inspected
    return None


@contextlib.contextmanager
def locked(namespace: Namespace) -> Iterator[None]:
    """Keep others from attaching to or detaching from a namespace meanwhile. Raises HostError if they do not end."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(namespace.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HostError("another attach or detach of this container does not end") from None
            time.sleep(_LOCK_POLL)
    try:
        yield
    finally:
        fcntl.flock(namespace.descriptor, fcntl.LOCK_UN)


def inside(place: str | int, work: Callable[[], T]) -> T:
    """Run `work` in a thread of the namespace at a path or descriptor; what it returns or raises. Raises HostError.

    The namespace is of any kind that a thread may enter: network, or UTS (host name).
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _enter(place)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(place: str | int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC) if isinstance(place, str) else os.dup(place)
    except OSError as error:
        raise HostError(f"unable to open network namespace {place}: {error.strerror}") from error
    try:
        if libc.setns(descriptor, 0) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(f"unable to enter namespace {place}: {reason}")
    finally:
        os.close(descriptor)
