"""Flags and environment of weave-npc: those of Weave Net 2.8, and ours. Source: NPC spec §1.1, §7."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from npc.ranges import Network

LEVELS = ("debug", "info", "warning", "error")
SOCKET = "/run/weave/npc.sock"
_IGNORED = ("max-list-size", "bridge-port-name", "use-legacy-netpol")


class UsageError(Exception):
    """The command line makes no sense; the text says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What weave-npc is to do.

    `hook` empty: where kube-proxy's mode wants it. `closed`: networks of which only known addresses are reached.
    """

    node: str
    metrics: str = ":6781"
    level: str = "info"
    multicast: bool = True
    bridge: str = "weave"
    hook: str = ""
    startup_closed: bool = True
    keep_established: bool = False
    closed: tuple[Network, ...] = ()
    socket: str = SOCKET
    url: str = ""
    token: str = ""
    ca: str = ""
    enforce: bool = True
    ignored: tuple[str, ...] = ()


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings of a command line, with EXTRA_ARGS behind it. Raises UsageError."""
    words = [*arguments, *shlex.split(environment.get("EXTRA_ARGS", ""))]
    given, rest = _parser(environment).parse_known_args([_one_dash(word) for word in words])
    ignored = [word for word in rest if word.lstrip("-").partition("=")[0] in _IGNORED]
    # A value may stand behind a flag that is not ours.
    unknown = [word for word in rest if word.startswith("-") and word not in ignored]
    if unknown or (rest and not ignored):
        raise UsageError(f"flag provided but not defined: {(unknown or rest)[0]}")
    if environment.get("IPTABLES_BACKEND"):
        ignored.append("IPTABLES_BACKEND")
    if not given.node_name:
        raise UsageError("no node name: give --node-name or HOSTNAME")
    return Settings(
        node=given.node_name,
        metrics=given.metrics_addr,
        level=given.log_level,
        multicast=given.allow_mcast,
        bridge=given.bridge,
        hook=given.hook,
        startup_closed=given.startup == "closed",
        keep_established=given.established == "keep",
        closed=_networks(given.ipalloc_range) if given.unknown == "drop" else (),
        socket=given.socket,
        url=given.api_server,
        token=given.token_file,
        ca=given.ca_file,
        enforce=environment.get("EXPECT_NPC", "1") not in ("0", "false"),
        ignored=tuple(ignored),
    )


def _one_dash(word: str) -> str:
    """Go's flags have one dash or two."""
    return f"-{word}" if word.startswith("-") and not word.startswith("--") and len(word) > 2 else word


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(each.strip(), strict=False) for each in text.split(","))
    except ValueError as error:
        raise UsageError(f"--ipalloc-range: {error}") from error


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "t", "true"):
        return True
    if text.lower() in ("0", "f", "false"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    made = _Parser("weave-npc", description="Kubernetes network policy for the pods of this node.", allow_abbrev=False)
    add = made.add_argument
    add("--metrics-addr", default=":6781", help="address of metrics and readiness (%(default)s)")
    add("--log-level", default="info", choices=LEVELS, help="(%(default)s)")
    add("--allow-mcast", type=_boolean, default=True, nargs="?", const=True, help="multicast passes (true)")
    add("--node-name", default=environment.get("HOSTNAME", ""), help="the name of this node (HOSTNAME)")
    add("--bridge", default="weave", help="the bridge of the pods (%(default)s)")
    add(
        "--hook",
        default="",
        choices=("", "forward", "postrouting"),
        help="where rules are (as kube-proxy's mode wants)",
    )
    add("--startup", default="closed", choices=("closed", "open"), help="what a pod waits for rules in vain for")
    add("--established", default="cut", choices=("cut", "keep"), help="connections that are no longer allowed")
    add(
        "--unknown",
        default="pass",
        choices=("pass", "drop"),
        help="what goes to an address of --ipalloc-range that no pod and no node has (%(default)s)",
    )
    add(
        "--ipalloc-range",
        default=environment.get("IPALLOC_RANGE") or "10.32.0.0/12",
        help="with --unknown=drop: addresses of pods and containers, several with commas (IPALLOC_RANGE, %(default)s)",
    )
    add("--socket", default=SOCKET, help="where the router and the command line ask (%(default)s)")
    add("--api-server", default="", help="URL of the API server (in the cluster: that of its environment)")
    add("--token-file", default="", help="with --api-server: a file with a bearer token")
    add("--ca-file", default="", help="with --api-server: certificates that it is known by")
    return made
