"""The plugin against a real router: one node, pods as namespaces."""

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.router import RANGE, wait_until
from tests.clusters import Cluster, cluster
from tests.cni.plugin import CONFLIST, Plugin
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
    wait_until(f"{container} is gone", lambda: f'"{container}"' not in owned(node), 10)
    wait_until(f"{container} has no port", lambda: f" {container} " not in links(host(node)), 10)


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


def test_versions_of_the_result(node: Cluster, plugin: Plugin) -> None:
    with namespace() as pod:
        for version in ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"):
            found = plugin.add("v1", pod, configuration={**CONFLIST, "cniVersion": version})
            assert found["cniVersion"] == version
            assert ("ip4" in found) == (version in ("0.1.0", "0.2.0"))
            if "ips" in found:
                assert ("version" in found["ips"][0]) == (version < "1.0.0")
                assert ("mtu" in found["interfaces"][2]) == (version == "1.1.0")
        plugin.delete("v1", pod)
    await_clean(node, "v1")


@pytest.mark.parametrize("bad", ["a/b", "eth0 1", "x" * 16, "..", "a@b"])
def test_names_that_are_none(plugin: Plugin, bad: str) -> None:
    done = plugin.call("ADD", "c1", "/proc/self/ns/net", bad)
    assert done.document["msg"] == f"invalid CNI_IFNAME: {bad!r}"


def test_static_address(node: Cluster, plugin: Plugin) -> None:
    by_capability = {**CONFLIST, "runtimeConfig": {"ips": ["10.40.0.7/16"]}}
    with namespace() as pod, namespace() as other:
        assert plugin.add("s1", pod, configuration=by_capability)["ips"][0]["address"] == "10.40.0.7/16"
        found = plugin.add("s2", other, arguments="IgnoreUnknown=1;IP=10.40.0.8;K8S_POD_NAME=x")
        assert found["ips"][0]["address"] == "10.40.0.8/12"
        taken = plugin.call("ADD", "s3", other, "eth1", arguments="IP=10.40.0.7")
        assert taken.document["msg"] == "unable to allocate IP address: address 10.40.0.7/12 is already owned by s1"
        assert "eth1" not in run("ip", "-n", other, "link")
        plugin.delete("s1", pod)
        plugin.delete("s2", other)
    await_clean(node, "s1")
    await_clean(node, "s2")


def test_two_interfaces_and_two_equal_beginnings(node: Cluster, plugin: Plugin) -> None:
    with namespace() as pod, namespace() as other:
        first, second = plugin.add("1234567aa", pod), plugin.add("1234567aa", pod, interface="net1")
        third = plugin.add("1234567bb", other)
        ports = {found["interfaces"][1]["name"] for found in (first, second, third)}
        assert len(ports) == 3
        assert '"1234567aa@net1"' in owned(node)
        assert run("ip", "-n", pod, "route").count("default") == 1
        plugin.delete("1234567aa", pod, interface="net1")
        wait_until("one is released", lambda: "1234567aa@net1" not in owned(node), 10)
        assert '"1234567aa"' in owned(node)
        assert "eth0" in run("ip", "-n", pod, "link")
        plugin.delete("1234567aa", pod)
        plugin.delete("1234567bb", other)
    await_clean(node, "1234567aa")
    await_clean(node, "1234567bb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bridge": "nosuch"}, 'Failed to get netdev for "nosuch" bridge: Link not found'),
        ({"mtu": 70000}, "MTU 70000 is out of range"),
        (
            {"ipam": {"type": "host-local"}},
            'ipam type "host-local" is not supported: the router gives addresses itself',
        ),
        ({"ipam": {"subnet": "192.168.0.0/16"}}, "range 192.168.0.0/16 out of bounds"),
        ({"mtu": "x"}, 'mtu is "x", not a number of octets'),
        ({"runtimeConfig": {"ips": ["fd00::1/64"]}}, "only IPv4 is supported"),
        ({"cniVersion": "9.0.0"}, "incompatible CNI versions"),
    ],
)
def test_an_add_that_fails_leaves_nothing(
    node: Cluster, plugin: Plugin, change: dict[str, object], message: str
) -> None:
    with namespace() as pod:
        done = plugin.call("ADD", "f1", pod, configuration={**CONFLIST, **change})
        assert done.status == 1
        assert message in done.document["msg"]
        assert "eth0" not in run("ip", "-n", pod, "link")
        await_clean(node, "f1")


def test_an_interface_that_is_there_already(node: Cluster, plugin: Plugin) -> None:
    with namespace() as pod:
        run("ip", "-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "else")
        done = plugin.call("ADD", "f2", pod)
        assert "interface eth0 of the container was not made by weave" in done.document["msg"]
        await_clean(node, "f2")
        assert "eth0" in run("ip", "-n", pod, "link")


def test_the_host_itself_is_refused(node: Cluster, plugin: Plugin) -> None:
    done = plugin.call("ADD", "f3", host(node))
    assert done.document["msg"].startswith("can not specify host network namespace")


def test_check(node: Cluster, plugin: Plugin) -> None:
    with namespace() as pod:
        result = plugin.add("k1", pod)
        given = {**CONFLIST, "prevResult": result}

        def check() -> str:
            done = plugin.call("CHECK", "k1", pod, configuration=given)
            return str(done.document["msg"]) if done.status else ""

        assert check() == ""
        run("ip", "-n", pod, "route", "del", "default")
        assert check() == 'the default route is missing on interface "eth0"'
        run("ip", "-n", pod, "addr", "flush", "dev", "eth0")
        assert "is missing on interface" in check()
        plugin.add("k1", pod)
        assert check() == ""
        port = result["interfaces"][1]["name"]
        run("ip", "-n", host(node), "link", "set", port, "nomaster")
        assert check() == 'interface "eth0" is not connected to bridge "weave"'
        run("ip", "-n", host(node), "link", "del", port)
        assert check() == 'interface "eth0" is missing in the container'
        plugin.delete("k1", pod)
        await_clean(node, "k1")
        assert check() == "k1 holds no address"


def test_status(plugin: Plugin) -> None:
    done = plugin.call("STATUS", configuration={**CONFLIST, "cniVersion": "1.1.0"})
    assert (done.status, done.text) == (0, "")


def test_garbage_collection(node: Cluster, plugin: Plugin) -> None:
    """Gone: what the runtime does not know. Kept: what it knows, other networks, what the host has."""
    known, unknown, lost, foreign = "a" * 64, "b" * 64, "c" * 64, "d" * 64
    node.routers[1].post(f"/ip/{lost}")
    node.routers[1].post("/ip/by-hand")
    with namespace() as one, namespace() as two, namespace() as three:
        plugin.add(known, one)
        plugin.add(unknown, two)
        plugin.add(foreign, three, configuration={**CONFLIST, "name": "other"})
        valid = [{"containerID": known, "ifname": "eth0"}]
        done = plugin.call("GC", configuration={**CONFLIST, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid})
        assert done.status == 0, done
        assert "eth0" in run("ip", "-n", one, "link")
        assert "eth0" not in run("ip", "-n", two, "link")
        assert "eth0" in run("ip", "-n", three, "link")
        held = owned(node)
        assert all(ident in held for ident in (known, foreign, "by-hand", "weave:expose"))
        assert not any(ident in held for ident in (unknown, lost))
        assert plugin.call("GC").document["msg"] == "cni.dev/valid-attachments is missing: nothing is released"
        plugin.delete(known, one)
        plugin.delete(foreign, three)
        node.routers[1].ask("DELETE", "/ip/by-hand")
    await_clean(node, known)
    await_clean(node, foreign)


def test_a_pod_of_weave_net(node: Cluster, plugin: Plugin) -> None:
    """Attached by 2.8: its name for the port, the address under the container's id, nothing written on the port."""
    ident = "e" * 64
    cidr = node.routers[1].post(f"/ip/{ident}")
    with namespace() as pod:
        where = host(node)
        run("ip", "-n", where, "link", "add", "vethwepleeeeeee", "type", "veth", "peer", "name", "eth0", "netns", pod)
        run("ip", "-n", where, "link", "set", "vethwepleeeeeee", "master", "weave", "up")
        run("ip", "-n", pod, "addr", "add", cidr, "dev", "eth0")
        again = plugin.add(ident, pod, configuration={**CONFLIST, "cniVersion": "0.3.0"})
        assert again["ips"][0]["address"] == cidr
        run("ip", "-n", where, "link", "set", "vethwepleeeeeee", "alias", "")
        # Its namespace cannot be found any more.
        done = plugin.delete(ident, "/gone")
        assert 'error removing interface "eth0": no such file or directory' in done.notes
        await_clean(node, ident)
        assert "vethwepleeeeeee" not in links(where)


def test_many_at_once(node: Cluster, plugin: Plugin) -> None:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(20) as threads:
        pods = {f"many-{number}": stack.enter_context(namespace()) for number in range(20)}
        results = list(threads.map(lambda each: plugin.add(*each), pods.items()))
        assert len({found["ips"][0]["address"] for found in results}) == 20
        list(threads.map(lambda each: plugin.delete(*each), pods.items()))
        wait_until("all are gone", lambda: "many-" not in owned(node) and "many-" not in links(host(node)), 20)


def begin(plugin: Plugin, container: str, path: str) -> "subprocess.Popen[bytes]":
    """An ADD that is not waited for."""
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container,
        "CNI_NETNS": path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/",
        "WEAVE_CNI_SOCKET": str(plugin.socket),
    }
    process = subprocess.Popen(
        [plugin.directory / "weave-net"], env=variables, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(CONFLIST).encode())
    process.stdin.close()
    return process


def test_a_caller_that_is_killed(node: Cluster, plugin: Plugin) -> None:
    """Whenever it was: the runtime's DEL finds all that there is."""
    with namespace() as pod:
        for wait in (0.0, 0.002, 0.004, 0.006, 0.008):
            process = begin(plugin, "q1", f"/run/netns/{pod}")
            time.sleep(wait)
            process.kill()
            process.wait()
            plugin.delete("q1", pod)
            await_clean(node, "q1")
            wait_until("no interface", lambda: "eth0" not in run("ip", "-n", pod, "link"), 10)


def test_a_caller_that_gives_up(plugin: Plugin) -> None:
    """Nobody has an address yet: whoever waits for one is told apart from whoever does no more."""
    with cluster(ipam=RANGE) as made, namespace() as pod:
        path = made.directory / "h1/weaver.sock"
        made.start(1, [], "--ipalloc-init", "observer", "--socket", str(path))
        waiting = Plugin(plugin.directory, path, made.directory / "h1/cni")
        done = waiting.call("STATUS")
        assert (done.status, done.document["code"]) == (1, 50)
        process = begin(waiting, "w1", f"/run/netns/{pod}")
        time.sleep(0.5)
        process.kill()
        process.wait()
        wait_until("the wait has ended", lambda: "request for w1 cancelled" in made.routers[1].log.lower(), 10)
        assert "eth0" not in run("ip", "-n", pod, "link")


def test_the_control_api_is_on_the_socket_too(node: Cluster, plugin: Plugin) -> None:
    assert "Name: 0a:00:00:00:00:01" in run("curl", "-s", "--unix-socket", str(plugin.socket), "http://x/status")
    assert plugin.socket.stat().st_mode & 0o777 == 0o600


def test_calls_are_counted(node: Cluster, plugin: Plugin) -> None:
    def calls() -> dict[str, dict[str, int]]:
        found = node.routers[1].report()["CNI"]["Calls"]
        assert isinstance(found, dict)
        return found

    before = calls()["STATUS"]["ok"]
    plugin.call("STATUS")
    plugin.call("ADD", "")
    assert calls()["STATUS"]["ok"] == before + 1
    assert f'weave_cni_calls_total{{outcome="ok",verb="STATUS"}} {before + 1}.0' in node.routers[1].get("/metrics")
    assert calls()["ADD"]["failed"] >= 1


def test_bytes_that_are_no_request(node: Cluster, plugin: Plugin) -> None:
    randomness = random.Random(7)
    for _ in range(60):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(plugin.socket))
            header = struct.pack(
                "=4sHHiII", b"\0CNI", 1, 0, -1, randomness.randrange(1 << 18), randomness.randrange(99)
            )
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                caller.sendall(randomness.choice([header, b"\0"]) + randomness.randbytes(randomness.randrange(200)))
                caller.sendmsg(
                    [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0] * randomness.randrange(1, 9)))]
                )
    assert plugin.call("STATUS").status == 0


def test_a_killed_router_goes_on_with_a_release(node: Cluster, plugin: Plugin) -> None:
    router = node.routers[1]
    with namespace() as pod:
        result = plugin.add("z1", pod)
        router.stop(kill=True)
        assert "the release waits for it" in plugin.delete("z1", pod).notes
        assert f"alias weave-cni weave z1 eth0 {result['ips'][0]['address']}" in links(host(node))
        node.start(1, [], "--socket", str(plugin.socket))
        await_clean(node, "z1")
        assert "eth0" not in run("ip", "-n", pod, "link")
    assert not os.listdir(plugin.spool)
