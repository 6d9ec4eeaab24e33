"""Containers that are no pods: reached like anybody by default, by nobody but their node with `--unknown=drop`."""

from ipaddress import ip_network

import pytest

from npc.base import Options
from npc.model import Model
from npc.plan import Hook
from npc.settings import UsageError, parse
from tests.npc.cases import Cluster
from tests.npc.nodes_kernel import Node
from tests.npc.site import Probe, Site

CLOSED = (ip_network("10.32.0.0/12"), ip_network("fd00:32::/32"))


@pytest.mark.parametrize("options", [Options(), Options(closed=CLOSED), Options(Hook.POSTROUTING, closed=CLOSED)])
def test_a_container_that_is_no_pod(place: Site, options: Options) -> None:
    model = Model()
    cluster = Cluster({"fixture": "base", "policies": []}, model)
    nodes = [Node(place, name, model, options) for name in place.hosts]

    def reach(source: str, destination: str) -> Probe:
        return Probe(place.namespace_of(source), source, destination, "TCP", 80)

    # It lives on n1; the second one asks from n2.
    askers = [("10.32.1.1", "10.32.3.1"), ("10.32.1.2", "10.32.3.1"), ("fd00:32:1::1", "fd00:32:3::1")]
    always = [("192.0.2.11", "10.32.3.1"), ("10.32.3.1", "10.32.1.1"), ("10.32.3.1", "10.32.1.2")]
    probes = [reach(*ends) for ends in (*askers, *always)]
    try:
        touched = model.take()
        for node in nodes:
            node.start(touched)
        assert all(place.reached(probes, [True] * 6))
        cluster.delete("Pod", "ops", "front")
        touched = model.take()
        for node in nodes:
            node.follow(touched)
            node.check()
        wanted = [not options.closed] * 3 + [True] * 3
        assert place.reached(probes, wanted) == wanted
    finally:
        for node in nodes:
            node.close()


def test_the_flag() -> None:
    environment = {"HOSTNAME": "n1", "IPALLOC_RANGE": "10.40.0.0/13"}
    assert parse([], environment).closed == ()
    assert parse(["--unknown=drop"], environment).closed == (ip_network("10.40.0.0/13"),)
    both = parse(["--unknown=drop", "--ipalloc-range=10.32.0.0/12,fd00:32::/32"], environment)
    assert both.closed == CLOSED
    with pytest.raises(UsageError, match="--ipalloc-range: '10/x' does not appear"):
        parse(["--unknown=drop", "--ipalloc-range=10/x"], environment)
