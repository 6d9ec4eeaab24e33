"""What ours and a real router say of one and the same mesh: the same lines, as people and scripts read them.

Source: CLI spec §6 and §7.
"""

import os
import re
from typing import Any

import pytest

from lab.router import RANGE, Router, peer_name
from tests import workflows
from tests.clusters import Cluster, cluster, mesh_links
from tests.rings import await_each, await_one_ring

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against"),
    pytest.mark.timeout(300),
]

MIXES = [
    pytest.param([1], id="one-real"),
    pytest.param([2, 3], id="two-real"),
    pytest.param([1, 2, 3], id="all-real", marks=pytest.mark.long),
]


def _settled(made: Cluster, password: str | None) -> None:
    # An address of ours for names alone would show: the real one takes none for that.
    made.start_all(3, "--dns-listen-address", "0.0.0.0:53", password=password)
    made.await_links(mesh_links(3))
    attached = workflows.attach_everywhere(made)
    for number, one in attached.items():
        made.routers[number].add_name(f"container{number}.weave.local", one.namespace, one.address)
    made.routers[1].add_name("outside.weave.local", "weave:extern", "192.0.2.1")
    await_each(made, "all names are known", lambda router: len(router.get("/status/dns").splitlines()) == 4)
    await_one_ring(made)
    await_each(made, "all tell the same of each other", lambda router: _tree(router) == _tree(made.routers[1]))


def _tree(router: Router) -> tuple[str, ...]:
    """The blocks of `status peers`, each with its lines in one order."""
    blocks = re.split(r"\n(?! )", router.get("/status/peers").rstrip("\n"))
    return tuple(sorted("\n".join([block.split("\n")[0], *sorted(block.split("\n")[1:])]) for block in blocks))


def _own_ipam_line(router: Router) -> str:
    return router.get("/status/ipam").splitlines()[0]


@pytest.mark.parametrize("password", [None, "secret"], ids=["plain", "encrypted"])
@pytest.mark.parametrize("foreign", MIXES)
def test_status_of_one_mesh(foreign: list[int], password: str | None) -> None:
    with cluster(foreign, REAL, ipam=RANGE, dns=True) as made:
        _settled(made, password)
        routers = made.routers
        assert len({router.get("/status/dns") for router in routers.values()}) == 1
        assert len({_ipam_lines(router) for router in routers.values()}) == 1
        for number, router in routers.items():
            name = f"{peer_name(number)}(host{number})"
            own = r" +\d+ IPs \(\d\d\.\d% of total\) \(1 active\)"
            assert re.fullmatch(re.escape(name) + own, _own_ipam_line(router))
            others = router.get("/status/ipam").splitlines()[1:]
            assert all(line.endswith("% of total) ") for line in others)
            assert {_column(line, encrypted=password is not None) for line in _connections(router)} == {""}
        assert len({_status(router) for router in routers.values()}) == 1


def _ipam_lines(router: Router) -> frozenset[str]:
    """The lines of `status ipam` but for who is active."""
    return frozenset(re.sub(r"\(\d+ active\)", "", line) for line in router.get("/status/ipam").splitlines())


def _connections(router: Router) -> list[str]:
    return router.get("/status/connections").splitlines()


def _column(line: str, *, encrypted: bool) -> str:
    """What is left of a line of `status connections` that is not as Weave Net has it."""
    encryption = "encrypted   " if encrypted else ""
    attributes = r"encrypted=truemtu=\d+" if encrypted else r"mtu=\d+"
    address = r"(?=.{21} )[\d.]+:\d+ *"
    return re.sub(rf"(->|<-) {address} established {encryption}sleeve [\da-f:]+\(host\d\) {attributes}", "", line)


def _status(router: Router) -> str:
    """The whole status, but for the version, the name and what differs from host to host."""
    text = re.sub(r"Version: .*\n", "Version\n", router.get("/status"))
    return re.sub(r"Name: .*\n", "Name\n", text)


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def test_report_and_metrics_have_what_the_real_ones_have() -> None:
    with cluster([1], REAL, ipam=RANGE, dns=True) as made:
        _settled(made, None)
        real, ours = made.routers[1].report(), made.routers[2].report()
        assert _keys(real) - {"VersionCheck", "Proxy", "Plugin"} <= _keys(ours)
        for part in ("Router", "IPAM", "DNS"):
            assert _keys(real[part]) <= _keys(ours[part]), part
        for part, rows in (("IPAM", "Entries"), ("DNS", "Entries"), ("Router", "Peers"), ("Router", "Connections")):
            assert _keys(real[part][rows][0]) <= _keys(ours[part][rows][0]), rows
        assert _rows(real["DNS"]["Entries"]) == _rows(ours["DNS"]["Entries"])
        assert _metrics(made.routers[1]) <= _metrics(made.routers[2])


def _rows(rows: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return sorted((row["Hostname"], row["Origin"], row["ContainerID"], row["Address"]) for row in rows)


def _metrics(router: Router) -> set[str]:
    """Names and types, of the router itself."""
    types = (line.removeprefix("# TYPE ") for line in router.get("/metrics").splitlines() if line.startswith("# TYPE "))
    return {line for line in types if line.startswith("weave_")}
