"""State over the life of routers: crashes in place, launches, who holds the same."""

import json
import subprocess
import sys

from lab.net import inside
from lab.router import RANGE, wait_until, weave
from tests.clusters import chain_links, cluster, mesh_links
from tests.rings import await_one_ring, no_address_twice


def test_restarted_in_place() -> None:
    """A killed router goes on with the peers it had, a stopped one with those it is given."""
    with cluster() as made:
        made.start(1, [])
        made.start(2, [])
        weave(made.underlay.host(1), "connect", made.address(2))
        made.await_links(mesh_links(2))
        made.routers[1].stop(kill=True)
        made.start(1, [])
        made.await_links(mesh_links(2))
        assert f"Restart/resume detected - using persisted peer list: [{made.address(2)}]" in made.routers[1].log
        assert made.routers[1].stop() == 0
        made.start(1, [])
        assert weave(made.underlay.host(1), "status", "targets") == ""


def test_who_holds_the_same() -> None:
    """Over a relay too: everybody says the same of the topology, and a change is known to all a moment later."""
    with cluster() as made:
        made.start_all(3, chain=True)
        made.await_links(chain_links(3))

        def said(number: int) -> dict[str, list[str]]:
            found = json.loads(made.routers[number].get("/status/agree", "application/json"))
            return {peer["NickName"]: peer["Says"] for peer in found["Peers"] if not peer["Differs"]}

        def all_agree() -> bool:
            return all(
                said(number) == {f"host{other}": ["topology"] for other in (1, 2, 3) if other != number}
                for number in (1, 2, 3)
            )

        wait_until("everybody hears that all agree", all_agree, 60)
        text = weave(made.underlay.host(1), "status", "agree")
        assert text.startswith("topology 2 agree with us (3 entries)\n")
        made.routers[3].stop(kill=True)
        wait_until("the one that is gone is forgotten", lambda: said(1) == {"host2": ["topology"]}, 60)


def test_a_second_router_on_the_same_state() -> None:
    with cluster() as made:
        first = made.start(1, [])
        made.start(2, [])
        command = [sys.executable, "-m", "weave_py.weaver", "--db-prefix", str(first.directory / "weave")]
        host = made.underlay.host(2)
        made.routers[2].stop()
        done = subprocess.run(inside(host.namespace, *command), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith(
            f"is in use by another router (pid {first.pid}): stop it first, or choose another --db-prefix"
        )


def test_the_doctor() -> None:
    """A healthy mesh has nothing; a host that is given another password is told so."""
    with cluster(ipam=RANGE, dns=True) as made:
        made.start_all(2, "--dns-upstream", "192.0.2.53", password="secret")
        made.await_links(mesh_links(2))
        made.await_routes()
        for number in (1, 2):
            made.routers[number].weave("attach", made.underlay.container(number))

        def findings(number: int) -> list[str]:
            router = made.routers[number]
            words = ("doctor", "--db-prefix", str(router.directory / "weave"), "--json")
            document = json.loads(router.weave(*words, check=False))
            assert document["NotChecked"] == {}
            return [f"{finding['Check']}: {finding['Remedy']}" for finding in document["Findings"]]

        wait_until("all is well", lambda: findings(1) == findings(2) == [], 60)
        made.start(3, [1], "--dns-upstream", "192.0.2.53", password="another")
        expected = "connections: the passwords differ: give both the same"
        wait_until("it is said what is wrong", lambda: expected in findings(3), 60)


def test_a_damaged_file() -> None:
    """It is moved aside and named. Nothing is given out before the ring is known again; what containers have is kept
    for them, and names that were registered in the meantime on other hosts are there."""
    with cluster(ipam=RANGE) as made:
        first, second = made.start(1, []), made.start(2, [1])
        made.await_links(mesh_links(2))
        held = [made.attach(1), made.attach(1, container=3), made.attach(2)]
        await_one_ring(made)
        first.stop(kill=True)
        second.stop()
        path = first.directory / "weavedata.sqlite"
        path.write_bytes(b"not what was written" * 1000)
        for beside in path.parent.glob("weavedata.sqlite-*"):
            beside.unlink()

        # Alone it knows nothing, and says so.
        made.start(1, [2])
        assert [aside.read_bytes()[:8] for aside in path.parent.glob("weavedata.sqlite.*")] == [b"not what"]
        lost = first.report()["State"]["Lost"]
        assert "weavedata.sqlite." in lost
        answer = made.routers[1].ask("POST", "/ip/early?timeout=2")
        assert answer.status == 503
        assert lost in made.routers[1].log

        # With the other it knows the ring again; the containers' addresses are theirs.
        made.start(2, [1])
        await_one_ring(made)
        owned = made.routers[1].owned()
        for container in held[:2]:
            assert [cidr.partition("/")[0] for cidr in owned[container.namespace]] == container.addresses
        given = {made.routers[1].allocate(f"late{number}").partition("/")[0] for number in range(20)}
        assert len(given) == 20
        assert not given & {address for container in held for address in container.addresses}
        no_address_twice(made)
        wait_until("the loss is over", lambda: made.routers[1].report()["State"]["Lost"] is None, 30)
