"""The entry point `weave`: talks to the router's control API, starts and stops it, attaches containers.

Names, texts and exit codes are those that scripts know. Source: CLI spec §1, §2.
"""

import json
import os
import signal
import sys
import urllib.parse
from collections.abc import Callable

from weave_py import __version__, cli_addresses, cli_host, cli_names, launch
from weave_py.client import CliError, NotServedError, UsageError, api_path, call
from weave_py.words import refuse_options, say, take_flag

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
_NO_RANGE = "addresses are not allocated: the router was started without --ipalloc-range"
_PROXY = ("env", "config")
_PARTS = ("targets", "connections", "peers", "dns", "ipam", "fastdp", "agree")
USAGE = """Usage:

weave --help | help
      setup
      setup-cni
      version
      launch      [--password-file <file>] [--log-file <file>] [--<router flag>=<value> ...] [<peer> ...]
      stop        [--hand-back [--db-prefix <prefix>]]
      reset       [--force] [--db-prefix <prefix>]
      hand-back   [--db-prefix <prefix>] [--schema <n>]
      prime
      rejoin
      connect     [--replace] <peer> ...
      forget      <peer> ...
      rmpeer      [--strict] [--force] <peer_id> ...

      attach      [--without-dns] [--rewrite-hosts] [--add-host <name>:<ip>] [--no-multicast-route]
                  [<addr> ...] <target>
      detach      [<addr> ...] <target>
      expose      [<addr> ...] [-h <fqdn>] [--without-masquerade]
      hide        [<addr> ...]
      ps          [<target> ...]
      attach-bridge [<bridge>]
      bridge-type
      docker-bridge-ip

      dns-add     [<ip> ...] <target> [-h <fqdn>] | <ip> ... -h <fqdn>
      dns-remove  [<ip> ...] <target> [-h <fqdn>] | <ip> ... -h <fqdn>
      dns-lookup  <name>
      dns-args

      status      [targets | connections | peers | dns | ipam | fastdp | agree] [--json] [--watch]
      doctor      [--db-prefix <prefix>] [--port <n>] [--json]
      report      [-f <format>]

      npc         status | list pods | list policies | drops [-f] | check | clear
      npc         explain [--why-not] <from> <to> <port>[/<protocol>]

where <peer>    = <host>[:<port>]
      <peer_id> = nickname or name of a peer
      <addr>    = [ip:]A.B.C.D/n | net:A.B.C.D/n | net:default
      <from>, <to> = <namespace>/<pod>, an address, or node:<name>
      <target>  = a pid, a network namespace's name or path, or a container's id
--json answers programs: with status, rmpeer, attach, detach, expose, hide, ps, bridge-type, dns-lookup
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
    if as_json or part == "agree":
        document = call("GET", path, accept="application/json")
        if part == "agree":
            return _agree(document, as_json)
        print(document)
        return 0
    text = call("GET", path)
    sys.stdout.write(text if part else f"\n{text}\n")
    return 0


def _agree(document: str, as_json: bool) -> int:
    """Whether all peers hold the same; 1 if some differ, and not only for a moment."""
    from weave_py import agreement

    found = json.loads(document)
    sys.stdout.write(f"{document}\n" if as_json else agreement.text(found))
    return 0 if found["Agreed"] else 1


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


def _prime(arguments: list[str]) -> int:
    _no_arguments(arguments)
    try:
        call("GET", "/ring", timeout=None)
    except NotServedError as error:
        raise CliError(_NO_RANGE) from error
    return 0


def _rejoin(arguments: list[str]) -> int:
    """Discard the ring of this host, which nobody uses, for that of others."""
    _no_arguments(arguments)
    try:
        call("DELETE", "/ring")
    except NotServedError as error:
        raise CliError(_NO_RANGE) from error
    return 0


def _rmpeer(arguments: list[str]) -> int:
    """Each peer's space is taken over, whatever became of the others before it."""
    words = list(arguments)
    as_json, strict, force = (take_flag(words, flag) for flag in ("--json", "--strict", "--force"))
    query = {"force": "true"} if force else {}
    refuse_options(words)
    if not words:
        raise UsageError("")
    code, taken = 0, {}
    for peer in words:
        try:
            answer = call("DELETE", api_path("peer", peer, **query))
        except CliError as error:
            print(error, file=sys.stderr)
            code = 1
            continue
        count = answer.partition(" ")[0]
        taken[peer] = int(count) if count.isdecimal() else 0
        if not as_json:
            sys.stdout.write(answer)
        if strict and not taken[peer]:
            code = 1
    if as_json:
        say("", taken, as_json)
    return code


def _doctor(arguments: list[str]) -> int:
    from weave_py.cli_doctor import run as examine

    return examine(arguments)


def _npc(arguments: list[str]) -> int:
    from weave_py.cli_npc import npc

    return npc(arguments)


def _setup_cni(arguments: list[str]) -> int:
    from weave_py.cli_cni import setup_cni

    return setup_cni(arguments)


def _hand_back(arguments: list[str]) -> int:
    from weave_py.cli_hand_back import hand_back

    return hand_back(arguments)


def _stop(arguments: list[str]) -> int:
    words = list(arguments)
    if take_flag(words, "--hand-back"):
        from weave_py.cli_hand_back import stop_and_hand_back

        return stop_and_hand_back(words)
    _no_arguments(words)
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
    "reset": cli_host.reset,
    "hand-back": _hand_back,
    "doctor": _doctor,
    "setup": cli_host.setup,
    "setup-cni": _setup_cni,
    "prime": _prime,
    "rejoin": _rejoin,
    "connect": _connect,
    "forget": _forget,
    "rmpeer": _rmpeer,
    "attach": cli_addresses.attach,
    "detach": cli_addresses.detach,
    "expose": cli_addresses.expose,
    "hide": cli_addresses.hide,
    "ps": cli_addresses.ps,
    "attach-bridge": cli_host.attach_bridge,
    "bridge-type": cli_host.bridge_type,
    "docker-bridge-ip": cli_host.docker_bridge_ip,
    "dns-add": cli_names.add,
    "dns-remove": cli_names.remove,
    "dns-lookup": cli_names.look_up,
    "dns-args": cli_names.args,
    "status": _status,
    "npc": _npc,
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
    if command in _PROXY:
        print(f"'weave {command}' went with the Docker API proxy", file=sys.stderr)
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
