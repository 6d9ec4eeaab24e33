"""Releases that wait: a directory of requests, one file for each interface of a container.

The courier writes one when no router answers; the router itself writes one before it says that a pod is gone, so that a
router that is killed then goes on where it was. A file has its name only once it is whole.
"""

import contextlib
import os
from pathlib import Path

from cni.wire import MAX_REQUEST, Request, WireError, decode_request, encode_request, spool_name

# Beside the state of the router.
DIRECTORY = "cni"
_NAME = 16
_DIGITS = frozenset("0123456789abcdef")


class Spool:
    """The directory; it is made when something is to be kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, request: Request) -> str:
        """Keep a release until it is removed; its name. Raises OSError."""
        name = name_of(request)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        temporary = self._directory / f".{os.getpid()}-{name}"
        try:
            temporary.write_bytes(encode_request(request))
            temporary.rename(self._directory / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return name

    def waiting(self) -> list[str]:
        """The names of what waits. Raises OSError."""
        try:
            found = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in found if len(name) == _NAME and _DIGITS.issuperset(name))

    def has(self, name: str) -> bool:
        """Whether this one waits."""
        return (self._directory / name).exists()

    def read(self, name: str) -> Request:
        """A release that waits. Raises OSError, and WireError where the file is none."""
        with (self._directory / name).open("rb") as file:
            data = file.read(MAX_REQUEST + 1)
        request = decode_request(data)
        if name_of(request) != name:
            raise WireError("it is not the release that its name says")
        return request

    def remove(self, name: str) -> None:
        """It is done, or never can be. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._directory / name)

    def clear(self) -> None:
        """Forget all of it, and the directory if nothing else is there."""
        with contextlib.suppress(OSError):
            for name in self.waiting():
                self.remove(name)
            self._directory.rmdir()


def name_of(request: Request) -> str:
    """The name of the file for a request."""
    return spool_name(request.role, request.variable("CONTAINERID"), request.variable("IFNAME"))
