"""`weave launch` and `weave stop`: a router in the background, its pid and its log in files.

The process belongs to no terminal and outlives the command. Source: CLI spec §2.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from weave_py.client import CliError, control_address, running

_START_LIMIT = 30.0
_STOP_LIMIT = 15.0
_POLL = 0.1


def _run_dir() -> Path:
    return Path(os.environ.get("WEAVE_RUN_DIR", "/run/weave"))


def _log_dir() -> Path:
    return Path(os.environ.get("WEAVE_LOG_DIR", "/var/log/weave"))


def launch(arguments: Sequence[str]) -> int:
    """Start a router with these flags and peers, and wait for its first answer. Raises CliError."""
    environment = dict(os.environ)
    passed = take_password(arguments, environment)
    log_path = Path(take_value(passed, "--log-file") or _log_dir() / "weaver.log")
    address = take_value(passed, "--http-addr") or control_address()
    if running(address) or _router_pid() is not None:
        raise CliError("weave is already running; you can stop it with 'weave stop'.", 3)
    run_dir = _run_dir()
    defaults = [
        *("--http-addr", address, "--socket", str(run_dir / "weaver.sock")),
        *("--status-addr", os.environ.get("WEAVE_STATUS_ADDR", "127.0.0.1:6782")),
    ]
    for variable, flag in (("WEAVE_PORT", "--port"), ("WEAVE_MTU", "--mtu")):
        if os.environ.get(variable):
            defaults += [flag, os.environ[variable]]
    for variable, flag in (("WEAVE_NO_FASTDP", "--no-fastdp"), ("WEAVE_NO_BRIDGED_FASTDP", "--no-bridged-fastdp")):
        if os.environ.get(variable):
            defaults.append(flag)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            begun = log.tell()
            process = subprocess.Popen(
                # -P: the router runs as root; what lies in the current directory is none of its modules.
                [sys.executable, "-P", "-m", "weave_py.weaver", *defaults, *passed],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
                cwd="/",
            )
        (run_dir / "weaver.pid").write_text(f"{process.pid}\n")
    except OSError as error:
        raise CliError(f"unable to write {error.filename}: {error.strerror}") from error
    _await_start(process, address, log_path, begun)
    print(process.pid)
    return 0


def take_value(words: list[str], flag: str) -> str:
    """Take every `flag value` and `flag=value` out of the words; the last value, or nothing."""
    value, kept, rest = "", [], list(words)
    while rest:
        word = rest.pop(0)
        if word == flag and rest:
            value = rest.pop(0)
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        else:
            kept.append(word)
    words[:] = kept
    return value


def take_password(arguments: Sequence[str], environment: dict[str, str]) -> list[str]:
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


def _await_start(process: "subprocess.Popen[bytes]", address: str, log_path: Path, log_start: int) -> None:
    begun = time.monotonic()
    try:
        while (waited := time.monotonic() - begun) < _START_LIMIT:
            if running(address):
                return
            if process.poll() is not None:
                (_run_dir() / "weaver.pid").unlink(missing_ok=True)
                lines = log_path.read_bytes()[log_start:].decode(errors="replace").splitlines()
                last = lines[-1] if lines else "it said nothing"
                raise CliError(f"the router ended at once: {last} (all of it in {log_path})")
            _progress(f"waiting for the router (pid {process.pid}) … {waited:.1f} s")
            time.sleep(_POLL)
    finally:
        _progress("")
    raise CliError(f"the router did not answer within {_START_LIMIT:.0f} s; its log is {log_path}")


def _progress(text: str) -> None:
    """What is being waited for, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def stop() -> int:
    """End the router that `launch` started. Raises CliError."""
    pid = _router_pid()
    if pid is None:
        if running():
            raise CliError(
                f"a router answers at {control_address()}, but 'weave launch' did not start it: "
                "stop it where it was started, as with 'systemctl stop weave'"
            )
        print("Weave is not running (ignore on Kubernetes).", file=sys.stderr)
        return 0
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise CliError("this command stops a process of root: run it as root") from error
    except ProcessLookupError:
        return 0
    begun = time.monotonic()
    try:
        while (waited := time.monotonic() - begun) < _STOP_LIMIT:
            if not _alive(pid):
                (_run_dir() / "weaver.pid").unlink(missing_ok=True)
                return 0
            _progress(f"waiting for the router (pid {pid}) to end … {waited:.1f} s")
            time.sleep(_POLL)
    finally:
        _progress("")
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
    return pid if b"weave_py.weaver" in command.split(b"\0") and _alive(pid) else None
