"""Thousands of random events over several peers, mixed with 2.8's rules or not, and the properties after each.

Never two users or owners of an address, the universe always covered, versions that only rise, space as the ring says,
what was answered is kept; and when the network is well again: agreement, and nobody waits for what there is.
Source: IPAM spec §20, properties 1-4, 6-8, 11, 12.
"""

from random import Random

import pytest

from tests.ipam.world import World

INITS = [
    ["consensus=4", "consensus=4", "consensus=4", "observer"],
    ["consensus=3"] * 3,
    ["seed=::1,::2", "seed=::1,::2", "observer", "observer"],
    ["consensus"] * 5,
    ["seed=::1", "observer", "observer", "observer"],
]
NORMAL_STEPS = 20_000
LONG_STEPS = 1_000_000


def simulate(seed: int, steps: int, *, mixed: bool = False) -> int:
    """One world, from its beginning to its rest, again and again; how many events that were."""
    rng = Random(seed)
    inits = INITS[seed % len(INITS)]
    olds = [number for number in range(1, len(inits) + 1) if mixed and rng.random() < 0.4]
    world = World(rng, inits, olds)
    while world.steps < steps:
        for _ in range(250):
            world.step()
        world.settle()
        assert world.core(world.living()[0]).ledger.ring
    assert world.answers > steps / 100
    return world.steps


def administer(seed: int, rounds: int) -> int:
    """Between random events: hosts that die for good, leave in order, or lose their disk."""
    rng = Random(seed)
    world = World(rng, INITS[seed % len(INITS)])
    for _ in range(rounds):
        for _ in range(100):
            world.step()
        peer, other = rng.sample(list(world.peers.values()), 2)
        match rng.randrange(3):
            case 0:
                world.remove_dead(peer, other)
            case 1:
                world.hand_over(peer)
            case 2:
                world.lose_state(peer)
    return world.steps


def run(steps: int, first_seed: int) -> int:
    """All kinds of worlds until there were so many events."""
    done, seed = 0, first_seed
    while done < steps:
        done += simulate(seed, 500) + simulate(seed, 500, mixed=True) + administer(seed, 3)
        seed += 1
    return done


def test_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(NORMAL_STEPS, first_seed=1)
    with capsys.disabled():
        print(f" [{done} simulated steps]", end="")
    assert done >= NORMAL_STEPS


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_million_steps(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(LONG_STEPS, first_seed=1000)
    with capsys.disabled():
        print(f" [{done} simulated steps]", end="")
    assert done >= LONG_STEPS
