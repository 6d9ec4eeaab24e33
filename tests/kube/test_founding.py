"""What the cluster's record says about the first ring, tried on whole allocators: never two rings, whoever meets first.

Source: Kubernetes and CNI spec §3.1 step 3; IPAM spec §10, D11 of §21.
"""

import asyncio
from random import Random

import pytest

from kube.reclaim import Registry
from kube.registry import Listed
from tests.ipam.world import UNIVERSE, World
from tests.kube.nodes import Direct, node
from tests.kube.objects import Objects


class Nodes:
    """Nodes that start and ask how the first ring comes about, as `weave-kube` does."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.objects = Objects()

    def register(self, *numbers: int) -> None:
        for number in numbers:
            self.objects.put("nodes", node(f"node-{number}"))

    def registry(self, number: int) -> Registry:
        own = Listed(f"00:00:00:00:00:{number:02x}", f"node-{number}")
        return Registry(Direct(self.objects, self.rng), own, rng=self.rng, sleep=lambda seconds: asyncio.sleep(0))

    async def start(self, number: int) -> str:
        """Its `--ipalloc-init`."""
        registry = self.registry(number)
        count = await registry.consensus(self.objects.all("nodes"))
        await registry.add()
        return f"consensus={count}"


def rings(world: World) -> list[bool]:
    return [bool(world.core(peer).ledger.ring.entries) for peer in world.living()]


def pass_time(world: World, rounds: int) -> None:
    """Everybody wants an address, groups talk among themselves."""
    for peer in world.living():
        world.allocate(peer, f"c{peer.number}", UNIVERSE)
    for _ in range(rounds):
        world.now += 5
        for peer in world.living():
            world.tick(peer)
            for other in world.living():
                if other is not peer:
                    world.gossip(peer, other)
        world.flush()


@pytest.mark.parametrize("founded", [True, False])
async def test_two_that_join_a_single_node_and_meet_each_other_first(founded: bool) -> None:
    """The first node began a ring alone, as it should; the others wait for it, and counting alone they would not."""
    nodes = Nodes(1)
    nodes.register(1)
    inits = [await nodes.start(1)]
    if founded:
        await nodes.registry(1).founded()
    nodes.register(2, 3)
    inits += await asyncio.gather(nodes.start(2), nodes.start(3))
    for wise in (True, False):
        world = World(Random(1), inits if wise else ["consensus=1", "consensus=3", "consensus=3"])
        world.groups = {1: 0, 2: 1, 3: 1}
        pass_time(world, 20)
        assert rings(world) == [True, not wise, not wise]
        if wise:
            world.settle()
            assert rings(world) == [True, True, True]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
async def test_nodes_that_start_together(size: int) -> None:
    """Of any size, and torn apart at random: at most one part begins a ring, and in the end it is everybody's."""
    for seed in range(3):
        nodes = Nodes(100 * size + seed)
        nodes.register(*range(1, size + 1))
        inits = await asyncio.gather(*map(nodes.start, range(1, size + 1)))
        assert set(inits) == {f"consensus={size}"}
        world = World(nodes.rng, inits)
        for _ in range(4):
            world.partition()
            pass_time(world, 2)
        world.settle()
        assert all(rings(world))


@pytest.mark.parametrize("seed", range(5))
async def test_a_cluster_that_grows(seed: int) -> None:
    """Some nodes come at once, and meet each other before those who have a ring; then the next ones."""
    nodes = Nodes(seed)
    nodes.register(1)
    inits = [await nodes.start(1)]
    await nodes.registry(1).founded()
    batches = [range(1, 2)]
    while len(inits) < 7:
        batches.append(range(len(inits) + 1, len(inits) + 1 + nodes.rng.randint(1, 3)))
        nodes.register(*batches[-1])
        inits += await asyncio.gather(*map(nodes.start, batches[-1]))
    world = World(nodes.rng, inits)
    for peer in world.peers.values():
        world.die(peer)
    for number, batch in enumerate(batches):
        for fresh in batch:
            world.start(world.peers[fresh])
        world.groups = {peer: int(peer in batch) for peer in world.peers}
        pass_time(world, 10)
        assert [bool(world.core(world.peers[fresh]).ledger.ring.entries) for fresh in batch] == [not number] * len(
            batch
        )
        world.groups = {}
        pass_time(world, 4)
        assert all(rings(world))
    world.settle()
