"""Owners that do not come back lose what they own: once, by the majority, and only where that is wanted.

Source: IPAM spec §21 (D8).
"""

import logging
from random import Random

import pytest

from ipam.operations import Order
from ipam.reclaim import Reclaim
from mesh.names import PeerName
from tests.ipam.world import IDENTS, UNIVERSE, World

FIVE = ["seed=::1,::2,::3,::4,::5"] * 5
AFTER = 60.0


def begun(reclaim: float | None = AFTER, inits: list[str] = FIVE, seed: int = 1) -> World:
    world = World(Random(seed), inits, reclaim=reclaim)
    world.settle()
    return world


def watch(world: World, seconds: float) -> None:
    """Time goes by, everything is heard, all by the same clock."""
    for _ in range(int(seconds / 5)):
        world.now += 5
        for peer in world.living():
            world.tick(peer)
            world.commit(peer)
        world.flush()
        for peer in world.living():
            world.check(peer)


def owned(world: World, seen_by: int, owner: int) -> int:
    ring = world.core(world.peers[seen_by]).ledger.ring
    return sum(each.size for each in ring.ranges_of(PeerName(owner)))


def takers(world: World) -> list[int]:
    """Who owns more than in the beginning."""
    first = begun(None)
    return [n for n in world.peers if owned(world, 2, n) > owned(first, 2, n)]


def heal(world: World) -> None:
    """Everybody gives back what it has: then nothing is disputed, and all is well."""
    world.groups = {}
    for peer in world.peers.values():
        if peer.allocator is None:
            world.start(peer)
    for _ in range(3):
        gossip(world)
        watch(world, 10)
    for peer in world.living():
        for ident in list(world.core(peer).ledger.holders.owned):
            world.give_back(peer, ident, whole=True)
        world.commit(peer)
    world.settle()
    assert not any(world.core(peer).ledger.disputes() for peer in world.living())


def gossip(world: World) -> None:
    for peer in world.living():
        for other in world.living():
            if other is not peer:
                world.gossip(peer, other)
    world.flush()


def test_the_lowest_takes_over_once_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.ipam.world.LOG", logging.getLogger("reclaim"))
    world = begun()
    lost = owned(world, 2, 3)
    world.wipe(world.peers[3])
    watch(world, AFTER)
    assert owned(world, 2, 3) == lost
    watch(world, 15)
    assert owned(world, 2, 3) == 0
    assert takers(world) == [1]
    watch(world, 4 * AFTER)
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert said == [f"Took over {lost} addresses of 00:00:00:00:00:03(host3), out of reach for 65 seconds"]
    world.start(world.peers[3])
    world.settle()


def test_where_the_lowest_is_gone_the_next_one_does() -> None:
    world = begun()
    world.die(world.peers[1])
    watch(world, 2 * AFTER)
    assert takers(world) == [2]


def test_it_is_off_by_default() -> None:
    world = begun(None)
    world.die(world.peers[3])
    watch(world, 100 * AFTER)
    assert takers(world) == []


def test_the_smaller_side_takes_nothing() -> None:
    world = begun()
    world.groups = {1: 1, 2: 1}
    watch(world, 2 * AFTER)
    assert [owned(world, 1, number) for number in (3, 4, 5)] == [owned(begun(None), 1, n) for n in (3, 4, 5)]
    assert [owned(world, 3, number) for number in (1, 2)] == [0, 0]
    world.settle()
    assert takers(world) == [3]


def test_half_is_no_majority() -> None:
    world = begun(inits=["seed=::1,::2"] * 2)
    world.die(world.peers[2])
    watch(world, 10 * AFTER)
    assert owned(world, 1, 2) > 0


def test_who_was_cut_off_itself_has_seen_nobody_missing() -> None:
    world = begun()
    world.groups = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    watch(world, 4 * AFTER)
    world.groups = {5: 1}
    watch(world, AFTER)
    assert owned(world, 1, 5) > 0
    world.groups = {}
    world.settle()
    assert takers(world) == []


def test_who_slept_has_seen_nobody_missing() -> None:
    owners = {PeerName(n) for n in (1, 2, 3)}
    reclaim = Reclaim(PeerName(1), 60.0)
    assert reclaim.due(owners, [], 0.0) == []
    assert reclaim.due(owners, [(PeerName(3), 3600.0)], 3600.0) == []
    for seconds in range(5, 65, 5):
        assert reclaim.due(owners, [(PeerName(3), 3600.0 + seconds)], 3600.0 + seconds) == []
    assert reclaim.due(owners, [(PeerName(3), 3665.0)], 3665.0) == [(PeerName(3), 3665.0)]


def test_who_left_takes_nothing() -> None:
    world = begun()
    world.core(world.peers[1]).shut_down(Order())
    world.pump(world.peers[1], commit=True)
    world.die(world.peers[3])
    watch(world, 2 * AFTER)
    assert [owned(world, 2, number) for number in (1, 3)] == [0, 0]


def test_a_peer_that_comes_back_keeps_what_it_uses() -> None:
    world = begun()
    world.shares = True
    three = world.peers[3]
    world.allocate(three, "c", UNIVERSE)
    world.commit(three)
    world.die(three)
    watch(world, 2 * AFTER)
    assert owned(world, 1, 3) == 0
    world.start(three)
    assert world.held_by(three, "c")
    world.settle()
    assert world.held_by(three, "c")
    assert not any(world.core(peer).ledger.disputes() for peer in world.living())
    world.shares = False
    world.check_all()


def crashes(world: World, rng: Random) -> None:
    """Somebody is away for long, dead or alone."""
    peer = rng.choice(list(world.peers.values()))
    if rng.random() < 0.5:
        world.die(peer)
    else:
        world.groups = {peer.number: 1}
    watch(world, 2 * AFTER)
    world.groups = {}
    if peer.allocator is None:
        world.start(peer)


@pytest.mark.parametrize("seed", range(8))
def test_any_world(seed: int) -> None:
    """Random events, and owners that are away for long: no peer loses what it uses, and it ends well."""
    world = begun(seed=seed)
    world.shares = True
    for _ in range(3):
        for _ in range(150):
            world.step()
        world.groups = {}
        crashes(world, world.rng)
    heal(world)
    for peer in world.living():
        world.allocate(peer, IDENTS[0], UNIVERSE)
    world.settle()
