"""The entry point `weave`: talks to the router's control API, starts and stops it, attaches containers.

Names, texts and exit codes are those that scripts know. Source: CLI spec §1, §2.
"""

import os
import signal
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from ipaddress import ip_interface
from typing import Any

from weave_py import __version__, launch
from weave_py.client import CliError, UsageError, call, running

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
_NOT_YET = (
    "setup",
    "setup-cni",
    "prime",
    "dns-args",
    "expose",
    "hide",
    "dns-add",
    "dns-remove",
    "dns-lookup",
    "ps",
    "rmpeer",
    "attach-bridge",
    "bridge-type",
    "docker-bridge-ip",
)
_PROXY = ("env", "config")
_PARTS = ("targets", "connections", "peers", "dns", "ipam")
USAGE = """Usage:

weave --help | help
      version
      launch      [--password-file <file>] [--log-file <file>] [--<router flag>=<value> ...] [<peer> ...]
      stop
      reset       [--force]
      hand-back   [--db-prefix <prefix>] [--schema <n>]
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
    from weave_py import watch

    return watch.run(path, lambda: call("GET", path), sys.stdout)


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
    words, multicast_route = [], True
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--no-multicast-route":
            multicast_route = False
        elif word in ("--rewrite-hosts", "--add-host"):
            if word == "--add-host" and rest:
                rest.pop(0)
            print(f"{word} is not available in this version, going on without", file=sys.stderr)
        elif word != "--without-dns" and not word.startswith("--add-host="):
            words.append(word)
    if not words:
        raise UsageError("")
    addresses = _addresses(words[:-1])
    if not addresses:
        raise CliError("addresses are not allocated in this version; give one, as in 10.32.0.5/12")
    from host.attach import attach

    _host(lambda: attach(words[-1], addresses, multicast_route=multicast_route))
    print(" ".join(str(address.ip) for address in addresses))
    return 0


def _detach(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError("")
    addresses = _addresses(arguments[:-1])
    from host.attach import detach

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
    if running():
        _stop([])
    elif not arguments:
        raise CliError(
            "ERROR: weave is not running; unable to remove from cluster.\n"
            "Re-launch weave before reset or use --force to override."
        )
    from host.reset import reset

    _host(lambda: reset("weave"))
    return 0


def _hand_back(arguments: list[str]) -> int:
    from weave_py.cli_hand_back import hand_back

    return hand_back(arguments)


def _stop(arguments: list[str]) -> int:
    _no_arguments(arguments)
    return launch.stop()


def _no_arguments(arguments: list[str]) -> None:
    if arguments:
        raise UsageError("")


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "help": _help,
    "--help": _help,
    "version": _version,
    "launch": launch.launch,
    "stop": _stop,
    "reset": _reset,
    "hand-back": _hand_back,
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
    for names, reason in ((_NOT_YET, "is not available in this version"), (_PROXY, "went with the Docker API proxy")):
        if command in names:
            print(f"'weave {command}' {reason}", file=sys.stderr)
            return 1
    handler = _COMMANDS.get(command)
    try:
        if handler is None:
            raise UsageError(f"Unknown weave command '{command}'" if command else "")
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
        code = run(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        # Whoever read has enough; the interpreter must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
