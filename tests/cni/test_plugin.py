"""The plugin against a real router: one node, pods as namespaces."""

from collections.abc import Iterator

import pytest

from lab.router import RANGE, wait_until
from tests.clusters import Cluster, cluster
from tests.cni.plugin import Plugin
from tests.namespaces import namespace, run


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    with cluster(ipam=RANGE) as made:
        made.start(1, [], "--socket", str(made.directory / "h1/weaver.sock"))
        yield made


@pytest.fixture(scope="module")
def plugin(node: Cluster) -> Plugin:
    return Plugin(node.directory, node.directory / "h1/weaver.sock", node.directory / "h1/cni")


def host(node: Cluster) -> str:
    return node.underlay.host(1).namespace


def links(where: str) -> str:
    return run("ip", "-n", where, "-d", "link")


def owned(node: Cluster) -> str:
    return node.routers[1].get("/ip")


def await_clean(node: Cluster, container: str) -> None:
    wait_until(f"{container} is gone", lambda: container not in owned(node), 10)
    wait_until(f"{container} has no port", lambda: container not in links(host(node)), 10)


def test_a_pod_comes_and_goes(node: Cluster, plugin: Plugin) -> None:
    with namespace() as pod, namespace() as other:
        result = plugin.add("a" * 64, pod)
        second = plugin.add("b" * 64, other)
        bridge, port, inner = result["interfaces"]
        assert result["cniVersion"] == "1.0.0"
        assert (bridge["name"], inner["name"], inner["sandbox"]) == ("weave", "eth0", f"/var/run/netns/{pod}")
        assert port["name"].startswith("vethwepl")
        address = result["ips"][0]["address"]
        gateway = result["ips"][0]["gateway"]
        assert (result["ips"][0]["interface"], result["routes"]) == (2, [{"dst": "0.0.0.0/0", "gw": gateway}])
        assert f"inet {address}" in run("ip", "-n", pod, "addr", "show", "eth0")
        assert f"default via {gateway} dev eth0" in run("ip", "-n", pod, "route")
        assert f"inet {gateway}/12" in run("ip", "-n", host(node), "addr", "show", "weave")
        there = second["ips"][0]["address"].partition("/")[0]
        for target in (there, gateway, address.partition("/")[0]):
            run("ip", "netns", "exec", pod, "ping", "-c", "1", "-W", "2", target)
        assert f"weave-cni weave {'a' * 64} eth0 {address}" in links(host(node))
        assert plugin.add("a" * 64, pod) == result
        plugin.delete("a" * 64, pod)
        plugin.delete("b" * 64, other)
        await_clean(node, "a" * 64)
        await_clean(node, "b" * 64)
        assert "eth0" not in run("ip", "-n", pod, "link")
