"""Network namespaces: finding the one that is meant, and doing something in it.

A thread enters, never the process: the rest of the program stays where it is. Source: setns(2), namespaces(7).
"""

import ctypes
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from host.errors import HostError

_CLONE_NEWNET = 0x40000000
_TIMEOUT = 10
_RUN_NETNS = Path("/run/netns")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """A container's network namespace. `identity` names its interface on the host."""

    path: str
    identity: str


def find(target: str) -> Target:
    """A pid, a namespace's name or path, or a container id where a runtime is present. Raises HostError."""
    if target.isdecimal():
        found = Target(f"/proc/{target}/ns/net", target)
    elif target.startswith("/"):
        found = Target(target, Path(target).name)
    elif (_RUN_NETNS / target).exists():
        found = Target(str(_RUN_NETNS / target), target)
    else:
        pid = _container_pid(target)
        if pid is None:
            raise HostError(
                f"no container, namespace or process {target!r}: give a pid, a name from 'ip netns', a path, "
                "or the id of a running container"
            )
        found = Target(f"/proc/{pid}/ns/net", str(pid))
    _check(found, target)
    return found


def _check(found: Target, target: str) -> None:
    try:
        theirs = os.stat(found.path)
    except OSError as error:
        raise HostError(f"unable to open the network namespace of {target!r}: {error.strerror}") from error
    for host in ("/proc/1/ns/net", "/proc/self/ns/net"):
        try:
            ours = os.stat(host)
        except OSError:
            continue
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            raise HostError(f"{target!r} runs in the host's own network namespace; attaching to it is refused")


def _container_pid(container: str) -> int | None:
    """Ask whichever runtime is here."""
    for command, keys in (
        (["docker", "inspect", container], ("State", "Pid")),
        (["podman", "inspect", container], ("State", "Pid")),
        (["crictl", "inspect", container], ("info", "pid")),
    ):
        if shutil.which(command[0]) is None:
            continue
        try:
            answer = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=True)
            document = json.loads(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
        inspected = document[0] if isinstance(document, list) and document else document
        for key in keys:
            inspected = inspected.get(key) if isinstance(inspected, dict) else None
        if isinstance(inspected, int) and inspected > 0:
            return inspected
    return None


def inside(path: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread of the namespace at `path`; what it returns or raises. Raises HostError."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _enter(path)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"unable to open network namespace {path}: {error.strerror}") from error
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(f"unable to enter network namespace {path}: {reason}")
    finally:
        os.close(descriptor)
