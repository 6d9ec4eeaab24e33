"""The entry point `weaver`: flags, then the router."""

import os
import sys

from weave_py import __version__
from weave_py.log import set_up
from weave_py.settings import EXIT_USAGE, FlagError, SettingsError, check, parse, usage


def main() -> None:
    """Run the router until it is told to stop."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    try:
        values, given, peers = parse(arguments)
    except FlagError as error:
        print(f"{error}\nSee 'weave --help'.", file=sys.stderr)
        return EXIT_USAGE
    if values["help"]:
        print(usage(), file=sys.stderr)
        return EXIT_USAGE
    if values["version"]:
        print(f"weave {__version__}")
        return 0
    if values["password"] and not values["print-peer-name"]:
        _hide_password(arguments, str(values["password"]))
    log = set_up("info")
    try:
        settings = check(values, given, peers)
    except SettingsError as error:
        log.critical("%s", error)
        return 1
    log = set_up(settings.log_level)
    # Imported here: what only prints a line or refuses a flag should not wait for it.
    from host.errors import HostError
    from mesh.names import format_peer_name
    from weave_py import daemon

    if values["print-peer-name"]:
        try:
            print(format_peer_name(daemon.peer_name(settings)))
        except HostError as error:
            log.critical("%s", error)
            return 1
        return 0
    return daemon.run(settings, log)


def _hide_password(arguments: list[str], password: str) -> None:
    """A password on the command line is in `ps` for everybody: start again with it in the environment."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word in ("--password", "-password"):
            skip = True
        elif not word.startswith(("--password=", "-password=")):
            kept.append(word)
    os.environ["WEAVE_PASSWORD"] = password
    os.execv(sys.executable, [sys.executable, "-m", "weave_py.weaver", *kept])


if __name__ == "__main__":
    main()
