"""Hosts of a real Weave Net router change over to ours and back, while their containers go on.

From and to its datapath of Open vSwitch: `test_open_vswitch.py`.
"""

import json
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from lab.net import inside, plug, run
from lab.router import RANGE, Router, peer_name, wait_until
from lab.traffic import Conversation, ping, talking
from tests.clusters import Attached, Cluster, cluster, mesh_links
from tests.cni.plugin import Plugin
from tests.host.iptables import works
from tests.interop.test_state import owned, prefix, ring
from tests.kube_nodes import await_ready, kubernetes, node, start_node
from tests.rings import await_one_ring, no_address_twice

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.timeout(400),
]
BOTH = ("iptables-nft", "iptables-legacy")


def addresses_of(namespace: str, interface: str) -> str:
    """An interface's addresses and MAC, as `ip` shows them."""
    return run("ip", "-n", namespace, "-br", "addr", "show", interface)


def rules_of_weave_net(router: Router) -> list[str]:
    """Lines of either iptables that are not ours and name what 2.8 makes."""
    lines = []
    for program in BOTH:
        if shutil.which(f"{program}-save"):
            lines += run(*inside(router.host.namespace, f"{program}-save"), check=False).splitlines()
    return [line for line in lines if "WEAVE" in line or ("control port" in line and "weave: " not in line)]


def links(router: Router) -> set[str]:
    """Names of a host's links but for its underlay."""
    rows = run("ip", "-n", router.host.namespace, "-o", "link").splitlines()
    return {row.split(": ")[1].partition("@")[0] for row in rows} - {"lo", "eth0"}


def expose(router: Router) -> str:
    """An address for the host, as Weave Net's own script gives it one."""
    cidr = router.allocate("weave:expose")
    router.demand("POST", f"/expose/{cidr}")
    return cidr


def change_over(made: Cluster, number: int, *, real: bool) -> Router:
    """Stop a host's router and start the other kind in its place."""
    router, others = made.routers[number], [other for other in made.routers if other != number]
    if real:
        # As `weave launch` leaves it: ours is ended by the command itself.
        said = router.weave("stop", "--hand-back", "--db-prefix", prefix(router))
        assert f"{prefix(router)}data.db" in said
        assert "checksums of container" in said and "--no-fastdp" in said
        router.launched = None
    else:
        assert router.stop() == 0
    made.foreign = made.foreign | {number} if real else made.foreign - {number}
    return made.start(number, others)


def pings_all(attached: dict[int, Attached]) -> None:
    """Everybody reaches everybody, if need be after a little while."""
    for one in attached.values():
        for other in attached.values():
            if one is not other:
                reach = partial(ping, one.namespace, other.address, count=1)
                wait_until(f"{one.namespace} reaches {other.address}", reach, 60)


def all_go_on(talks: Iterable[Conversation]) -> None:
    """Every conversation goes on, once its ends have noticed that they can."""
    for talk in talks:
        more = talk.exchanges + 20
        wait_until(f"a connection goes on after {talk}", partial(talk.has, more), 90)


@pytest.mark.parametrize("program", BOTH)
def test_one_host_there_and_back(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers, an exposed host, rules of either iptables: all of it is taken over, and given back."""
    for name in ("iptables", "iptables-save", "iptables-restore"):
        found = shutil.which(name.replace("iptables", program))
        assert found is not None, f"{program} is not installed"
        (tmp_path / name).symlink_to(found)
    with cluster([1, 2], REAL, ipam=RANGE) as made:
        made.launched = True
        works(made.underlay.host(1).namespace, program)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            real = made.start(1, [2])
            made.start(2, [1])
            made.await_links(mesh_links(2))
            host = expose(real).partition("/")[0]
        here, second, there = made.attach(1), made.attach(1, container=11), made.attach(2)
        attached = {1: here, 2: there, 11: second}
        pings_all(attached)
        wait_until("one ring", lambda: ring(made.routers[1]) == ring(made.routers[2]) != [], 60)
        held, divided = owned(real), ring(real)
        faces = {one.namespace: addresses_of(one.namespace, "ethwe") for one in attached.values()}
        bridge = addresses_of(real.host.namespace, "weave")
        assert rules_of_weave_net(real)

        with (
            talking(here.namespace, second.namespace, second.address) as near,
            talking(here.namespace, there.namespace, there.address) as far,
        ):
            ours = change_over(made, 1, real=False)
            made.await_links(mesh_links(2))
            wait_until("Weave Net's rules are gone", lambda: not rules_of_weave_net(ours), 30)
            assert "Removed Weave Net's packet rules" in ours.log
            assert links(ours) == {"weave", "vethwe-sleeve", "vethwepl1", "vethwepl11"}
            assert owned(ours) == held and ring(ours) == divided
            assert addresses_of(ours.host.namespace, "weave").split()[2] == bridge.split()[2]
            assert "Taken over:" not in ours.log
            pings_all(attached)
            assert ping(here.namespace, host) and ping(ours.host.namespace, there.address)
            more = made.attach(1, container=12)
            attached[12] = more
            pings_all(attached)

            back = change_over(made, 1, real=True)
            made.await_links(mesh_links(2))
            assert "vethwe-sleeve" not in links(back)
            assert owned(back) == {**held, more.namespace: [f"{more.address}/12"]} and ring(back) == divided
            pings_all(attached)
            assert ping(here.namespace, host)
            all_go_on([near, far])
        assert near.silence < 1
        assert all(addresses_of(name, "ethwe") == face for name, face in faces.items())
        assert not [line for line in back.log.splitlines() if "Received update for IP range I own" in line]
        assert not [line for line in made.routers[2].log.splitlines() if "Received update for IP range I own" in line]


def test_a_mesh_moves_host_by_host() -> None:
    """Three real hosts with containers that talk all the while; one after the other is taken over, none is cut off."""
    with cluster([1, 2, 3], REAL, ipam=RANGE) as made:
        made.launched = True
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = {number: made.attach(number) for number in (1, 2, 3)}
        pings_all(attached)
        await_one_ring(made)
        divided = ring(made.routers[1])
        faces = {one.namespace: addresses_of(one.namespace, "ethwe") for one in attached.values()}
        one, two, three = (attached[number] for number in (1, 2, 3))
        with (
            talking(one.namespace, two.namespace, two.address) as first,
            talking(two.namespace, three.namespace, three.address) as second,
            talking(three.namespace, one.namespace, one.address) as third,
        ):
            talks = first, second, third
            for number in (1, 2, 3):
                all_go_on(talks)
                held = owned(made.routers[number])
                router = change_over(made, number, real=False)
                made.await_links(mesh_links(3))
                assert owned(router) == held
                pings_all(attached)
                assert router.allocate("more").partition("/")[2] == "12"
            await_one_ring(made)
            all_go_on(talks)
        assert ring(made.routers[1]) == divided
        assert {name: addresses_of(name, "ethwe") for name in faces} == faces
        no_address_twice(made)
        for router in made.routers.values():
            assert "Received update for IP range I own" not in router.log and "conflict" not in router.log


def test_a_cluster_moves_node_by_node(tmp_path: Path) -> None:
    """The list of the cluster is as Weave Net's own programs left it; nobody in it is taken for new, or for gone."""
    with cluster([1, 2, 3], REAL, ipam=RANGE) as made, kubernetes(made, tmp_path) as kube:
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = {number: made.attach(number) for number in (1, 2, 3)}
        pings_all(attached)
        await_one_ring(made)
        divided = ring(made.routers[1])
        entries = [{"PeerName": peer_name(number), "NodeName": node(number)} for number in (1, 2, 3)]
        listed = {"kube-peers.weave.works/peers": json.dumps({"Peers": entries})}
        meta = {"name": "weave-net", "namespace": "kube-system", "annotations": listed}
        kube.api.objects.put("configmaps", {"metadata": meta})
        for number in (1, 2, 3):
            kube.add(number)
        one, three = attached[1], attached[3]
        with talking(one.namespace, three.namespace, three.address) as talk:
            for number in (1, 2, 3):
                all_go_on([talk])
                held = owned(made.routers[number])
                assert made.routers[number].stop() == 0
                made.foreign -= {number}
                ours = kube.start(number, EXTRA_ARGS="", IPALLOC_RANGE=RANGE)
                made.await_links(mesh_links(3))
                await_ready(ours)
                assert ours.report()["Router"]["Name"] == peer_name(number)
                assert {ident: cidrs for ident, cidrs in owned(ours).items() if ident != "weave:expose"} == held
                pings_all(attached)
            all_go_on([talk])
        await_one_ring(made)
        assert ring(made.routers[1]) == divided
        no_address_twice(made)
        assert kube.listed() == {peer_name(number) for number in (1, 2, 3)}
        wait_until("all say so", lambda: {kube.condition(number) for number in (1, 2, 3)} == {"False WeaveIsUp"}, 60)
        for router in made.routers.values():
            assert "taken over from" not in router.log and "Peer not in list" not in router.log


def test_weave_kube_follows_a_router_that_still_ends(tmp_path: Path) -> None:
    """It waits for the old router's file, and goes on under the name in it, whatever this machine would be called."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    with cluster([1, 2], REAL, ipam=RANGE) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        pod, other = made.attach(1), made.attach(2)
        real = made.routers[1]
        held = owned(real)
        made.foreign = frozenset({2})
        ours = start_node(
            made, 1, wait=False, EXTRA_ARGS="", HOST_ROOT=str(tmp_path), KUBE_PEERS=made.address(2), IPALLOC_RANGE=RANGE
        )
        wait_until("it waits", lambda: "Waiting for the Weave Net router that holds" in ours.log, 30)
        assert real.stop() == 0
        wait_until("ours answers", ours.answers, 30)
        made.await_links(mesh_links(2))
        assert ours.report()["Router"]["Name"] == peer_name(1)
        assert f"Took over the state of Weave Net from {prefix(ours)}data.db" in ours.log
        await_ready(ours)
        assert {ident: cidrs for ident, cidrs in owned(ours).items() if ident != "weave:expose"} == held
        pings_all({1: pod, 2: other})


def test_a_pod_of_weave_nets_plugin_ends_under_ours(tmp_path: Path) -> None:
    """Its address is owned under the sandbox's id and its port named by it: our DEL knows both."""
    container = "1a2b3c4" + "d" * 57
    with cluster([1], REAL, ipam=RANGE) as made:
        made.start(1, [], "--ipalloc-init", "consensus=1")
        real = made.routers[1]
        cidr = real.allocate(container)
        pod = made.underlay.container(1)
        plug(real.host.namespace, pod, 1, [cidr])
        run("ip", "-n", real.host.namespace, "link", "set", "vethwepl1", "name", f"vethwepl{container[:7]}")
        run("ip", "-n", pod, "link", "set", "ethwe", "down")
        run("ip", "-n", pod, "link", "set", "ethwe", "name", "eth0", "up")
        assert real.stop() == 0
        made.foreign = frozenset()
        socket = tmp_path / "weaver.sock"
        ours = start_node(made, 1, KUBE_PEERS=made.address(1), WEAVE_SOCKET=str(socket), IPALLOC_RANGE=RANGE)
        await_ready(ours)
        assert owned(ours)[container] == [cidr]
        assert ping(pod, exposed(ours))
        Plugin(tmp_path, socket, tmp_path / "cni").delete(container, pod)
        wait_until("its address is free", lambda: container not in owned(ours), 30)
        wait_until("its port is gone", lambda: f"vethwepl{container[:7]}" not in links(ours), 30)


def exposed(router: Router) -> str:
    """The host's own address in the overlay."""
    wait_until("the host is exposed", lambda: "weave:expose" in owned(router), 30)
    return owned(router)["weave:expose"][0].partition("/")[0]
