"""What operators do, from start to end, with routers of ours. Source: CLI spec §12, whose numbers the tests bear.

Those that hold with Weave Net among the routers as well are in `tests/workflows.py`, and run there in
`tests/interop/test_workflows.py`.
"""

import re
import shutil
from pathlib import Path

import pytest

from lab.net import LabError, inside, run
from lab.router import RANGE, Router, wait_until
from lab.traffic import ping, pinging
from tests import workflows
from tests.clusters import cluster, mesh_links
from tests.rings import (
    GOSSIP,
    await_direct_routes,
    await_each,
    await_names,
    await_one_ring,
    await_ready,
    no_address_twice,
    ring,
    section,
)

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]


def test_w01_interactive() -> None:
    """Hosts are launched one by one, each told of those before; `weave prime` returns, there is one ring.

    Containers then need nothing typed by hand: an address by `weave attach`, a name by `weave dns-add`, found by
    every other container in its resolver's way.
    """
    with cluster(ipam=RANGE, dns=True, launched=True) as made:
        workflows.w01_interactive(made, 3)
        server = made.routers[1].name_server()
        assert not ping(made.underlay.container(1), server), "an address for names alone serves nothing else"
        attached = {number: made.attach(number, container=10 + number) for number in made.routers}
        for number, one in attached.items():
            made.routers[number].weave("dns-add", one.namespace, "-h", f"c{number}.weave.local")
        await_names(made, {"c1", "c2", "c3"})
        for number, one in attached.items():
            workflows.resolve(attached[1], server, f"c{number}.weave.local", [one.address])
            workflows.resolve(attached[1], server, one.address, [f"c{number}.weave.local."], kind="X")
            assert made.routers[2].weave("dns-lookup", f"c{number}") == f"{one.address}\n"


def test_w02_uniform_fixed() -> None:
    """All are started with one list that includes themselves; a majority of the list divides the range."""
    with cluster(ipam=RANGE) as made:
        workflows.w02_uniform_fixed(made, 5)


def test_w03_uniform_dynamic() -> None:
    """With named seeds everybody may start at any time, even while parted; all make the same ring."""
    with cluster(ipam=RANGE) as made:
        workflows.w03_uniform_dynamic(made, 5)


def test_w04_autoscaling() -> None:
    """Observers wait for the core's ring, are granted space as they ask, and give it back by `weave reset`."""
    with cluster(ipam=RANGE, launched=True) as made:
        workflows.w04_autoscaling(made, 4)


def test_w05_remove_peer() -> None:
    """One leaves by `weave reset`, the others forget it; an heir has its addresses, and nothing is unreachable.

    Its host is then as it was found.
    """
    with cluster(ipam=RANGE, launched=True) as made:
        workflows.w05_remove_peer(made, 3, leaves=2)
        host = made.underlay.host(2).namespace
        assert re.findall(r"weave|vethwe", run("ip", "-n", host, "-o", "link")) == []
        assert "weave" not in run(*inside(host, "nft", "list", "tables"))
        assert not list((made.directory / "h2").glob("weavedata*"))


@pytest.mark.parametrize("by_nickname", [True, False], ids=["by-nickname", "by-name"])
def test_w06_dead_peer(by_nickname: bool) -> None:
    """One dies and shows as unreachable, until `weave rmpeer` on one of the others takes its addresses over."""
    with cluster(ipam=RANGE) as made:
        workflows.w06_dead_peer(made, 3, dies=3, by_nickname=by_nickname)


def test_w07_stop_and_launch() -> None:
    """Stopped and launched, with a list or with --resume, it has its addresses and every peer it was told of."""
    with cluster(ipam=RANGE, launched=True) as made:
        workflows.w07_stop_and_launch(made, stops=2)


def test_w08_crash_and_restart() -> None:
    """Killed and started in place, it takes the stored list of peers and gives no address a second time."""
    with cluster(ipam=RANGE) as made:
        workflows.w08_crash_and_restart(made, crashes=3)


def another_build(directory: Path, version: str) -> Path:
    """A copy of our packages that calls itself another version."""
    build = directory / version
    for package in ROOT.glob("*/__init__.py"):
        if package.parent.name not in ("tests", "bench"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package.parent, build / package.parent.name, ignore=ignore)
    file = build / "weave_py" / "__init__.py"
    text, replaced = re.subn(r'__version__ = "[^"]*"', f'__version__ = "{version}"', file.read_text())
    assert replaced == 1
    file.write_text(text)
    return build


def test_w09_rolling_upgrade(tmp_path: Path) -> None:
    """One node after another is stopped and started with another build, and then back, while all others go on.

    Each keeps its name, its addresses and its part of the ring; the containers of the two others notice nothing.
    """
    with cluster(ipam=RANGE) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        attached = workflows.attach_everywhere(made)
        await_one_ring(made)
        before = ring(made.routers[1])
        for version in ("9.9.9", None):
            build = another_build(tmp_path, version) if version else None
            for number in (1, 2, 3):
                kept = made.routers[number].owned()
                one, other = others = [other for other in (1, 2, 3) if other != number]
                # Routes follow a little after connections: until then the one that is next may be a relay.
                await_direct_routes(made)
                workflows.everybody_pings(made, attached)
                with pinging(attached[one].namespace, attached[other].address):
                    made.routers[number].stop()
                    made.await_links({one: {other}, other: {one}})
                    router = made.start(number, others, build=build)
                    made.await_links(mesh_links(3))
                assert version is None or f"Version: {version} " in router.get("/status")
                assert router.owned() == kept
                router.allocate(f"with-{version}")
            await_one_ring(made)
            assert ring(made.routers[1]) == before
        workflows.everybody_pings(made, attached)
        no_address_twice(made)


def test_w10_encryption() -> None:
    """All have the password; two trust the network between them, and only their frames go in clear."""
    with cluster(ipam=RANGE) as made:
        workflows.w10_encryption(made)


def test_w11_wrong_password() -> None:
    """With another password, or none, it says so and harms nobody; with the right one it joins."""
    with cluster(ipam=RANGE) as made:
        workflows.w11_wrong_password(made, wrong=3)


def test_w12_partition() -> None:
    """Cut off, it is noticed by heartbeats and its names go; healed, names, ring and traffic are as before."""
    with cluster(ipam=RANGE, dns=True) as made:
        workflows.w12_partition(made, alone=3, seconds=90)


def test_w13_one_way_firewall() -> None:
    """A host that nobody can call joins by calling one, and finds the others from there by itself."""
    with cluster(ipam=RANGE) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        made.underlay.shield(3)
        made.start(3, [])
        made.routers[1].weave("connect", made.address(3))
        await_each(
            made, "it is called in vain", lambda router: f"-> {made.address(3)}:6783" in _shown(router), among=[1]
        )
        assert made.neighbours(1) == {2}
        made.routers[3].weave("connect", made.address(1))
        made.await_links(mesh_links(3))
        workflows.everybody_pings(made, workflows.attach_everywhere(made))
        await_one_ring(made)


def _shown(router: Router) -> str:
    return router.weave("status", "connections")


def test_w14_multi_hop() -> None:
    """Two hosts that cannot reach each other exchange frames, addresses and names by way of a third."""
    with cluster(ipam=RANGE, dns=True) as made:
        made.underlay.separate([1], [3])
        for number, peers in ((2, []), (1, [2]), (3, [2])):
            made.start(number, peers)
        links = {1: {2}, 2: {1, 3}, 3: {2}}
        made.await_links(links)
        attached = workflows.attach_everywhere(made)
        workflows.everybody_pings(made, attached)
        await_one_ring(made)
        tree = made.routers[1].weave("status", "peers")
        assert len(re.findall(r"^\S+\(host[123]\)$", tree, re.MULTILINE)) == 3
        assert re.search(r"\(host3\)\n   -> \S+ +\S+\(host2\) +established\n", tree)
        assert not re.search(r"\(host1\)\n(   .*\n)*   .*\(host3\)", tree)
        made.routers[3].add_name("far.weave.local", attached[3].namespace, attached[3].address)
        await_names(made, {"far"})
        assert {number: made.neighbours(number) for number in links} == links


def test_w15_isolation() -> None:
    """Containers in different subnets do not reach each other, wherever they run; one in both reaches all."""
    one, two = "10.32.1.0/24", "10.32.2.0/24"
    with cluster(ipam=RANGE) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        here = {
            subnet: made.attach(1, f"net:{subnet}", container=10 + place) for place, subnet in enumerate((one, two))
        }
        there = {
            subnet: made.attach(2, f"net:{subnet}", container=20 + place) for place, subnet in enumerate((one, two))
        }
        both = made.attach(2, f"net:{one}", f"net:{two}", container=30)
        made.await_routes()
        for subnet in (one, two):
            other = two if subnet == one else one
            assert here[subnet].address.startswith(subnet.removesuffix("0/24"))
            assert ping(here[subnet].namespace, there[subnet].address, count=10)
            assert not ping(here[subnet].namespace, there[other].address)
            assert not ping(here[subnet].namespace, here[other].address)
        assert [address.rpartition(".")[0] for address in both.addresses] == ["10.32.1", "10.32.2"]
        assert all(ping(here[subnet].namespace, both.addresses[place]) for place, subnet in enumerate((one, two)))
        no_address_twice(made)


def _rules(host: str) -> str:
    return run(*inside(host, "nft", "list", "ruleset"))


def test_w16_host_integration() -> None:
    """An exposed host reaches containers and is reached by name; others reach them through it, by NAT; hidden, not."""
    subnet = "10.33.9.0/24"
    with cluster(ipam=RANGE, dns=True) as made:
        made.start_all(2, "--ipalloc-default-subnet", "10.32.0.0/16")
        made.await_links(mesh_links(2))
        router, host = made.routers[1], made.underlay.host(1).namespace
        far = made.attach(2)
        made.await_routes()
        address = router.weave("expose", "-h", "host1.weave.local").strip()
        assert router.weave("expose").strip() == address, "asked again, it says the same"
        assert ping(host, far.address, count=10)
        assert ping(far.namespace, address)
        await_names(made, {"host1"})
        workflows.resolve(far, address, "host1.weave.local", [address])
        in_subnet = made.attach(2, f"net:{subnet}", container=20)
        second = router.weave("expose", f"net:{subnet}").strip()
        assert ping(host, in_subnet.address, count=10)
        third = made.underlay.host(3).namespace
        run(*inside(host, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"))
        run("ip", "-n", third, "route", "add", RANGE, "via", made.address(1))
        assert ping(third, far.address, count=5)
        assert ping(third, in_subnet.address, count=5)
        assert "masquerade" in _rules(host)
        assert router.weave("hide", f"net:{subnet}").strip() == second
        assert not ping(host, in_subnet.address)
        assert ping(host, far.address)
        assert router.weave("hide").strip() == address
        assert not ping(third, far.address)
        # The bridge keeps the one address that names are served on, and lets containers do nothing else with it.
        assert not re.search(r"10\.33\.|masquerade", _rules(host)), "no rule of a hidden subnet stays"
        await_names(made, set())
        assert router.weave("hide") == "\n"


def test_w17_mistakes_of_range_and_seed() -> None:
    """Impossible ranges and modes are refused in one line; routers that disagree say so and name both sides."""
    with cluster() as made:
        refused = (
            (["--ipalloc-init", "observer"], "--ipalloc-init specified without --ipalloc-range."),
            (["--ipalloc-default-subnet", RANGE], "--ipalloc-default-subnet specified without --ipalloc-range."),
            (
                ["--ipalloc-range", RANGE, "--ipalloc-init", "maybe"],
                "Unable to parse --ipalloc-init: unknown mode: maybe",
            ),
            (
                ["--ipalloc-range", RANGE, "--ipalloc-init", "seed"],
                "Unable to parse --ipalloc-init: seed mode requires peer name list",
            ),
            (
                ["--ipalloc-range", RANGE, "--ipalloc-default-subnet", "10.64.0.0/16"],
                "IP address allocation default subnet 10.64.0.0/16 does not overlap with allocation range 10.32.0.0/12",
            ),
            (["--ipalloc-range", "10.32.0.1/12"], "invalid subnet - bits after network prefix are not all zero"),
            (["--ipalloc-range", "10.32.0.0/31"], "invalid subnet - smaller than minimum size 4"),
        )
        for flags, says in refused:
            router = made.start(1, [], *flags, wait=False)
            assert router.process is not None
            assert router.process.wait(30) == 1
            assert says in router.log.splitlines()[-1]
        made.routers.clear()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--ipalloc-range", "10.48.0.0/12"), "Incompatible IP allocation ranges (received: "),
        (("--ipalloc-init", "seed=a::2"), "IP allocation was seeded by different peers (received: ["),
    ],
    ids=["range", "seeds"],
)
def test_w17_two_that_disagree(flags: tuple[str, ...], says: str) -> None:
    """Of two rings that cannot be one, both routers name both sides in log and status, and each keeps its own."""
    with cluster(ipam=RANGE) as made:
        made.start(1, [], "--ipalloc-init", "seed=a::1")
        made.routers[1].prime()
        made.start(2, [], "--ipalloc-init", "seed=a::1", *flags)
        made.routers[2].prime()
        rings = [ring(router) for router in made.routers.values()]
        made.routers[2].weave("connect", made.address(1))
        await_each(made, "both say why", lambda router: says in router.log)
        await_each(made, "the one that calls shows it", lambda router: says in _shown(router), among=[2])
        assert [ring(router) for router in made.routers.values()] == rings
        assert made.routers[1].allocate("still"), "nobody else is harmed"


def test_w17_one_that_uses_nothing_rejoins() -> None:
    """It leaves its ring, with the address of names that it had, for that of the other; over a restart as well."""
    with cluster(ipam=RANGE, dns=True) as made:
        for number in (1, 2):
            made.start(number, [], "--ipalloc-init", f"seed=a::{number}")
            made.routers[number].prime()
        two = made.routers[2]
        held = two.allocate("c")
        one = made.routers[1]
        wait_until("names are served", lambda: bool(_names_address(one) and _names_address(two)), 30)
        assert _names_address(one) == _names_address(two)
        with pytest.raises(LabError, match=f"in use: {held.partition('/')[0]} \\(c\\)"):
            two.weave("rejoin")
        two.ask("DELETE", "/ip/c")
        two.weave("rejoin")
        assert "discarded" in two.report()["State"]["Lost"]
        assert not _names_address(two)
        two.stop()
        two = made.start(2, [1], "--ipalloc-init", "seed=a::2")
        made.await_links(mesh_links(2))
        wait_until("the ring is known", lambda: two.report()["State"]["Lost"] is None, 30)
        wait_until("names are served again", lambda: bool(_names_address(two)), 30)
        assert _names_address(one) != _names_address(two)
        assert ring(two) == ring(one)


def _names_address(router: Router) -> str:
    return str(router.report()["Exposure"]["NamesAddress"])


def test_w18_firewall_reload() -> None:
    """After somebody has flushed all rules of an exposed host, ours are back within 20 seconds."""
    with cluster(ipam=RANGE) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        host, far = made.underlay.host(1).namespace, made.attach(2)
        made.await_routes()
        made.routers[1].weave("expose")
        third = made.underlay.host(3).namespace
        run(*inside(host, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"))
        run("ip", "-n", third, "route", "add", RANGE, "via", made.address(1))
        assert ping(third, far.address, count=10)
        before = _rules(host)
        run(*inside(host, "nft", "flush", "ruleset"))
        assert wait_until("the rules are back", lambda: _counted(_rules(host)) == _counted(before), 25) < 21
        assert ping(third, far.address, count=5)


def _counted(rules: str) -> list[str]:
    """Rules, whatever they counted and in whichever order the chains were made."""
    return sorted(re.sub(r"counter packets \d+ bytes \d+", "", rules).splitlines())


def test_a_full_range_is_waited_out() -> None:
    """When nobody has an address left a request waits, says so in the status, and goes on when one is freed."""
    with cluster(ipam="10.32.0.0/27") as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        given = workflows.exhaust(made, 30)
        assert len(given) >= 28, "all but a first or last address that strayed"
        no_address_twice(made)


def test_containers_come_and_go() -> None:
    """A detached container's address and names are free again; what is claimed by hand is given to nobody else."""
    with cluster(ipam=RANGE, dns=True) as made:
        router = made.start(1, [], "--dns-listen-address", "127.0.0.1:53")
        one = made.attach(1)
        router.weave("dns-add", one.namespace, "-h", "one.weave.local")
        assert router.owned() == {one.namespace: [f"{one.address}/12"]}
        assert router.weave("detach", one.namespace).split() == one.addresses
        assert router.owned() == {}
        await_names(made, set())
        fixed = made.attach(1, "ip:10.32.0.2/12", container=2)
        assert fixed.addresses == ["10.32.0.2"]
        with pytest.raises(LabError, match="already owned by"):
            made.attach(1, "ip:10.32.0.2/12", container=3)
        others = {made.attach(1, container=number).address for number in (4, 5)}
        assert "10.32.0.2" not in others and len(others) == 2
        assert section(router, "ipam")["Range"] == RANGE
        await_ready(made)


def test_a_container_that_ended_while_the_router_was_down() -> None:
    """Its address is free again and its name is gone; names that belong to no container are as they were."""
    with cluster(ipam=RANGE, dns=True) as made:
        flags = ("--dns-listen-address", "127.0.0.1:53")
        router = made.start(1, [], *flags)
        stays, ends = made.attach(1), made.attach(1, container=2)
        for one, name in ((stays, "stays"), (ends, "ends")):
            router.weave("dns-add", one.namespace, "-h", f"{name}.weave.local")
        router.weave("dns-add", "192.0.2.7", "-h", "outside.weave.local")
        router.stop(kill=True)
        run("ip", "netns", "del", ends.namespace)
        router = made.start(1, [], *flags)
        await_names(made, {"stays", "outside"})
        wait_until("its address is free", lambda: router.owned() == {stays.namespace: [f"{stays.address}/12"]}, GOSSIP)
        assert router.weave("dns-lookup", "outside") == "192.0.2.7\n"
