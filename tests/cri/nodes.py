"""Nodes with a router and a runtime each, set up as `weave setup-cni` sets them up."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lab.net import run
from tests.clusters import Cluster
from tests.cri.runtime import PLUGINS, Runtime, runtime


@dataclass(slots=True)
class Nodes:
    """Two nodes, each with a router and a runtime. `path`: what carries frames between them, "sleeve" or "fastdp"."""

    cluster: Cluster
    path: str
    runtimes: dict[int, Runtime]

    def host(self, number: int) -> str:
        return self.cluster.underlay.host(number).namespace

    def links(self, number: int) -> str:
        return run("ip", "-n", self.host(number), "link")

    def carried(self, number: int) -> int:
        """Packets that the kernel took from the other node's fast data path, so far."""
        links = json.loads(run("ip", "-n", self.host(number), "-j", "-s", "link", "show", "type", "vxlan") or "[]")
        return sum(each["stats64"]["rx"]["packets"] for each in links if each)

    def held(self, number: int) -> set[str]:
        """Who holds addresses on a node, but for the node itself."""
        owned = json.loads(self.cluster.routers[number].get("/ip"))["owned"] or []
        return {each["containerid"] for each in owned} - {"weave:expose"}


def paths(made: Cluster) -> set[str]:
    """What carries frames on the established connections of all routers."""
    reports = [router.report()["Router"]["Connections"] or [] for router in made.routers.values()]
    return {row["Attrs"]["name"] for rows in reports for row in rows if row["State"] == "established"}


def flags(made: Cluster, number: int) -> tuple[str, str]:
    """A router's, where the plugin that `node` installs finds it."""
    return "--socket", str(made.directory / f"h{number}/weaver.sock")


@contextlib.contextmanager
def node(made: Cluster, number: int) -> Iterator[Runtime]:
    """A node's runtime, set up by `weave setup-cni`."""
    root = made.directory / f"node{number}"
    plugins, configurations = root / "opt/cni/bin", root / "etc/cni/net.d"
    plugins.mkdir(parents=True)
    for plugin in PLUGINS.iterdir():
        (plugins / plugin.name).symlink_to(plugin)
    command = [sys.executable, "-m", "weave_py.cli", "setup-cni"]
    subprocess.run(command, env={**os.environ, "HOST_ROOT": str(root)}, check=True, timeout=60)
    run("ip", "netns", "exec", made.underlay.host(number).namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    here = made.directory / f"h{number}"
    variables = {"WEAVE_CNI_SOCKET": str(here / "weaver.sock"), "WEAVE_CNI_SPOOL": str(here / "cni")}
    with runtime(root / "c", made.underlay.host(number).namespace, configurations, plugins, **variables) as found:
        yield found
