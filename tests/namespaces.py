"""Network namespaces of a test's own, with names nobody else uses, gone afterwards."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import TypeVar

from host.netns import inside

_numbers = itertools.count(1)
T = TypeVar("T")


def run(*command: str, check: bool = True) -> str:
    """A command's output, bounded in time."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """A fresh network namespace with its loopback up; yields its name."""
    name = f"wp{os.getpid()}-{next(_numbers)}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name, check=False)


def within(name: str, work: Callable[[], T]) -> T:
    """Call something inside a namespace."""
    return inside(f"/run/netns/{name}", work)
