"""`weave hand-back`: the state of a stopped router, as an earlier program wants it. `weave stop --hand-back`: the host.

Without more, that is Weave Net's own file; with `--schema`, a file of an earlier version of this program.
Source: Kubernetes and CNI spec §6.
"""

from collections.abc import Sequence

from weave_py import launch
from weave_py.cli_addresses import BRIDGE, on_host
from weave_py.client import CliError, UsageError
from weave_py.store import Store, StoreError, default_prefix
from weave_py.words import take_value


def hand_back(arguments: Sequence[str]) -> int:
    """`[--db-prefix PREFIX] [--schema N]`; prints the file that the other program reads. Raises CliError."""
    words = list(arguments)
    prefix = take_value(words, "--db-prefix") or default_prefix()
    schema = take_value(words, "--schema")
    if words or (schema and not schema.isdecimal()):
        raise UsageError("")
    try:
        store = Store(prefix)
        try:
            if schema:
                store.go_down(int(schema))
                print(store.path)
            else:
                print(store.hand_back())
        finally:
            store.close()
    except StoreError as error:
        raise CliError(str(error)) from error
    return 0


def stop_and_hand_back(arguments: Sequence[str]) -> int:
    """`[--db-prefix PREFIX]`: end the router, write Weave Net's file, and leave the host as that one takes it.

    Prints what was done. Containers keep their interfaces and addresses. Raises CliError.
    """
    words = list(arguments)
    prefix = take_value(words, "--db-prefix")
    if words:
        raise UsageError("")
    from host.hand_back import hand_back as clear
    from weave_py import encryption

    prefix = prefix or launch.state_prefix()
    launch.stop()
    code = hand_back(["--db-prefix", prefix])
    for line in (*on_host(lambda: clear(BRIDGE)), *(f"removed {name}" for name in on_host(encryption.remove))):
        print(line)
    return code
