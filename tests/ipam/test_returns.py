"""Empty pieces go back to the peer beside them: the ring does not crumble, nobody swaps, nobody gives what it needs.

Source: IPAM spec §21 (D13).
"""

from random import Random

from ipam.ranges import Range
from ipam.returns import Returns
from ipam.ring import Entry, Ring
from ipam.space import Space
from mesh.names import PeerName
from tests.ipam.test_reclaim import watch
from tests.ipam.world import UNIVERSE, World

ME, LOWER, HIGHER = PeerName(5), PeerName(1), PeerName(9)
START = UNIVERSE.start


def ring(*parts: tuple[int, PeerName]) -> Ring:
    """Of pieces that begin so many addresses after the universe does."""
    return Ring(UNIVERSE, tuple(Entry(START + at, peer, 0, 0) for at, peer in parts), (ME,))


def given(
    each: Ring, *, used: tuple[int, ...] = (), known: bool = True, after: float = 600.0
) -> tuple[Range, PeerName] | None:
    """What is given back when all was as it is for so long."""
    space, returns = Space(), Returns(ME)
    space.update(each.ranges_of(ME))
    for number in used:
        assert space.claim(START + number)
    assert returns.due(each, space, lambda _: known, 1000.0) is None
    return returns.due(each, space, lambda _: known, 1000.0 + after)


def test_a_small_empty_piece_goes_to_the_larger_side() -> None:
    crumbled = ring((0, ME), (40, LOWER), (46, ME), (50, HIGHER))
    assert given(crumbled) == (Range(START + 46, START + 50), HIGHER)
    assert given(crumbled, after=599) is None
    assert given(crumbled, known=False) is None
    assert given(crumbled, used=(47,)) is None


def test_pieces_are_those_of_owners_not_of_tokens() -> None:
    crumbled = ring((0, ME), (40, LOWER), (46, ME), (48, ME), (50, HIGHER), (52, HIGHER))
    assert given(crumbled) == (Range(START + 46, START + 50), HIGHER)


def test_what_is_large_or_all_we_have_is_kept() -> None:
    assert given(ring((0, ME), (20, LOWER), (44, ME))) is None
    assert given(ring((0, ME), (4, LOWER))) is None
    assert given(ring((0, ME), (20, LOWER), (40, ME), (44, LOWER)), used=tuple(range(10))) is None


def test_of_equal_neighbours_only_one_gives() -> None:
    assert given(ring((0, ME), (40, HIGHER), (44, ME), (48, HIGHER), (52, HIGHER)), used=()) is not None
    alike = ring((0, ME), (56, LOWER), (60, ME))
    assert given(alike) == (Range(START + 60, START + 64), LOWER)
    assert given(ring((0, ME), (56, HIGHER), (60, ME))) is None


def test_one_piece_a_minute() -> None:
    each = ring((0, ME), (40, LOWER), (44, ME), (46, LOWER), (50, ME), (52, LOWER))
    space, returns = Space(), Returns(ME)
    space.update(each.ranges_of(ME))
    due = [now for now in range(0, 800, 5) if returns.due(each, space, lambda _: True, float(now))]
    assert due == [600, 660, 720, 780]


def pieces(world: World) -> int:
    ring_of_one = world.core(world.peers[1]).ledger.ring
    owners = [entry.peer for entry in ring_of_one.entries]
    return sum(before != owner for before, owner in zip([None, *owners], owners, strict=False))


def test_a_ring_that_crumbled_heals_when_the_containers_are_gone() -> None:
    world = World(Random(3), ["seed=::1,::2,::3"] * 3)
    world.settle()
    for number in range(24, 64, 5):
        world.claim(world.peers[1], f"c{number}", number, lenient=False)
        watch(world, 5)
    crumbled = pieces(world)
    for peer in world.living():
        for ident in list(world.core(peer).ledger.holders.owned):
            world.give_back(peer, ident, whole=True)
    watch(world, 1800)
    healed = pieces(world)
    assert crumbled > 10 and healed == 3
    watch(world, 1800)
    assert pieces(world) == healed
    world.settle()
