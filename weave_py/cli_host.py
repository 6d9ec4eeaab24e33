"""`weave setup, reset, bridge-type, docker-bridge-ip, attach-bridge`: this host itself. Source: CLI spec §2, §11."""

import contextlib
import glob
import os
import shutil
import sys
import time
from pathlib import Path

from weave_py import launch
from weave_py.cli_addresses import BRIDGE, on_host
from weave_py.client import AbsentError, CliError, NotServedError, UsageError, call, running
from weave_py.words import say, take_flag, take_value

_DOCKER_BRIDGE = "docker0"
# What a hand-over needs to reach the peers before the router ends, in seconds.
_HAND_OVER = 0.5
# Where Weave Net kept its state on a host.
_OLD_STATE = ("/var/lib/weave/weave-netdata.db", "/var/lib/weave/weavedata.db")


def _docker_bridge() -> str:
    return os.environ.get("DOCKER_BRIDGE") or _DOCKER_BRIDGE


def setup(arguments: list[str]) -> int:
    """`weave setup`: nothing is to be fetched; says what the router would miss on this host."""
    if arguments:
        raise UsageError("")
    from nft import readback
    from nft.wire import NftError

    if os.geteuid() != 0:
        raise CliError("this command looks at what only root may see: run it as root")
    if not Path("/dev/net/tun").exists():
        raise CliError("/dev/net/tun is missing: load the tun module")
    if shutil.which("ip") is None:
        print("the program 'ip' is missing: the router runs without it, people miss it", file=sys.stderr)
    try:
        readback.tables()
    except (NftError, OSError) as error:
        raise CliError(f"this kernel has no nftables ({error}): load the nf_tables module") from error
    return 0


def bridge_type(arguments: list[str]) -> int:
    """`weave bridge-type`."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    if words:
        raise UsageError("")
    from host import bridge
    from host.errors import HostError

    try:
        kind = bridge.bridge_type(BRIDGE)
    except HostError as error:
        raise CliError(str(error)) from error
    if kind is bridge.BridgeType.NONE:
        raise CliError(f"there is no bridge {BRIDGE}: is the router running?")
    return say(f"{kind.value}\n", kind.value, as_json)


def docker_bridge_ip(arguments: list[str]) -> int:
    """`weave docker-bridge-ip`."""
    if arguments:
        raise UsageError("")
    from host.expose import on_bridge
    from host.links import exists

    name = _docker_bridge()
    if not exists(name):
        raise CliError(f'Failed to get netdev for "{name}" bridge: Link not found')
    found = on_bridge(name)
    if not found:
        raise CliError(f"bridge {name} has no IPv4 address")
    print(found[0].ip, end="")
    return 0


def attach_bridge(arguments: list[str]) -> int:
    """`weave attach-bridge`."""
    if len(arguments) > 1:
        raise UsageError("")
    from host.bridge import join_bridges
    from host.iptables import pass_joined

    other = arguments[0] if arguments else _docker_bridge()
    on_host(lambda: join_bridges(BRIDGE, other))
    on_host(lambda: pass_joined(BRIDGE))
    return 0


def reset(arguments: list[str]) -> int:
    """`weave reset`: hand over, stop, and leave the host as it was found."""
    words = list(arguments)
    force, prefix = take_flag(words, "--force"), take_value(words, "--db-prefix")
    if words:
        raise UsageError("")
    from host.reset import reset as clean
    from weave_py import encryption

    prefix = prefix or launch.state_prefix()
    if running():
        on_host(launch.check_stoppable)
        # A router that allocates nothing has nothing to hand over, nor has one that ends this moment.
        with contextlib.suppress(NotServedError, AbsentError):
            call("DELETE", "/peer")
        time.sleep(_HAND_OVER)
        launch.stop()
    elif not force:
        raise CliError(
            "ERROR: weave is not running; unable to remove from cluster.\n"
            "Re-launch weave before reset or use --force to override."
        )
    on_host(lambda: clean(BRIDGE))
    on_host(encryption.remove)
    _remove_state(prefix)
    return 0


def _remove_state(prefix: str) -> None:
    """The store, with its log, its lock and what was moved aside; what Weave Net kept; the directories, if empty."""
    from cni.spool import DIRECTORY, Spool

    files = glob.glob(f"{glob.escape(prefix)}data.sqlite*")
    for path in (*files, f"{prefix}data.lock", f"{prefix}data.db", f"{prefix}data.db.before", *_OLD_STATE):
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CliError(f"unable to remove {path}: {error.strerror}") from error
    # Somebody else's file may be there as well.
    Spool(Path(prefix).parent / DIRECTORY).clear()
    for directory in (launch.run_dir(), Path(prefix).parent):
        with contextlib.suppress(OSError):
            (directory / launch.SOCKET).unlink(missing_ok=True)
            directory.rmdir()
