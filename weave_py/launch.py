"""`weave launch` and `weave stop`: a router in the background, its pid and its log in files.

The process belongs to no terminal and outlives the command. Source: CLI spec §2.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Interface, NetmaskValueError
from pathlib import Path

from weave_py.client import CliError, api_path, call, control_address, running
from weave_py.secret import hide_argument
from weave_py.words import take_value

_START_LIMIT = 30.0
_STOP_LIMIT = 15.0
_POLL = 0.1
_BRIDGE, _DOCKER_BRIDGE = "weave", "docker0"
# Whom the host asks for names, containers ask through the router.
_RESOLV_CONF = "/etc/resolv.conf"
_DEFAULT_RANGE = "10.32.0.0/12"
_PORT = 6783
SOCKET = "weaver.sock"
_SYSTEMD = Path("/run/systemd/system")
_UNIT = "weave.service"


def run_dir() -> Path:
    """Where the pid and the socket of the router are."""
    return Path(os.environ.get("WEAVE_RUN_DIR", "/run/weave"))


def _log_dir() -> Path:
    return Path(os.environ.get("WEAVE_LOG_DIR", "/var/log/weave"))


def launch(arguments: Sequence[str]) -> int:
    """Start a router with these flags and peers, and wait for its first answer. Raises CliError."""
    environment = dict(os.environ)
    passed = take_password(arguments, environment)
    if "WEAVE_PASSWORD" in environment and environment["WEAVE_PASSWORD"] != os.environ.get("WEAVE_PASSWORD"):
        hide_argument(environment["WEAVE_PASSWORD"])
    log_path = Path(take_value(passed, "--log-file") or _log_dir() / "weaver.log")
    address = take_value(passed, "--http-addr") or control_address()
    if running(address) or _router_pid() is not None:
        raise CliError("weave is already running; you can stop it with 'weave stop'.", 3)
    _forget_last_run(list(passed))
    directory = run_dir()
    defaults = ["--http-addr", address, "--socket", str(directory / SOCKET), *_defaults(passed)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
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
        (directory / "weaver.pid").write_text(f"{process.pid}\n")
    except OSError as error:
        raise CliError(f"unable to write {error.filename}: {error.strerror}") from error
    _await_start(process, address, log_path, begun)
    print(process.pid)
    return 0


def _forget_last_run(words: list[str]) -> None:
    """A launch is a fresh start, whatever became of the run before it: its peers are the ones given."""
    from weave_py.store import Store, StoreError, default_prefix

    prefix = take_value(words, "--db-prefix") or default_prefix()
    if os.path.exists(f"{prefix}data.sqlite"):
        try:
            store = Store(prefix)
            store.set_running(False)
            store.close()
        except StoreError as error:
            raise CliError(str(error)) from error


def _defaults(passed: Sequence[str]) -> list[str]:
    """What the router is told besides what the user says, who comes last and wins. Raises CliError."""
    words = ["--status-addr", os.environ.get("WEAVE_STATUS_ADDR", "127.0.0.1:6782"), "--resolv-conf", _RESOLV_CONF]
    for variable, flag in (("WEAVE_PORT", "--port"), ("WEAVE_MTU", "--mtu")):
        if os.environ.get(variable):
            words += [flag, os.environ[variable]]
    for variable, flag in (("WEAVE_NO_FASTDP", "--no-fastdp"), ("WEAVE_NO_BRIDGED_FASTDP", "--no-bridged-fastdp")):
        if os.environ.get(variable):
            words.append(flag)
    given = list(passed)
    bridge = take_value(given, "--weave-bridge") or _BRIDGE
    return [*words, *_docker(given), *_range(given, bridge)]


def _docker(given: list[str]) -> list[str]:
    """Docker's bridge, where there is one: its containers ask for names there."""
    from host.expose import on_bridge

    name = os.environ.get("DOCKER_BRIDGE") or _DOCKER_BRIDGE
    addresses = on_bridge(name)
    if not addresses or take_value(given, "--docker-bridge"):
        return []
    return ["--docker-bridge", name, "--dns-listen-address", f"{addresses[0].ip}:53"]


def _range(given: list[str], bridge: str) -> list[str]:
    """The range to allocate from, if the user named none. Raises CliError where this host uses it otherwise."""
    from host.routes import overlap

    named = any(word.partition("=")[0] == "--ipalloc-range" for word in given)
    wanted, subnet = take_value(given, "--ipalloc-range"), take_value(given, "--ipalloc-default-subnet")
    problem = overlap(IPv4Interface(_DEFAULT_RANGE), bridge)
    if not named:
        if problem:
            raise CliError(f"ERROR: Default --ipalloc-range {_DEFAULT_RANGE} overlaps with existing route on host.")
        return ["--ipalloc-range", _DEFAULT_RANGE]
    for text in (wanted, subnet):
        # What is no network the router itself refuses.
        with contextlib.suppress(AddressValueError, NetmaskValueError):
            problem = overlap(IPv4Interface(text), bridge) if "/" in text else None
            if problem:
                print(f"WARNING: {problem}", file=sys.stderr)
    return []


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
                (run_dir() / "weaver.pid").unlink(missing_ok=True)
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


def check_stoppable() -> None:
    """Raises CliError where a router runs that `stop` would not end."""
    if _router_pid() is None and not _unit_runs() and running():
        raise CliError(
            f"a router answers at {control_address()}, but 'weave launch' did not start it: "
            "stop it where it was started"
        )


def stop() -> int:
    """End the router that `launch`, or the system's service, started. Raises CliError."""
    from host.conntrack import forget_udp

    pid = _router_pid()
    if pid is None and _unit_runs():
        _systemctl("stop", _UNIT)
    elif pid is None:
        check_stoppable()
        print("Weave is not running (ignore on Kubernetes).", file=sys.stderr)
        return 0
    else:
        _end(pid)
    forget_udp(int(os.environ.get("WEAVE_PORT") or _PORT))
    return 0


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise CliError("this command stops a process of root: run it as root") from error
    except ProcessLookupError:
        return
    begun = time.monotonic()
    try:
        while (waited := time.monotonic() - begun) < _STOP_LIMIT:
            if not _alive(pid):
                (run_dir() / "weaver.pid").unlink(missing_ok=True)
                return
            _progress(f"waiting for the router (pid {pid}) to end … {waited:.1f} s")
            time.sleep(_POLL)
    finally:
        _progress("")
    raise CliError(f"the router (pid {pid}) did not stop within {_STOP_LIMIT:.0f} s")


def state_prefix() -> str:
    """Where the router that runs keeps its state; without one, where it would."""
    from weave_py.store import default_prefix

    try:
        path = call("GET", api_path("report", format="{{.State.Path}}"), timeout=2.0)
    except CliError:
        return default_prefix()
    return path.removesuffix("data.sqlite")


def _unit_runs() -> bool:
    """Whether the system's service runs."""
    return _SYSTEMD.is_dir() and _systemctl("is-active", "--quiet", _UNIT, check=False)


def _systemctl(*words: str, check: bool = True) -> bool:
    """Whether it succeeded. Raises CliError with what it says, if asked to."""
    try:
        done = subprocess.run(("systemctl", *words), capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise CliError(f"unable to run systemctl: {error}") from error
    if check and done.returncode:
        raise CliError(f"systemctl {' '.join(words)}: {done.stderr.strip()}")
    return done.returncode == 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _router_pid() -> int | None:
    """The router that `launch` started, if it still is one."""
    try:
        pid = int((run_dir() / "weaver.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"weave_py.weaver" in command.split(b"\0") and _alive(pid) else None
