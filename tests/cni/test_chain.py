"""Other plugins after ours in a chain: what they are told is our result, and they have to find their way in it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.net import NETNS
from lab.router import RANGE
from tests.clusters import Cluster, cluster
from tests.cni.plugin import Plugin
from tests.namespaces import namespace, run

PLUGINS = Path("/usr/lib/cni")
_LACKING = f"{PLUGINS} has not all plugins (Debian: containernetworking-plugins)"
pytestmark = pytest.mark.skipif(
    not all((PLUGINS / name).exists() for name in ("portmap", "tuning", "bandwidth")), reason=_LACKING
)


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    with cluster(ipam=RANGE) as made:
        made.start(1, [], "--socket", str(made.directory / "h1/weaver.sock"))
        yield made


def following(node: Cluster, name: str, command: str, pod: str, more: dict[str, Any]) -> str:
    """A call of another plugin, on the node."""
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "chained",
        "CNI_NETNS": str(NETNS / pod),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    host = f"--net={NETNS / node.underlay.host(1).namespace}"
    done = subprocess.run(
        ["nsenter", host, PLUGINS / name],
        input=json.dumps({"name": "weave", "type": name, **more}),
        capture_output=True,
        text=True,
        env=variables,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (name, command, done)
    return done.stdout


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_a_chain(node: Cluster, version: str) -> None:
    plugin = Plugin(node.directory, node.directory / "h1/weaver.sock", node.directory / "h1/cni")
    host = node.underlay.host(1).namespace
    with namespace() as pod:
        result = plugin.add("chained", pod, configuration={"cniVersion": version, "name": "weave", "type": "weave-net"})
        port = result["interfaces"][1]["name"]
        given = {"cniVersion": version, "prevResult": result}
        mapping = {"hostPort": 18082, "containerPort": 80, "protocol": "tcp"}
        ports = {**given, "snat": True, "runtimeConfig": {"portMappings": [mapping]}}
        tuning = {**given, "sysctl": {"net.ipv4.conf.eth0.rp_filter": "0"}}
        speed = {**given, "egressRate": 8_000_000, "egressBurst": 8_000_000}
        passed = [
            following(node, "portmap", "ADD", pod, ports),
            following(node, "tuning", "ADD", pod, tuning),
            following(node, "bandwidth", "ADD", pod, {**given, "ingressRate": 8_000_000, "ingressBurst": 8_000_000}),
        ]
        for text in passed:
            assert json.loads(text)["ips"] == result["ips"]
        assert "tbf" in run("ip", "netns", "exec", host, "tc", "qdisc", "show", "dev", port)
        assert "18082" in run("ip", "netns", "exec", host, "iptables-save", "-t", "nat")
        if version >= "0.4.0":
            # Not of portmap: before 1.2 it misses IPv6 rules which no IPv4 pod has.
            following(node, "tuning", "CHECK", pod, tuning)
        for name, more in (("bandwidth", speed), ("tuning", tuning), ("portmap", ports)):
            following(node, name, "DEL", pod, more)
        plugin.delete("chained", pod)
        assert "18082" not in run("ip", "netns", "exec", host, "iptables-save", "-t", "nat")
