"""Requests to the router's control API, over TCP on loopback or a unix socket; and the errors of the command line.

The standard library's client: a command is over before a bigger one is imported. Source: CLI spec §1, §5.
"""

import http.client
import os
import socket
import urllib.parse
from collections.abc import Sequence

NOT_SERVED = 4


class CliError(Exception):
    """One line for a person, and an exit code."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class AbsentError(CliError):
    """No router answers here."""


class NotServedError(CliError):
    """The router has no such path: the part that would serve it is off."""


class UsageError(Exception):
    """The command line makes no sense: the text, if any, then the usage."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def control_address() -> str:
    """`host:port` of the control API, or the path of its socket."""
    return os.environ.get("WEAVE_HTTP_ADDR") or "127.0.0.1:6784"


def api_path(*parts: str, **query: str) -> str:
    """A path of the API; what stands in it is quoted, all but the colon of idents and the slash of CIDRs."""
    joined = "/" + "/".join(urllib.parse.quote(part, safe=":/") for part in parts)
    return f"{joined}?{urllib.parse.urlencode(query)}" if query else joined


def _open(address: str, timeout: float | None) -> http.client.HTTPConnection:
    if address.startswith("/"):
        return _UnixConnection(address, timeout)
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise CliError(f"WEAVE_HTTP_ADDR {address!r} is neither host:port nor the path of a socket")
    return http.client.HTTPConnection(host.strip("[]") or "127.0.0.1", int(port), timeout=timeout)


def call(
    method: str,
    path: str,
    form: Sequence[tuple[str, str]] = (),
    *,
    accept: str = "*/*",
    timeout: float | None = 30.0,
    address: str = "",
) -> str:
    """One request to the router. Raises CliError: the router's own words, or AbsentError where none runs.

    `timeout` in seconds; without one it waits as long as the router does.
    """
    address = address or control_address()
    connection = _open(address, timeout)
    headers = {"Accept": accept}
    body = urllib.parse.urlencode(form) if form else None
    if body is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise AbsentError("weave container is not present. Have you launched it?") from error
    except (OSError, http.client.HTTPException) as error:
        raise CliError(f"the router at {address} does not answer: {error}") from error
    finally:
        connection.close()
    if response.status == 404:
        raise NotServedError("", NOT_SERVED)
    if response.status >= 300:
        raise CliError(text.rstrip("\n") or f"the router answers {response.status} {response.reason}")
    return text


def running(address: str = "") -> bool:
    """Whether a router answers there."""
    try:
        call("GET", "/status", timeout=2.0, address=address)
    except CliError:
        return False
    return True
