"""State that changes hands: what a real Weave Net router wrote is taken over, and what we write it starts from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ipam.seams import Change, Cidr, Owned
from lab.router import RANGE, Router, peer_name, wait_until
from mesh.names import format_peer_name
from tests.clusters import chain_links, cluster, mesh_links
from weave_py import weave_net
from weave_py.store import Store
from weave_py.store_ipam import IpamJournal

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.timeout(300),
]


def owned(router: Router) -> dict[str, list[str]]:
    """Who holds what, as a router tells it."""
    rows = json.loads(router.get("/ip", "application/json"))["owned"] or ()
    return {row["containerid"]: row["addrs"] for row in rows}


def ring(router: Router) -> list[tuple[Any, ...]]:
    """Who owns which part of the range, as a router tells it; versions rise with every report of free addresses."""
    entries = router.report()["IPAM"]["Entries"] or ()
    return [(entry["Token"], entry["Size"], entry["Peer"]) for entry in entries]


def prefix(router: Router) -> str:
    return str(router.directory / "weave")


def test_there_and_back() -> None:
    """A node of two changes hands and comes back: the same name, ring and addresses, and the other never complains."""
    with cluster([1, 2], REAL, ipam=RANGE) as made:
        made.start(1, [2])
        made.start(2, [1])
        made.await_links(mesh_links(2))
        for container in ("c1", "c2", "c3"):
            made.routers[2].post(f"/ip/{container}")
        made.routers[1].post("/ip/other")
        made.routers[2].ask("DELETE", "/ip/c2")
        wait_until("one ring", lambda: ring(made.routers[1]) == ring(made.routers[2]) != [], 30)
        held, divided = owned(made.routers[2]), ring(made.routers[2])
        assert set(held) == {"c1", "c3"}
        assert made.routers[2].stop() == 0
        written = Path(f"{prefix(made.routers[2])}data.db").read_bytes()

        store = Store(prefix(made.routers[2]))
        assert store.imported == f"{prefix(made.routers[2])}data.db"
        assert store.lost is None
        name = store.peer_name()
        assert name is not None and format_peer_name(name) == peer_name(2)
        assert store.direct_peers() == [made.address(1)]
        journal = IpamJournal(store)
        saved = journal.load()
        assert saved is not None and saved.ring
        assert {ident: [str(cidr) for cidr in held.cidrs] for ident, held in saved.owned.items()} == held
        assert Path(f"{prefix(made.routers[2])}data.db").read_bytes() == written

        # What we do with it while it is ours: one more holder, one less.
        more = Cidr.parse(held["c3"][0])
        journal.commit(Change(owned={"c1": None, "c3": None, "ours": Owned(False, (more,))}))
        store.hand_back()
        store.close()

        made.start(2, [])
        made.await_links(mesh_links(2))
        assert owned(made.routers[2]) == {"ours": held["c3"]}
        assert ring(made.routers[2]) == divided
        assert made.routers[2].report()["Router"]["Name"] == peer_name(2)
        assert "Initialising with persisted data" in made.routers[2].log
        # It goes on giving addresses from its own part.
        got = made.routers[2].post("/ip/new")
        assert got.partition("/")[2] == RANGE.partition("/")[2]
        assert "conflict" not in made.routers[1].log and "Received update for IP range I own" not in made.routers[1].log
        assert made.routers[2].stop() == 0
        # And its file is the newer one for us.
        store = Store(prefix(made.routers[2]))
        assert store.imported is not None
        assert {ident: list(held.cidrs) for ident, held in store.owned().items()} == {"ours": held["c3"], "new": [got]}
        store.close()


def test_a_node_moves_over_and_back() -> None:
    """Real, ours, real again on the same host, while its neighbour is real all along: what each gave out stays."""
    with cluster([1, 2], REAL, ipam=RANGE) as made:
        made.start(1, [2])
        made.start(2, [1])
        made.await_links(mesh_links(2))
        given = {ident: made.routers[2].allocate(ident) for ident in ("a", "b")}
        made.routers[1].allocate("other")
        wait_until("one ring", lambda: ring(made.routers[1]) == ring(made.routers[2]) != [], 30)
        divided = ring(made.routers[1])
        assert made.routers[2].stop() == 0

        made.foreign = frozenset({1})
        ours = made.start(2, [1])
        made.await_links(mesh_links(2))
        assert f"Took over the state of Weave Net from {prefix(ours)}data.db" in ours.log
        assert owned(ours) == {ident: [cidr] for ident, cidr in given.items()}
        assert ring(ours) == divided
        given["c"] = ours.allocate("c")
        ours.ask("DELETE", "/ip/a")
        del given["a"]
        assert ours.stop() == 0
        assert ours.weave("hand-back", "--db-prefix", prefix(ours)).strip() == f"{prefix(ours)}data.db"

        made.foreign = frozenset({1, 2})
        real = made.start(2, [1])
        made.await_links(mesh_links(2))
        assert owned(real) == {ident: [cidr] for ident, cidr in given.items()}
        assert ring(real) == divided
        given["d"] = real.allocate("d")
        assert len(set(given.values())) == len(given)
        first = made.routers[1]
        assert first.allocate("more") not in given.values()
        assert first.report()["Router"]["TerminationCount"] <= 3, "only our ends and starts cost a connection"
        assert real.stop() == 0

        # And once more: the real router's file is the newer one.
        made.foreign = frozenset({1})
        ours = made.start(2, [1])
        made.await_links(mesh_links(2))
        assert owned(ours) == {ident: [cidr] for ident, cidr in given.items()}


def test_a_file_of_many_pages() -> None:
    """A thousand holders: their value spans pages; the real router's file and ours are read by the other."""
    with cluster([1], REAL, ipam=RANGE) as made:
        router = made.start(1, [], "--ipalloc-init", "consensus=1")
        for number in range(40):
            router.post(f"/ip/container-{number}")
        held, divided = owned(router), ring(router)
        assert router.stop() == 0
        store = Store(prefix(router))
        assert {ident: list(who.cidrs) for ident, who in store.owned().items()} == held
        many = {
            f"{'0' * 60}{number:04d}": Owned(False, (Cidr.parse(f"10.33.{number // 250}.{number % 250 + 1}/12"),))
            for number in range(1000)
        }
        IpamJournal(store).commit(Change(owned=many))
        path = store.hand_back()
        store.close()
        assert os.path.getsize(path) > 20 * 4096
        router = made.start(1, [])
        assert ring(router) == divided
        assert owned(router) == {**held, **{ident: [str(cidr) for cidr in who.cidrs] for ident, who in many.items()}}
        # It rewrites the file by its own means, and that is read again.
        router.post("/ip/one-more")
        assert router.stop() == 0
        assert len(weave_net.read(path).owned) == 1041


def test_a_real_neighbour_holds_the_same() -> None:
    """Topology and ring of a real router are seen in its gossip, also after addresses were given out on both."""
    with cluster([2], REAL, ipam=RANGE) as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        for number in (1, 2, 3):
            for container in range(5):
                made.routers[number].post(f"/ip/c{number}{container}")

        def said(number: int) -> dict[str, tuple[list[str], list[str]]]:
            found = json.loads(made.routers[number].get("/status/agree", "application/json"))
            return {
                peer["NickName"]: (peer["Says"], [difference["Subject"] for difference in peer["Differs"]])
                for peer in found["Peers"]
            }

        both = ["topology", "ring"]
        expected: dict[str, tuple[list[str], list[str]]] = {"host2": (both, []), "host3": (both, [])}
        wait_until("host 1 finds all agreed", lambda: said(1) == expected, 100)


def test_digests_pass_a_real_router() -> None:
    """Ours at both ends of a chain hear each other through one that knows nothing of it, and say so of that one."""
    with cluster([2], REAL) as made:
        made.start_all(3, chain=True)
        made.await_links(chain_links(3))

        def said(number: int) -> dict[str, list[str]]:
            found = json.loads(made.routers[number].get("/status/agree", "application/json"))
            return {peer["NickName"]: peer["Says"] for peer in found["Peers"] if not peer["Differs"]}

        # What the real one holds shows in what it gossips every 30 s.
        expected = {"host2": ["topology"], "host3": ["topology"]}
        wait_until("host 1 hears host 3, and sees what host 2 holds", lambda: said(1) == expected, 90)
        expected_too = {"host1": ["topology"], "host2": ["topology"]}
        wait_until("host 3 hears host 1", lambda: said(3) == expected_too, 90)
        text = made.routers[1].get("/status/agree")
        assert "(host2) runs Weave Net 2.8: what is known of it is what it gossips (topology)\n" in text
        terminations = [router.report()["Router"]["TerminationCount"] for router in made.routers.values()]
        assert terminations == [0, 0, 0]
