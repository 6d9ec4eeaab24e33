"""The entry point `weave-kube`: the router of a node, as one process that SIGTERM ends; `weave-kube init`: its node.

In order: the range must be free on this host, the router of Weave Net that ran here must have ended, the cluster says
who else is there and whether our state still counts; then the router runs, and beside it goes on what follows the
cluster. Source: Kubernetes and CNI spec §3, §6.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Interface, NetmaskValueError
from pathlib import Path
from typing import TYPE_CHECKING

from weave_py import kube_environment
from weave_py.kube_environment import KubeEnvironment, KubeEnvironmentError
from weave_py.log import set_up
from weave_py.settings import EXIT_USAGE, FlagError, Settings, SettingsError, check, parse

if TYPE_CHECKING:
    from kube.config import Config

_USAGE = """Usage: weave-kube [router flags] [peer ...]     the router of this node
       weave-kube init                           prepares the node: modules, settings, CNI plugin

What it is told by its environment: docs/kubernetes.md."""


def main() -> None:
    """Run as asked."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: Sequence[str]) -> int:
    # The first process of a container ends by no signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    log = set_up("info")
    if "--help" in arguments or "-h" in arguments:
        print(_USAGE)
        return 0
    from host.errors import HostError
    from kube.errors import KubeError
    from weave_py import kube_init
    from weave_py.store import StoreError

    try:
        if list(arguments) == ["init"]:
            kube_init.prepare(os.environ, log)
            return 0
        told = kube_environment.read(os.environ)
        if told.prepares_node:
            kube_init.prepare(os.environ, log)
        return _route(told, arguments, log)
    except FlagError as error:
        print(f"{error}\nSee 'weave-kube --help'.", file=sys.stderr)
        return EXIT_USAGE
    except (KubeEnvironmentError, SettingsError, HostError, StoreError, KubeError) as error:
        log.critical("%s", error)
        return 1


def _route(told: KubeEnvironment, more: Sequence[str], log: logging.Logger) -> int:
    """Join and run; returns the router's exit code."""
    from mesh.names import format_peer_name
    from weave_py import daemon, kube_init
    from weave_py.begin import choose_name, open_store
    from weave_py.takeover import old_router_ended

    _check_range(told)
    kube_init.open_settings(log)
    with old_router_ended(f"{told.prefix}data.db", log):
        from weave_py.kube_node import Node

        alone = _settings(told, more, (), 1)
        log = set_up(alone.log_level)
        store = open_store(alone, log)
        name = choose_name(alone, store, log)
        node = Node(told, _api(told), name, log)
        peers, count = asyncio.run(node.join(store))
        more = [*more, "--name", format_peer_name(name)]
        return daemon.run(_settings(told, more, peers, count), log, node.follow, store)


def _api(told: KubeEnvironment) -> "Config | None":
    """Where the API server is; None outside of a cluster, where peers are given. Raises ConfigError."""
    from kube.config import Config, in_cluster

    if told.api:
        return Config(told.api, token_file=Path(told.token_file) if told.token_file else None)
    return None if told.peers is not None and "KUBERNETES_SERVICE_HOST" not in os.environ else in_cluster()


def _settings(told: KubeEnvironment, more: Sequence[str], peers: Sequence[str], count: int) -> Settings:
    values, given, all_peers = parse(told.arguments(peers, count, more))
    return check(values, given, all_peers)


def _check_range(told: KubeEnvironment) -> None:
    """Raises SettingsError where this host has another use for the range."""
    from host.routes import overlap

    try:
        problem = overlap(IPv4Interface(told.range), told.bridge)
    except (AddressValueError, NetmaskValueError):
        raise SettingsError(f"IPALLOC_RANGE {told.range!r} is no network: give one as 10.32.0.0/12") from None
    if problem:
        raise SettingsError(problem)


if __name__ == "__main__":
    main()
