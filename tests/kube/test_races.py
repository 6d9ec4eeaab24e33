"""Routers that all want to remove the same peers: one does, whatever the order of requests, also after crashes."""

import asyncio
import json
from collections import Counter
from random import Random

import pytest

from kube.reclaim import Registry
from kube.registry import Listed
from tests.kube.nodes import Direct, node
from tests.kube.objects import Objects


def named(number: int) -> Listed:
    return Listed(f"00:00:00:00:00:{number:02x}", f"node-{number}")


class Race:
    """`alive` routers run, `gone` are listed and have no nodes."""

    def __init__(self, seed: int, alive: int, gone: int) -> None:
        self.rng = Random(seed)
        self.objects = Objects()
        self.alive = [named(number) for number in range(alive)]
        self.gone = [named(100 + number) for number in range(gone)]
        self.removals: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        for _, name in self.alive:
            self.objects.put("nodes", node(name))

    def registry(self, own: Listed) -> Registry:
        return Registry(Direct(self.objects, self.rng), own, rng=self.rng, sleep=lambda seconds: asyncio.sleep(0))

    async def remove(self, peer: str) -> None:
        self.under_way[peer] += 1
        assert self.under_way[peer] == 1, "two at once"
        try:
            for _ in range(self.rng.randint(0, 5)):
                await asyncio.sleep(0)
            self.removals[peer] += 1
        finally:
            self.under_way[peer] -= 1

    async def until_done(self, own: Listed) -> None:
        registry = self.registry(own)
        await registry.add()
        while not await registry.reclaim(self.remove):
            await asyncio.sleep(0)

    def annotations(self) -> dict[str, str]:
        held = self.objects.get("configmaps", "weave-net", "kube-system")
        return dict(held["metadata"]["annotations"])

    def check(self) -> None:
        annotations = self.annotations()
        listed = {entry["PeerName"] for entry in json.loads(annotations.pop("kube-peers.weave.works/peers"))["Peers"]}
        assert listed == {peer for peer, _ in self.alive}
        assert not annotations, "a lock was left"


@pytest.mark.parametrize("seed", range(40))
async def test_each_departed_peer_is_removed_once(seed: int) -> None:
    race = Race(seed, alive=2 + seed % 4, gone=1 + seed % 3)
    await asyncio.gather(*(race.registry(gone).add() for gone in race.gone))
    await asyncio.gather(*(race.until_done(own) for own in race.alive))
    race.check()
    assert race.removals == Counter({peer: 1 for peer, _ in race.gone})


@pytest.mark.parametrize("seed", range(40))
async def test_crashes_leave_no_lock_and_nobody_unremoved(seed: int) -> None:
    """Routers end at any request and start again; one holder of a lock never comes back, its node goes as well."""
    race = Race(1000 + seed, alive=3, gone=2)
    await asyncio.gather(*(race.registry(gone).add() for gone in race.gone))
    doomed = race.alive[-1]
    for turns in range(6):
        tasks = [asyncio.create_task(race.until_done(own)) for own in race.alive]
        for _ in range(race.rng.randint(1, 25 * (turns + 1))):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if turns == 3:
            race.alive.remove(doomed)
            race.objects.remove("nodes", doomed.node)
    await asyncio.gather(*(race.until_done(own) for own in race.alive))
    race.check()
    assert all(race.removals[peer] >= 1 for peer, _ in race.gone)


async def test_thirty_nodes_start_at_once() -> None:
    """All are listed in the end, and the object was made once."""
    race = Race(7, alive=30, gone=0)
    await asyncio.gather(*(race.until_done(own) for own in race.alive))
    race.check()
    assert len(race.objects.all("configmaps")) == 1
