"""The table of cases over the mesh itself: two hosts with routers, by the kernel's data path and by sleeve.

Policy is each node's own: what crosses the overlay must arrive with the address that it was sent from, and pass the
rules of both hosts. With --long the whole table, else the cases with most to cross.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from lab.router import wait_until
from npc.base import Options
from tests.clusters import Cluster, cluster, mesh_links
from tests.npc.cases import CASES, FIXTURES
from tests.npc.populated import foreign, populate
from tests.npc.site import Site
from tests.npc.test_cases_kernel import run_case

Document = dict[str, Any]
_QUICK = ("default-deny-ingress", "default-deny-egress", "update-policy", "named-port", "sctp", "icmp")
_MTU = 1376


@pytest.fixture(scope="module", params=["fastdp", "sleeve"])
def place(request: pytest.FixtureRequest) -> Iterator[Site]:
    with cluster(fastdp=request.param == "fastdp") as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        made.await_routes()
        # A fast path is proved first; until then frames go over sleeve.
        wait_until("the path is the wanted one", lambda: _paths(made) == {request.param}, 60)
        nodes = {name: node["ips"] for name, node in FIXTURES["base"]["nodes"].items()}
        site = Site(made.underlay, nodes, mtu=_MTU)
        site.make(foreign())
        site.give_addresses()
        populate(site)
        yield site


def _paths(made: Cluster) -> set[str]:
    """What carries the routers' connections."""
    rows = (router.report()["Router"]["Connections"] or [] for router in made.routers.values())
    return {row["Attrs"]["name"] for listed in rows for row in listed if row["State"] == "established"}


def _cases() -> list[Any]:
    quick = [any(word in case["name"] for word in _QUICK) for case in CASES]
    rows = zip(CASES, quick, strict=True)
    return [pytest.param(case, id=case["name"], marks=() if soon else pytest.mark.long) for case, soon in rows]


@pytest.mark.parametrize("case", _cases())
def test_a_case(place: Site, case: Document) -> None:
    run_case(place, case, Options())
