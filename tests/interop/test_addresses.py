"""One ring and one table of names among routers of both kinds: either begins it, asks, gives, leaves and comes back.

Source: IPAM spec §8 to §13, DNS spec §3 to §6, mesh spec §4.2.
"""

import os

import pytest

from lab.router import RANGE, Router, peer_name
from lab.traffic import ping
from tests import workflows
from tests.clusters import Cluster, cluster, mesh_links
from tests.rings import (
    GOSSIP,
    await_each,
    await_gone,
    await_names,
    await_one_ring,
    await_ready,
    everything_owned,
    no_address_twice,
    owners,
    ring,
)

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.timeout(600),
]

# Host 1 has the role.
KINDS = [
    pytest.param([1], id="a-real-one"),
    pytest.param([2, 3], id="one-of-ours"),
    pytest.param([1, 2, 3], id="all-real", marks=pytest.mark.long),
]


@pytest.mark.parametrize("foreign", KINDS)
def test_one_begins_the_ring_and_all_use_it_up(foreign: list[int]) -> None:
    """Host 1 has the whole range; the others get theirs from it and from each other, to the last address."""
    with cluster(foreign, REAL, ipam="10.32.0.0/27") as made:
        made.start(1, [])
        made.routers[1].prime()
        assert owners(made.routers[1]) == {1: 32}
        for number in (2, 3):
            made.start(number, range(1, number), "--ipalloc-init", "observer")
        made.await_links(mesh_links(3))
        await_ready(made)
        for number in (3, 2, 1):
            made.routers[number].allocate("first")
        await_one_ring(made)
        assert set(owners(made.routers[1])) == {1, 2, 3}
        for number in (1, 2, 3):
            made.routers[number].demand("DELETE", "/ip/first")
        given = workflows.exhaust(made, 30)
        # A network's first and last address may have been given to one who cannot use them, with two that he can.
        assert len(given) >= 26
        await_one_ring(made)


@pytest.mark.parametrize("foreign", KINDS)
def test_an_address_of_another_is_claimed(foreign: list[int]) -> None:
    """A host asks for one certain address that is another's; if it is in use there, the answer says by whom."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        used = {number: router.allocate("own") for number, router in made.routers.items()}
        await_one_ring(made)
        token = {owner: token for token, owner, _ in ring(made.routers[1])}
        for asks, of in ((1, 2), (2, 1), (3, 1), (1, 3)):
            octets = token[peer_name(of)].split(".")
            free = ".".join([*octets[:2], "77", str(asks)])
            made.routers[asks].claim("wants", f"{free}/12")
            answer = made.routers[asks].ask("PUT", f"/ip/thief/{used[of]}", timeout=40)
            assert answer.status == 400
            expected = f"address {used[of]} is owned by other peer {peer_name(of)} (host{of})"
            assert answer.text.strip() == f"Unable to claim: {expected}"
        await_one_ring(made)
        no_address_twice(made)


@pytest.mark.parametrize("how", ["reset", "killed-and-removed"])
@pytest.mark.parametrize("foreign", KINDS)
def test_one_leaves_and_comes_back_with_nothing(foreign: list[int], how: str) -> None:
    """Its addresses go to another; as it comes back it has none, asks, and is given some."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        workflows.attach_everywhere(made)
        await_one_ring(made)
        if how == "reset":
            made.reset(1)
        else:
            router = made.routers.pop(1)
            router.stop(kill=True)
            router.forget()
            await_gone(made, 1)
            assert "IPs taken over" in made.routers[2].remove_peer("host1")
        await_each(made, "host 1 owns nothing", lambda router: set(owners(router)) == {2, 3})
        made.start(1, [2, 3])
        made.await_links(mesh_links(3))
        assert made.routers[1].owned() == {}
        again = made.attach(1, container=11)
        no_address_twice(made)
        await_one_ring(made)
        assert set(owners(made.routers[3])) == {1, 2, 3}
        made.await_routes()
        other = made.attach(2, container=12)
        assert ping(again.namespace, other.address, count=10)


@pytest.mark.parametrize("foreign", [[2, 3], [2]], ids=["both-others-real", "another-of-ours"])
def test_one_of_ours_comes_back_after_it_was_given_up(foreign: list[int]) -> None:
    """It was dead and removed, and comes back with its old ring and addresses in use: it stays in the mesh,
    and gives nothing from what is no longer its own."""
    with cluster(foreign, REAL, ipam=RANGE) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = workflows.attach_everywhere(made)
        await_one_ring(made)
        router = made.routers.pop(1)
        router.stop(kill=True)
        await_gone(made, 1)
        made.routers[2].remove_peer("host1")
        await_each(made, "host 1 owns nothing", lambda router: set(owners(router)) == {2, 3})
        made.start(1, [2, 3])
        made.await_links(mesh_links(3))
        old = attached[1]
        says = made.routers[1].get("/status")
        assert f"{peer_name(2)} says it is theirs" in says and f"{old.address} ({old.namespace})" in says
        given = made.routers[1].allocate("new").partition("/")[0]
        assert everything_owned(made).count(given) == 1
        assert made.routers[1].owned()[old.namespace] == [f"{old.address}/12"]
        made.await_links(mesh_links(3))
        # What it says is what helps: the container ends and begins again, with an address that nobody disputes.
        made.routers[1].weave("detach", old.namespace)
        anew = made.attach(1)
        await_one_ring(made)
        assert "Dispute" not in made.routers[1].get("/status")
        no_address_twice(made)
        made.await_routes()
        assert ping(anew.namespace, attached[3].address, count=10)


@pytest.mark.parametrize("used", [False, True], ids=["nothing-given-meanwhile", "some-given-meanwhile"])
def test_a_real_one_comes_back_after_one_of_ours_took_over(used: bool) -> None:
    """It was removed while it only seemed dead, and comes back with its ring and addresses in use: it would break
    every connection over the loss. It gets back what nobody uses; what is used says whose it is to end."""
    with cluster([1], REAL, ipam=RANGE) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = workflows.attach_everywhere(made)
        await_one_ring(made)
        made.routers.pop(1).stop(kill=True)
        await_gone(made, 1)
        made.routers[2].remove_peer("host1")
        await_each(made, "host 1 owns nothing", lambda router: set(owners(router)) == {2, 3})
        # Its own container's address is the lowest, so it is the first that is given again.
        given = made.routers[2].allocate("meanwhile").partition("/")[0] if used else ""
        made.start(1, [2, 3])
        if given == attached[1].address:
            what = "host 2 says what is disputed"
            await_each(made, what, lambda router: "Dispute" in router.get("/status"), among=[2])
            made.routers[2].demand("DELETE", "/ip/meanwhile")
        made.await_links(mesh_links(3), timeout=180)
        await_one_ring(made)
        no_address_twice(made)
        assert made.routers[1].owned()[attached[1].namespace] == [f"{attached[1].address}/12"]
        assert not any("Dispute" in made.routers[number].get("/status") for number in (2, 3))


def test_five_hosts_through_a_life() -> None:
    """Three real and two of ours: one of each leaves, one of each dies, all come back, and traffic passes."""
    with cluster([1, 3, 4], REAL, ipam=RANGE) as made:
        made.start_all(5)
        made.await_links(mesh_links(5))
        attached = workflows.attach_everywhere(made)
        workflows.everybody_pings(made, attached)
        await_one_ring(made)
        for number in (1, 2):
            made.reset(number)
            await_each(made, f"host {number} owns nothing", lambda router: len(owners(router)) == len(made.routers))
        for dies, executor in ((3, 5), (5, 4)):
            router = made.routers.pop(dies)
            router.stop(kill=True)
            router.forget()
            await_gone(made, dies)
            assert "IPs taken over" in made.routers[executor].remove_peer(f"host{dies}")
            if dies == 3:
                await_one_ring(made)
        assert owners(made.routers[4]) == {4: 1 << 20}
        for number in (1, 2, 3, 5):
            made.start(number, [other for other in range(1, 6) if other != number])
        made.await_links(mesh_links(5))
        back = {number: made.attach(number, container=10 + number) for number in made.routers}
        no_address_twice(made)
        await_one_ring(made)
        assert set(owners(made.routers[4])) == {1, 2, 3, 4, 5}
        workflows.everybody_pings(made, back)


def _expose(router: Router) -> str:
    return router.weave("expose").strip()


@pytest.mark.parametrize("foreign", KINDS)
def test_names_of_either_kind(foreign: list[int]) -> None:
    """Every host's server answers for every name, forward and back; removed, and gone with its host, for none."""
    with cluster(foreign, REAL, ipam=RANGE, dns=True) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = workflows.attach_everywhere(made)
        made.await_routes()
        servers = {number: _expose(router) for number, router in made.routers.items()}
        for number, one in attached.items():
            made.routers[number].add_name(f"c{number}.weave.local", one.namespace, one.address)
            made.routers[number].add_name("Service.Weave.Local", one.namespace, one.address)
        await_each(made, "all names are known", lambda router: len(router.get("/status/dns").splitlines()) == 6)
        every = [one.address for one in attached.values()]
        for number, one in attached.items():
            for other in attached:
                workflows.resolve(one, servers[number], f"c{other}.weave.local", [attached[other].address])
                reverse = [f"c{other}.weave.local."]
                workflows.resolve(one, servers[number], attached[other].address, reverse, kind="X")
            workflows.resolve(one, servers[number], "SERVICE.weave.local", every)
            workflows.resolve(one, servers[number], "nobody.weave.local", [])
        made.routers[1].demand("DELETE", f"/name/{attached[1].namespace}/{attached[1].address}?fqdn=c1.weave.local")
        await_names(made, {"c2", "c3", "Service.Weave.Local."})
        made.routers.pop(1).stop(kill=True)
        await_gone(made, 1)
        await_each(made, "its names are gone", lambda router: len(router.get("/status/dns").splitlines()) == 4)
        workflows.resolve(attached[2], servers[2], "service.weave.local", every[1:])


def test_names_of_ours_outlive_its_restart() -> None:
    """Names given by hand come back with the router that they were given to, for real routers as well."""
    with cluster([1], REAL, ipam=RANGE, dns=True) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        made.routers[2].add_name("outside.weave.local", "weave:extern", "192.0.2.7")
        made.routers[1].add_name("real.weave.local", "weave:extern", "192.0.2.8")
        await_names(made, {"outside", "real"})
        for kill in (False, True):
            made.routers[2].stop(kill=kill)
            await_names(made, {"real"}, among=[1])
            made.start(2, [1])
            made.await_links(mesh_links(2))
            await_names(made, {"outside", "real"})
        made.routers[2].demand("DELETE", "/name/weave:extern/192.0.2.7")
        await_names(made, {"real"})


def _all_linked(made: Cluster, numbers: tuple[int, ...]) -> None:
    made.await_links({number: set(numbers) - {number} for number in numbers}, timeout=GOSSIP)


def test_a_password_is_rotated_without_a_partition() -> None:
    """Ours accept both passwords while each real router changes over; nobody is ever left out by more than a restart.

    Hosts 1 and 3 are real. Their own connection is theirs to lose while they differ; ours relay between them then.
    """
    with cluster([1, 3], REAL, ipam=RANGE) as made:
        everybody = (1, 2, 3, 4)
        others = {number: [other for other in everybody if other != number] for number in everybody}
        for number in everybody:
            made.start(number, others[number], password="old")
        _all_linked(made, everybody)
        attached = workflows.attach_everywhere(made)
        workflows.everybody_pings(made, attached)
        file = made.directory / "passwords"
        for passwords in (("old", "new"), ("new", "old")):
            file.write_text("\n".join(passwords))
            for number in (2, 4):
                made.routers[number].stop()
                made.start(number, others[number], "--password-file", str(file))
                _all_linked(made, everybody)
        made.routers[1].stop()
        made.start(1, others[1], password="new")
        made.await_links({1: {2, 4}, 2: {1, 3, 4}, 3: {2, 4}, 4: {1, 2, 3}}, timeout=GOSSIP)
        workflows.everybody_pings(made, attached)
        made.routers[3].stop()
        made.start(3, others[3], password="new")
        _all_linked(made, everybody)
        for number in (2, 4):
            made.routers[number].stop()
            made.start(number, others[number], password="new")
            _all_linked(made, everybody)
        workflows.everybody_pings(made, attached)
        await_one_ring(made)
