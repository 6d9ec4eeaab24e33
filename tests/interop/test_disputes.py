"""A peer that was removed while it lived, out of reach, comes back with addresses in use: the mesh holds.

Among 2.8 routers alone this ends every connection of that peer, for ever. Source: IPAM spec §21 (D1, D3, D9).
"""

import os

import pytest

from lab.router import peer_name, wait_until
from tests.clusters import cluster, mesh_links
from tests.rings import await_one_ring, no_address_twice, owners

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.long,
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("foreign", [[1], [2]], ids=["the-removed-is-real", "the-remover-is-real"])
def test_removed_while_it_lived(foreign: list[int]) -> None:
    with cluster(foreign, REAL, ipam="10.32.0.0/24") as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        held = {number: router.allocate("own") for number, router in made.routers.items()}
        await_one_ring(made)
        made.underlay.cut(1)
        wait_until("host 1 is out of reach", lambda: "- unreachable!" in made.routers[2].get("/status/ipam"), 120)
        made.routers[2].remove_peer("host1")
        made.underlay.cut(1, down=False)
        made.await_links(mesh_links(3))
        await_one_ring(made)
        assert {number: router.owned()["own"] for number, router in made.routers.items()} == {
            number: [address] for number, address in held.items()
        }
        assert made.routers[1].allocate("more") not in held.values()
        assert 1 in owners(made.routers[3])
        assert peer_name(1) in made.routers[3].established()
        no_address_twice(made)
        for number, router in made.routers.items():
            assert number in foreign or not router.report()["IPAM"]["Disputes"]
