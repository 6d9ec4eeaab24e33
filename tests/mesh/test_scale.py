"""Many routers with a bounded number of neighbours: how fast news is everywhere, on virtual time."""

import pytest

from tests.mesh.sim import Network

DEGREE = 16
KNOWN_WITHIN = 5.0


def formed(count: int) -> Network:
    """A mesh of nodes that were each given one that was there before."""
    network = Network(5)
    nodes = [network.add(number, mesh_degree=DEGREE, conn_limit=0) for number in range(1, count + 1)]
    for before, node in enumerate(nodes[1:], 1):
        node.connect([network.rng.choice(nodes[: min(before, 64)])])
    assert network.clock.run(120, network.agree, check=2.0)
    # A whole round of digests: nothing is left to say.
    network.clock.run(40)
    assert network.agree()
    return network


@pytest.mark.parametrize(
    "count",
    [150, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_a_newcomer_and_the_death_of_a_tenth_are_known_everywhere(count: int) -> None:
    network = formed(count)
    degrees = [len(node.router.connections) for node in network.nodes.values()]
    assert min(degrees) >= DEGREE - 2
    assert sorted(degrees)[count // 2] <= 2 * DEGREE
    network.add(count + 1, mesh_degree=DEGREE, conn_limit=0).connect([network.nodes[1]])
    assert network.clock.run(KNOWN_WITHIN, network.agree)
    network.clock.run(40)
    for number in network.rng.sample(sorted(network.nodes), count // 10):
        network.nodes[number].die()
    assert network.clock.run(KNOWN_WITHIN, network.agree)
