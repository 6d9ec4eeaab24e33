"""The entry point `weaver`: flags, then the router."""

import sys

from weave_py import __version__
from weave_py.log import set_up
from weave_py.secret import hide_argument
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
    log = set_up("info")
    if values["password"] and not hide_argument(str(values["password"])):
        log.warning("the password shows in the list of processes: give it by WEAVE_PASSWORD or --password-file")
    try:
        settings = check(values, given, peers)
    except SettingsError as error:
        log.critical("%s", error)
        return 1
    log = set_up(settings.log_level)
    # Imported here: what only prints a line or refuses a flag should not wait for it.
    from host.errors import HostError
    from mesh.names import format_peer_name
    from weave_py import begin, daemon

    if values["print-peer-name"]:
        try:
            print(format_peer_name(begin.known_name(settings)))
        except HostError as error:
            log.critical("%s", error)
            return 1
        return 0
    return daemon.run(settings, log)


if __name__ == "__main__":
    main()
