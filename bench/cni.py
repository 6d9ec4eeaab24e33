"""The CNI plugin: wall and CPU time of ADD and of DEL, beside another plugin in the same run.

    script/bench cni [--pods N]

WEAVE_NET_PLUGIN names Weave Net 2.8's program (it is called as `weave-net`, against a router of ours, which answers it
on its control API as 2.8's does); without it Debian's `bridge` with `host-local` is the other one, if it is installed.
CPU is that of the plugin and all its children; ours also has what the router took for it in a column of its own.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni.install import COURIER
from lab.net import NETNS, require_root, run
from lab.router import RANGE, Router
from tests.clusters import Cluster, cluster

# Seconds in which what comes after the answer to a DEL is over: it must not burden the next call.
_SETTLE = 0.15
_BRIDGE = Path("/usr/lib/cni/bridge")
_WEAVE = {"cniVersion": "0.3.0", "name": "weave", "type": "weave-net", "hairpinMode": True}
_DEBIAN = {
    "cniVersion": "0.3.0",
    "name": "bench",
    "type": "bridge",
    "bridge": "bench0",
    "isGateway": True,
    "hairpinMode": True,
}


@dataclass(slots=True)
class Contender:
    """A plugin: the program, its configuration, the router that serves it (if one does)."""

    name: str
    program: Path
    configuration: Mapping[str, Any]
    namespace: str
    router: Router | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def call(self, command: str, number: int, pod: str) -> tuple[float, float, float]:
        """Milliseconds of one call: wall, CPU of the plugin, CPU of the router."""
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"{number:08x}" * 8,
            "CNI_NETNS": str(NETNS / pod),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.program.parent),
            "PATH": os.environ["PATH"],
            **self.environment,
        }
        served = 0.0 if self.router is None else self.router.cpu_seconds()
        before = _children()
        begun = time.perf_counter()
        # `ip netns exec` would cost as much as the plugin: the benchmark itself is in the node's namespace.
        done = subprocess.run(
            [self.program],
            input=json.dumps(self.configuration).encode(),
            capture_output=True,
            env=variables,
            check=False,
        )
        wall = time.perf_counter() - begun
        cpu = _children() - before
        if done.returncode:
            raise SystemExit(f"{self.name} {command}: {done.stdout.decode()} {done.stderr.decode()}")
        served = 0.0 if self.router is None else self.router.cpu_seconds() - served
        return wall * 1e3, cpu * 1e3, served * 1e3


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measure(contenders: list[Contender], pods: int) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for number in range(pods):
        for contender in contenders:
            pod = f"bench-pod-{os.getpid()}"
            run("ip", "netns", "add", pod)
            try:
                with _node(contender.namespace):
                    for command in ("ADD", "DEL"):
                        row = contender.call(command, number, pod)
                        # The first pod of a node exposes it, which happens once.
                        if number:
                            found.setdefault((contender.name, command), []).append(row)
                        time.sleep(_SETTLE)
            finally:
                run("ip", "netns", "del", pod)
    return found


@contextlib.contextmanager
def _node(namespace: str) -> Iterator[None]:
    """The benchmark's own thread is in a node meanwhile; children inherit that."""
    with Path("/proc/self/ns/net").open("rb") as home, (NETNS / namespace).open("rb") as node:
        _setns(node.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise SystemExit("unable to enter a namespace")


def _contenders(made: Cluster) -> list[Contender]:
    programs = made.directory / "bin"
    programs.mkdir()
    (programs / "weave-net").symlink_to(COURIER)
    socket = made.directory / "h1/weaver.sock"
    made.start(1, [], "--socket", str(socket))
    node = made.underlay.host(1).namespace
    ours = {"WEAVE_CNI_SOCKET": str(socket), "WEAVE_CNI_SPOOL": str(made.directory / "h1/cni")}
    found = [Contender("ours", programs / "weave-net", _WEAVE, node, made.routers[1], ours)]
    theirs = os.environ.get("WEAVE_NET_PLUGIN")
    if theirs:
        made.start(2, [])
        other = made.directory / "other"
        other.mkdir()
        (other / "weave-net").symlink_to(theirs)
        second = made.underlay.host(2).namespace
        found.append(Contender("Weave Net 2.8", other / "weave-net", _WEAVE, second, made.routers[2]))
    if _BRIDGE.exists():
        ipam = {"type": "host-local", "subnet": "10.200.0.0/16", "dataDir": str(made.directory / "host-local")}
        third = made.underlay.host(3).namespace
        found.append(Contender("bridge", _BRIDGE, {**_DEBIAN, "ipam": ipam}, third))
    return found


def main() -> None:
    """Print a table, and ratios to the first of the others."""
    parser = argparse.ArgumentParser(prog="bench.cni")
    parser.add_argument("--pods", type=int, default=20, help="pods of each plugin (default 20)")
    chosen = parser.parse_args()
    require_root()
    with cluster(ipam=RANGE) as made:
        contenders = _contenders(made)
        found = _measure(contenders, chosen.pods + 1)
    print(f"{'':24}{'wall ms':>10}{'CPU ms':>10}{'router ms':>11}   (medians of {chosen.pods}; router: mean)")
    middle = {}
    for (name, command), rows in sorted(found.items(), key=lambda each: each[0][1]):
        wall, cpu = (statistics.median(column) for column in list(zip(*rows, strict=True))[:2])
        router = statistics.fmean(row[2] for row in rows)
        middle[name, command] = wall, cpu + router
        print(f"{name:18}{command:6}{wall:10.1f}{cpu:10.1f}{router:11.1f}")
    for other in contenders[1:]:
        for command in ("ADD", "DEL"):
            ratios = [
                ours / theirs for ours, theirs in zip(middle["ours", command], middle[other.name, command], strict=True)
            ]
            print(f"ours / {other.name} {command}: wall {ratios[0]:.2f}x, CPU with the router's {ratios[1]:.2f}x")


if __name__ == "__main__":
    main()
