"""The entry point `weave`: talks to the router's control API, starts and stops it, attaches containers.

Names, texts and exit codes are those that scripts know. Source: CLI spec §1, §2.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from weave_py import __version__

_START_LIMIT = 30.0
_STOP_LIMIT = 15.0
_POLL = 0.1
_REMOVED = (
    "run",
    "start",
    "restart",
    "launch-plugin",
    "stop-plugin",
    "launch-proxy",
    "stop-proxy",
    "launch-router",
    "stop-router",
)
_PARTS = ("targets", "connections", "peers", "dns", "ipam")
USAGE = """Usage:

weave --help | help
      version
      launch      [--password-file <file>] [--<router flag>=<value> ...] [<peer> ...]
      stop
      connect     [--replace] <peer> ...
      forget      <peer> ...
      attach      [--no-multicast-route] <addr> ... <target>
      detach      [<addr> ...] <target>
      status      [targets | connections | peers] [--json] [--watch]
      report      [-f <format>]

where <peer>    = <host>[:<port>]
      <addr>    = [ip:]A.B.C.D/n
      <target>  = a pid, a network namespace's name or path, or a container's id
"""


class CliError(Exception):
    """One line for a person, and an exit code."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class UsageError(Exception):
    """The command line makes no sense: the text, if any, then the usage."""


# --- the control API ---


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _address() -> str:
    return os.environ.get("WEAVE_HTTP_ADDR", "127.0.0.1:6784")


def call(
    method: str, path: str, form: Sequence[tuple[str, str]] = (), *, accept: str = "*/*", timeout: float = 30.0
) -> str:
    """One request to the router. Raises CliError: the router's own words, or that there is none."""
    address = _address()
    connection: http.client.HTTPConnection
    if address.startswith("/"):
        connection = _UnixConnection(address, timeout)
    else:
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]") or "127.0.0.1", int(port), timeout=timeout)
    headers = {"Accept": accept}
    body = urllib.parse.urlencode(form) if form else None
    if body is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise CliError("weave container is not present. Have you launched it?") from error
    except (OSError, http.client.HTTPException) as error:
        raise CliError(f"the router at {address} does not answer: {error}") from error
    finally:
        connection.close()
    if response.status == 404:
        raise CliError("", 4)
    if response.status >= 300:
        raise CliError(text.rstrip("\n"))
    return text


def _running() -> bool:
    try:
        call("GET", "/status", timeout=2.0)
    except CliError:
        return False
    return True


# --- commands ---


def _help(arguments: list[str]) -> int:
    print(USAGE)
    return 0


def _version(arguments: list[str]) -> int:
    _no_arguments(arguments)
    try:
        print("weave", call("GET", "/report?" + urllib.parse.urlencode({"format": "{{.Version}}"}), timeout=2.0))
    except CliError:
        print("weave", __version__)
    return 0


def _status(arguments: list[str]) -> int:
    as_json, watch = "--json" in arguments, "--watch" in arguments
    words = [word for word in arguments if word not in ("--json", "--watch")]
    part = words[0] if words else ""
    if len(words) > 1 or (part and part not in _PARTS):
        raise UsageError(f"Invalid 'weave status' sub-command: {' '.join(words)}")
    path = f"/status/{part}" if part else "/status"
    if watch:
        return _watch(path)
    if as_json:
        print(call("GET", path, accept="application/json"))
        return 0
    text = call("GET", path)
    sys.stdout.write(text if part else f"\n{text}\n")
    return 0


def _watch(path: str) -> int:
    """The status, again every second, until interrupted."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    colours = {"established": "green", "pending": "yellow", "failed": "red", "retrying": "red", "connecting": "yellow"}

    def picture() -> Text:
        text = Text(call("GET", path))
        for word, colour in colours.items():
            text.highlight_regex(rf"\b{word}\b", colour)
        return text

    try:
        with Live(picture(), console=Console(), refresh_per_second=4) as live:
            while True:
                time.sleep(1.0)
                live.update(picture())
    except KeyboardInterrupt:
        return 0


def _report(arguments: list[str]) -> int:
    if not arguments:
        print(call("GET", "/report", accept="application/json"))
        return 0
    if len(arguments) != 2 or arguments[0] not in ("-f", "--format"):
        raise UsageError("")
    sys.stdout.write(call("GET", "/report?" + urllib.parse.urlencode({"format": arguments[1]})))
    return 0


def _connect(arguments: list[str]) -> int:
    replace = "--replace" in arguments
    peers = [word for word in arguments if word != "--replace"]
    if not peers:
        raise UsageError("")
    form = [("peer", peer) for peer in peers]
    call("POST", "/connect", [("replace", "true"), *form] if replace else form)
    return 0


def _forget(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError("")
    call("POST", "/forget", [("peer", peer) for peer in arguments])
    return 0


def _addresses(words: Sequence[str]) -> list[Any]:
    addresses = []
    for word in words:
        if word.startswith("net:"):
            raise CliError(f"{word}: addresses are not allocated in this version; give one, as in 10.32.0.5/12")
        text = word.removeprefix("ip:")
        try:
            if "/" not in text:
                raise ValueError
            addresses.append(ip_interface(text))
        except ValueError:
            raise CliError(f"invalid address {word!r}: give an address and its prefix, as in 10.32.0.5/12") from None
    return addresses


def _attach(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--no-multicast-route"]
    if len(words) < 2:
        raise UsageError("")
    from host.attach import attach

    addresses = _addresses(words[:-1])
    _host(lambda: attach(words[-1], addresses, multicast_route=len(words) == len(arguments)))
    print(" ".join(str(address.ip) for address in addresses))
    return 0


def _detach(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError("")
    from host.attach import detach

    addresses = _addresses(arguments[:-1])
    taken = _host(lambda: detach(arguments[-1], addresses or None))
    print(" ".join(str(ip_interface(text).ip) for text in taken))
    return 0


def _host(work: Callable[[], Any]) -> Any:
    from host.errors import HostError

    if os.geteuid() != 0:
        raise CliError("this command changes network interfaces: run it as root")
    try:
        return work()
    except HostError as error:
        raise CliError(str(error)) from error


def _reset(arguments: list[str]) -> int:
    if arguments not in ([], ["--force"]):
        raise UsageError("")
    if _running():
        _stop([])
    elif not arguments:
        raise CliError(
            "ERROR: weave is not running; unable to remove from cluster.\n"
            "Re-launch weave before reset or use --force to override."
        )
    from host.reset import reset

    _host(lambda: reset("weave"))
    return 0


# --- starting and stopping ---


def _run_dir() -> Path:
    return Path(os.environ.get("WEAVE_RUN_DIR", "/run/weave"))


def _launch(arguments: list[str]) -> int:
    if _running():
        raise CliError("weave is already running; you can stop it with 'weave stop'.", 3)
    environment = dict(os.environ)
    passed = _take_password(arguments, environment)
    address = _address()
    defaults = ["--http-addr", address, "--status-addr", os.environ.get("WEAVE_STATUS_ADDR", "127.0.0.1:6782")]
    for variable, flag in (("WEAVE_PORT", "--port"), ("WEAVE_MTU", "--mtu")):
        if os.environ.get(variable):
            defaults += [flag, os.environ[variable]]
    if os.environ.get("WEAVE_NO_FASTDP"):
        defaults.append("--no-fastdp")
    run_dir = _run_dir()
    run_dir.mkdir(parents=True, exist_ok=True)
    log_path = run_dir / "weaver.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "weave_py.weaver", *defaults, *passed],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
            cwd="/",
        )
    (run_dir / "weaver.pid").write_text(f"{process.pid}\n")
    _await_start(process, log_path)
    print(process.pid)
    return 0


def _take_password(arguments: list[str], environment: dict[str, str]) -> list[str]:
    """The password goes to the router by its environment, where `ps` does not show it."""
    passed: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--password" and words:
            environment["WEAVE_PASSWORD"] = words.pop(0)
        elif word.startswith("--password="):
            environment["WEAVE_PASSWORD"] = word.partition("=")[2]
        elif word == "--iprange" or word.startswith("--iprange="):
            passed.append(word.replace("--iprange", "--ipalloc-range", 1))
        elif word != "--no-restart":
            passed.append(word)
    return passed


def _await_start(process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < _START_LIMIT:
        if _running():
            return
        if process.poll() is not None:
            last = log_path.read_text(errors="replace").splitlines()[-1:] or ["no log"]
            raise CliError(f"the router ended at once: {last[0]} (all of it in {log_path})")
        time.sleep(_POLL)
    raise CliError(f"the router did not answer within {_START_LIMIT:.0f} s; its log is {log_path}")


def _stop(arguments: list[str]) -> int:
    _no_arguments(arguments)
    pid = _router_pid()
    if pid is None:
        print("Weave is not running (ignore on Kubernetes).", file=sys.stderr)
        return 0
    os.kill(pid, signal.SIGTERM)
    begun = time.monotonic()
    while time.monotonic() - begun < _STOP_LIMIT:
        if not _alive(pid):
            (_run_dir() / "weaver.pid").unlink(missing_ok=True)
            return 0
        time.sleep(_POLL)
    raise CliError(f"the router (pid {pid}) did not stop within {_STOP_LIMIT:.0f} s")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _router_pid() -> int | None:
    """The router that `launch` started, if it still is one."""
    try:
        pid = int((_run_dir() / "weaver.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"weaver" in command and _alive(pid) else None


def _no_arguments(arguments: list[str]) -> None:
    if arguments:
        raise UsageError("")


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "help": _help,
    "--help": _help,
    "version": _version,
    "launch": _launch,
    "stop": _stop,
    "reset": _reset,
    "connect": _connect,
    "forget": _forget,
    "attach": _attach,
    "detach": _detach,
    "status": _status,
    "report": _report,
}


def run(arguments: list[str]) -> int:
    """One command; returns the exit code."""
    words = [word for word in arguments[:1] if word != "--local"] + arguments[1:]
    command, rest = (words[0], words[1:]) if words else ("", [])
    if "--help" in rest:
        return _help(rest)
    if command in _REMOVED:
        print(f"The 'weave {command}' command has been removed as of Weave Net version 2.0", file=sys.stderr)
        print("Please see release notes for further information", file=sys.stderr)
        return 1
    handler = _COMMANDS.get(command)
    try:
        if handler is None:
            raise UsageError(f"Unknown command {command!r}" if command else "")
        return handler(rest)
    except UsageError as error:
        text = f"{error}\n" if str(error) else ""
        print(f"{text}{USAGE}", file=sys.stderr)
        return 1
    except CliError as error:
        if str(error):
            print(error, file=sys.stderr)
        return error.code


def main() -> None:
    """The command line."""
    try:
        sys.exit(run(sys.argv[1:]))
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
