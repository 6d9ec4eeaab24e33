"""A peer that was removed while it lived, and other conflicts: faults of allocation, and of nothing else.

Source: IPAM spec §21 (D1-D3, D7, D9).
"""

from random import Random

import pytest

from ipam.operations import Order
from tests.ipam.world import IDENTS, SUBNETS, UNIVERSE, Peer, World


def together(inits: list[str], seed: int = 1) -> World:
    world = World(Random(seed), inits)
    world.settle()
    world.shares = True
    return world


def taken_over(world: World, victim: Peer, by: Peer) -> None:
    """An administrator believes that a peer is dead, which is only out of reach."""
    world.groups = {victim.number: 1}
    world.core(by).take_over(Order(), f"host{victim.number}")
    world.pump(by, commit=True)
    world.groups = {}


def settled(world: World, rounds: int = 6) -> None:
    """Everything is said and heard; that all agree is not asked for."""
    for _ in range(rounds):
        world.now += 5
        for peer in world.living():
            world.tick(peer)
            world.commit(peer)
        for peer in world.living():
            for other in world.living():
                if other is not peer:
                    world.gossip(peer, other)
        world.flush()
        for peer in world.living():
            world.check(peer)


def test_a_living_peer_gets_back_what_it_uses() -> None:
    world = together(["seed=::1,::2"] * 2)
    one, two = world.peers[1], world.peers[2]
    world.allocate(one, "c1", UNIVERSE)
    world.commit(one)
    world.settle()
    taken_over(world, one, two)
    assert world.core(two).ledger.ring.ranges_of(one.name) == []
    world.settle()
    assert not any(world.core(peer).ledger.disputes() for peer in world.living())
    assert world.held_by(one, "c1")
    assert world.core(two).ledger.ring.owner(UNIVERSE.start + 1) == one.name


def both_use_it(number: int = 1) -> tuple[World, Peer, Peer]:
    """The first half is one peer's by its own word, the other's by an administrator's; both have given out of it.

    The first one address 1, the other address `number`.
    """
    world = together(["seed=::1,::2"] * 2)
    one, two = world.peers[1], world.peers[2]
    world.allocate(one, "c1", UNIVERSE)
    world.commit(one)
    world.settle()
    taken_over(world, one, two)
    world.groups = {1: 1}
    world.claim(two, "x", number, lenient=False)
    world.commit(two)
    world.groups = {}
    settled(world)
    return world, one, two


def test_each_gets_what_it_uses() -> None:
    world, one, two = both_use_it(9)
    world.shares = False
    world.settle()
    assert not any(world.core(peer).ledger.disputes() for peer in (one, two))
    assert world.held_by(one, "c1")
    assert world.held_by(two, "x")
    ring = world.core(one).ledger.ring
    assert [ring.owner(UNIVERSE.start + number) for number in (1, 9)] == [one.name, two.name]


def test_what_both_use_is_kept_and_nothing_more_is_given() -> None:
    world, one, two = both_use_it()
    for peer, other, used in ((one, two, "10.0.0.1 (c1)"), (two, one, "10.0.0.1 (x)")):
        ledger = world.core(peer).ledger
        (dispute,) = ledger.disputes()
        assert ledger.explain(dispute) == (
            f"10.0.0.0-10.0.0.31 is ours, and 00:00:00:00:00:0{other.number} says it is theirs: nothing is given out"
            f" of it. In use here: {used}; end these and start them again, and they get other addresses"
        )
        assert ledger.space.withheld.size == 31
    world.claim(two, "y", 10, lenient=False)
    assert not world.held_by(two, "y")
    assert "is disputed" in world.refusals[-1]


@pytest.mark.parametrize(("number", "ident"), [(1, "c1"), (2, "x")])
def test_the_remedy_helps_on_either_side(number: int, ident: str) -> None:
    world, _, _ = both_use_it()
    peer = world.peers[number]
    world.give_back(peer, ident, whole=True)
    world.allocate(peer, ident, UNIVERSE)
    world.commit(peer)
    world.settle()
    assert not any(world.core(each).ledger.disputes() for each in world.living())
    assert world.held_by(peer, ident)
    world.shares = False
    world.check_all()


def test_an_idle_peer_gives_way() -> None:
    world = together(["seed=::1,::2"] * 2)
    one, two = world.peers[1], world.peers[2]
    taken_over(world, one, two)
    world.settle()
    assert not world.core(one).ledger.disputes()
    assert world.core(one).ledger.ring.ranges_of(one.name) == []
    world.allocate(one, "c1", UNIVERSE)
    world.settle()
    assert world.held_by(one, "c1")


def test_a_dispute_is_known_again_after_a_restart() -> None:
    world, one, two = both_use_it()
    for peer, ident in ((one, "c1"), (two, "x")):
        world.die(peer)
        world.start(peer)
        assert world.held_by(peer, ident)
    settled(world)
    assert [len(world.core(peer).ledger.disputes()) for peer in (one, two)] == [1, 1]


def test_a_second_removal_ends_a_dispute_with_the_dead() -> None:
    world, one, two = both_use_it()
    world.wipe(one)
    world.core(two).take_over(Order(), "00:00:00:00:00:01")
    world.pump(two, commit=True)
    assert not world.core(two).ledger.disputes()
    assert world.core(two).ledger.space.withheld.size == 0


def test_of_two_removals_at_once_one_stands() -> None:
    world = together(["seed=::1,::2,::3"] * 3)
    one, two, three = world.peers.values()
    world.groups = {1: 1, 2: 2, 3: 3}
    for peer in (two, three):
        world.core(peer).take_over(Order(), "host1", force=True)
        world.pump(peer, commit=True)
    world.wipe(one)
    world.groups = {}
    world.settle()
    assert not any(world.core(peer).ledger.disputes() for peer in world.living())


@pytest.mark.parametrize("seed", range(12))
def test_any_removal_of_the_living(seed: int) -> None:
    """Random events before and after: no peer loses what it uses, and when all are gone the rings are one again."""
    rng = Random(seed)
    world = World(rng, ["seed=::1,::2,::3"] * 3)
    world.shares = True
    for _ in range(150):
        world.step()
    world.settle()
    victim, by = rng.sample(list(world.peers.values()), 2)
    taken_over(world, victim, by)
    for _ in range(300):
        world.step()
    settled(world)
    for peer in world.living():
        for ident in list(world.core(peer).ledger.holders.owned):
            world.give_back(peer, ident, whole=True)
        world.commit(peer)
    world.settle()
    assert not any(world.core(peer).ledger.disputes() for peer in world.living())
    for peer in world.living():
        world.allocate(peer, IDENTS[0], SUBNETS[0])
    world.settle()
