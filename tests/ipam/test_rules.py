"""Rules of single operations: donation, lowest address first, containers that end, what is loaded, quorums.

Source: IPAM spec §2, §9, §11, §12, §14, §20 (properties 9, 10, 12, 13), §21 (D6, D7, D16).
"""

import logging
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam import wire
from ipam.account import reason, report
from ipam.founding import Init
from ipam.ledger import Ledger
from ipam.operations import Allocate, Answer, Claim, Order, Send
from ipam.ranges import Range, RangeSet, Subnet
from ipam.ring import Copy, Entry, Ring
from ipam.seams import Change, Cidr, JournalError, Owned, Saved
from ipam.space import Space
from ipam.wire import Kind
from mesh.names import PeerName
from tests.ipam import world as worlds
from tests.ipam.world import UNIVERSE, Peer, World
from weave_py.status_text import ipam_status

LOG = logging.getLogger("rules")
US, OTHER = PeerName(1), PeerName(2)


def cidr(text: str) -> Cidr:
    return Cidr.parse(text)


# --- donation ---


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(0, 63)), st.integers(0, 63), st.integers(0, 64))
def test_donations(used: set[int], start: int, end: int) -> None:
    space = Space()
    space.update([Range(0, 64)])
    for each in used:
        assert space.claim(each)
    wanted = Range(start, max(start, end))
    free = space.free.count(wanted)
    given_ = space.spare(wanted)
    if not free:
        assert given_ is None
        return
    assert given_ is not None
    assert wanted.start <= given_.start < given_.end <= wanted.end
    assert space.free.count(given_) == given_.size <= max(1, (free + 1) // 2)
    size = given_.size
    assert size & (size - 1) == 0
    assert given_.start % size == 0
    space.donate(given_)
    assert space.free.count(wanted) == free - size


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([(8, 16), (24, 32), (40, 48)], [], (40, 48)),
        ([(8, 16), (24, 32), (40, 48)], [(16, 20)], (8, 16)),
        ([(8, 16), (24, 32), (40, 48)], [(20, 24)], (24, 32)),
        ([(8, 16), (24, 32), (48, 64)], [(20, 24)], (48, 64)),
        ([(16, 32)], [], (24, 32)),
        ([(16, 32)], [(8, 16)], (16, 24)),
        ([(16, 32)], [(8, 16), (32, 33)], (24, 32)),
        ([(16, 32)], [(0, 8)], (24, 32)),
        ([(16, 17)], [(8, 16)], (16, 17)),
    ],
)
def test_of_equal_donations_the_one_beside_what_the_peer_has(
    ours: list[tuple[int, int]], theirs: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    space = Space()
    space.update(Range(*part) for part in ours)
    assert space.spare(Range(0, 64), [Range(*part) for part in theirs]) == Range(*expected)


def test_a_donation_joins_what_the_peer_has() -> None:
    ledger = Ledger(OTHER, UNIVERSE, None, LOG)
    ledger.seed([US, OTHER])
    assert ledger.give(UNIVERSE.range, US)
    quarter = UNIVERSE.size // 4
    assert RangeSet(ledger.ring.ranges_of(US)) == RangeSet([Range(UNIVERSE.start, UNIVERSE.start + 3 * quarter)])


def test_addresses_that_are_no_hosts_are_not_given_for_a_subnet() -> None:
    ledger = Ledger(US, UNIVERSE, None, LOG)
    ledger.seed([US])
    subnet = Subnet.parse("10.0.0.0/30")
    for ident in ("a", "b"):
        assert ledger.take(ident, subnet, is_container=False)
    assert not ledger.give(subnet.range, OTHER)
    # As addresses in their own right they are.
    assert ledger.give(Range(subnet.start, subnet.start + 1), OTHER)


# --- allocation ---


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=40))
def test_the_lowest_free_host_and_the_same_again(steps: list[tuple[str, bool]]) -> None:
    world = World(Random(1), ["seed=::1"])
    peer, subnet = world.peers[1], Subnet.parse("10.0.0.16/28")
    held: dict[str, int] = {}
    for ident, gives_back in steps:
        if gives_back:
            world.give_back(peer, ident, whole=True)
            world.commit(peer)
            held.pop(ident, None)
            continue
        world.allocate(peer, ident, subnet)
        world.commit(peer)
        lowest = min(set(range(subnet.hosts.start, subnet.hosts.end)) - set(held.values()))
        held.setdefault(ident, lowest)
        assert [int(each.addr) for each in world.core(peer).ledger.holders.of(ident)] == [held[ident]]


def test_the_rules_know_no_family() -> None:
    """Only texts and the wire do: a ring, a space and holders of IPv6 addresses."""
    universe = Subnet.parse("fd00:aa::/64")
    ledger, other = Ledger(US, universe, None, LOG), Ledger(OTHER, universe, None, LOG)
    ledger.seed([US])
    first = ledger.take("c1", universe, is_container=True)
    assert str(first) == "fd00:aa::1/64"
    subnet = Subnet.parse("fd00:aa:0:0:8000::/80")
    assert ledger.give(subnet.range, OTHER)
    assert ledger.ring.ranges_of(OTHER) == [Range(subnet.start + subnet.size // 2, subnet.end)]
    ring = Copy(universe.range, US, ledger.ring.entries, ledger.ring.seeds)
    assert other.merge(ring)
    second = other.take("c2", subnet, is_container=False)
    assert str(second) == "fd00:aa::8000:8000:0:0/80"
    assert sum(part.size for _, part in ledger.ring.divided()) == 1 << 64


# --- containers ---


def with_containers() -> tuple[World, Peer]:
    world = World(Random(1), ["seed=::1"])
    peer = world.peers[1]
    for ident, is_container in [("c1", True), ("plain", False), ("_", False), ("weave:expose", False)]:
        world.core(peer).allocate(Allocate(ident, UNIVERSE, is_container))
    world.pump(peer, commit=True)
    return world, peer


def test_a_container_that_dies_keeps_its_address_for_a_while() -> None:
    world, peer = with_containers()
    allocator = world.core(peer)
    allocator.container_died("c1", 100.0)
    allocator.container_died("plain", 100.0)
    allocator.tick(129.0)
    assert world.held_by(peer, "c1")
    allocator.tick(131.0)
    assert not world.held_by(peer, "c1")
    assert world.held_by(peer, "plain")


def test_a_container_that_comes_back_keeps_it() -> None:
    world, peer = with_containers()
    allocator = world.core(peer)
    allocator.container_died("c1", 100.0)
    allocator.container_started("c1")
    allocator.tick(200.0)
    allocator.container_died("c1", 300.0)
    allocator.allocate(Allocate("c1", UNIVERSE, True))
    allocator.tick(400.0)
    assert world.held_by(peer, "c1")
    allocator.container_destroyed("c1")
    assert not world.held_by(peer, "c1")


def test_what_a_dead_container_asked_for_is_cancelled() -> None:
    world, peer = with_containers()
    allocator = world.core(peer)
    subnet = Subnet.parse("10.0.0.0/30")
    allocator.allocate(Allocate("plain2", subnet))
    waiting = Allocate("c1", Subnet.parse("10.0.0.0/30"), True)
    allocator.ledger.release("c1", ip_address("10.0.0.1"))
    allocator.allocate(Allocate("other", subnet))
    allocator.allocates.append(waiting)
    allocator.container_died("c1", 1.0)
    assert waiting not in allocator.allocates


def test_leaked_holders_are_found_by_looking_at_what_exists() -> None:
    world, peer = with_containers()
    allocator = world.core(peer)
    address = world.core(peer).ledger.holders.of("plain")[0].addr
    assert allocator.reconcile({"c1": []}, 10.0) == ["plain"]
    assert allocator.reconcile({"somebody": [address]}, 20.0) == ["c1"]
    assert allocator.orphans == ["c1"]
    allocator.tick(49.0)
    assert world.held_by(peer, "c1")
    allocator.reconcile({"c1": []}, 49.5)
    allocator.tick(60.0)
    assert world.held_by(peer, "c1")
    allocator.reconcile({}, 70.0)
    allocator.tick(101.0)
    assert not world.held_by(peer, "c1")
    assert world.held_by(peer, "plain")


def test_a_claim_says_again_that_it_is_a_container() -> None:
    world, peer = with_containers()
    allocator = world.core(peer)
    held = allocator.ledger.holders.of("plain")[0]
    allocator.claim(Claim("plain", held, is_container=True))
    assert allocator.ledger.holders.is_container("plain")


def test_what_a_dead_one_holds_outside_the_universe_may_be_had() -> None:
    world, peer = with_containers()
    allocator = world.core(peer)
    outside = cidr("192.168.1.1/24")
    allocator.claim(Claim("c1", outside))
    allocator.container_died("c1", 1.0)
    allocator.claim(Claim("c2", outside))
    assert allocator.ledger.holders.holder(outside.addr) == "c2"


# --- what peers say ---


def test_only_the_owner_can_refuse_an_address() -> None:
    world = World(Random(1), ["seed=::1,::2"] * 2)
    world.settle()
    allocator = world.core(world.peers[1])
    claim = Claim("c", cidr("10.0.0.40/26"))
    allocator.claim(claim)
    wanted = Range(int(claim.cidr.addr), int(claim.cidr.addr) + 1)
    assert Send(OTHER, Kind.SPACE_REQUEST, wanted) in allocator.effects
    denial = wire.encode_request(Kind.SPACE_REQUEST_DENIED, wanted)
    allocator.received_unicast(PeerName(3), denial)
    assert claim in allocator.claims
    allocator.received_unicast(OTHER, denial)
    (answer,) = [each for each in allocator.effects if isinstance(each, Answer)]
    assert str(answer.error) == "address 10.0.0.40/26 is owned by other peer 00:00:00:00:00:02 (host2)"


def test_many_claims_are_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Random(1), ["seed=::1,::2"] * 2)
    world.settle()
    one = world.peers[1]
    asked: list[Send] = []
    send = World.send

    def counted(self: World, peer: Peer, each: Send) -> None:
        asked.extend([each] if peer is one and each.kind is Kind.SPACE_REQUEST else [])
        send(self, peer, each)

    monkeypatch.setattr(World, "send", counted)
    for number in range(32, 62):
        world.core(one).claim(Claim(f"c{number}", cidr(f"10.0.0.{number}/26"), lenient=True))
    world.pump(one, commit=True)
    world.flush()
    assert len(asked) == 30
    assert len(world.core(one).ledger.holders.owned) == 30


@pytest.mark.parametrize(
    ("init", "targets", "quorum"),
    [
        ("consensus=3", 9, 2),
        ("consensus=4", 9, 3),
        ("consensus=1", 9, 1),
        ("consensus", 0, 1),
        ("consensus=0", 1, 2),
        ("", 2, 2),
        ("", 3, 3),
    ],
)
def test_quorums(init: str, targets: int, quorum: int) -> None:
    world = World(Random(1), [init or "consensus"] * (targets + 1))
    allocator = world.core(world.peers[1])
    allocator.allocate(Allocate("c", UNIVERSE))
    assert allocator.founding.paxos.quorum == quorum
    assert bool(allocator.ledger.ring) == (quorum == 1)


def test_a_ring_alone_waits_a_while_for_the_peers_that_were_given(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worlds, "LOG", LOG)
    world = World(Random(1), ["consensus=1", "observer"])
    world.groups = {2: 1}
    one = world.peers[1]
    allocator = world.core(one)
    operation = Allocate("c", UNIVERSE)
    allocator.allocate(operation)
    assert reason(allocator, operation).startswith("no ring yet: waiting 30 s more for the peers that were given")
    for now, left in ((1000.0, 30), (1005.0, 25), (1029.5, 1)):
        allocator.tick(now)
        assert not allocator.ledger.ring
        assert f"waiting {left} s more" in reason(allocator, operation)
        assert f"waiting {left} s more" in ipam_status(report(allocator, UNIVERSE))
    assert not caplog.records
    allocator.tick(1030.0)
    assert allocator.ledger.ring
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "None of the peers that were given is there: beginning a ring without them"
    ]


def test_a_peer_that_comes_within_that_while_has_its_ring_taken() -> None:
    world = World(Random(1), ["consensus=1", "seed=::2"])
    world.groups = {2: 1}
    one, two = (world.core(peer) for peer in world.peers.values())
    two.allocate(Allocate("c", UNIVERSE))
    one.allocate(Allocate("c", UNIVERSE))
    one.tick(1000.0)
    world.settle()
    assert one.ledger.ring.seeds == two.ledger.ring.seeds == (OTHER,)


def test_a_peer_that_comes_within_that_while_without_a_ring_ends_it() -> None:
    world = World(Random(1), ["consensus=1", "observer"])
    world.groups = {2: 1}
    allocator = world.core(world.peers[1])
    allocator.allocate(Allocate("c", UNIVERSE))
    world.groups = {}
    allocator.tick(1000.0)
    assert not allocator.ledger.ring, "its answer may be under way"
    allocator.tick(1005.0)
    assert allocator.ledger.ring.seeds == (US,)


def test_ways_to_begin() -> None:
    assert Init.parse("seed=::1,01::2") == Init(seeds=(PeerName(1), PeerName(0x010000000002)))
    assert Init.parse("observer") == Init(elector=False)
    assert Init.parse("") == Init.parse("consensus") == Init.parse("consensus=0") == Init()


def test_how_long_an_owner_is_out_of_reach() -> None:
    world = World(Random(1), ["seed=::1,::2,::3"] * 3)
    world.settle()
    allocator = world.core(world.peers[1])
    world.groups = {2: 1}
    allocator.tick(100.0)
    world.groups = {2: 1, 3: 1}
    allocator.tick(160.0)
    allocator.tick(165.0)
    assert allocator.absences.rows() == [(OTHER, 65.0), (PeerName(3), 5.0)]
    assert report(allocator, UNIVERSE)["Unreachable"] == [
        {"Peer": "00:00:00:00:00:02", "Nickname": "host2", "Seconds": 65},
        {"Peer": "00:00:00:00:00:03", "Nickname": "host3", "Seconds": 5},
    ]
    world.groups = {}
    allocator.tick(170.0)
    assert allocator.absences.rows() == []


# --- what is loaded ---


def saved(ring: Ring | None, holder: PeerName = US, **owned: tuple[str, ...]) -> Saved:
    stored = None if ring is None else wire.encode_ring(ring, holder)
    return Saved(stored, {ident: Owned(False, tuple(map(cidr, each))) for ident, each in owned.items()})


def test_addresses_whose_range_is_gone_are_not_held_any_more() -> None:
    ring = Ring(UNIVERSE).seeded([US, OTHER])
    ledger = Ledger(US, UNIVERSE, saved(ring, a=("10.0.0.1/26",), b=("10.0.0.60/26", "192.168.0.1/24")), LOG)
    assert ledger.holders.of("a") == (cidr("10.0.0.1/26"),)
    assert ledger.holders.of("b") == (cidr("192.168.0.1/24"),)
    record = ledger.record_turn()
    assert record.change == Change(None, {"b": Owned(False, (cidr("192.168.0.1/24"),))})


@pytest.mark.parametrize("universe", ["10.0.0.0/27", "10.0.0.0/26"])
def test_what_is_anothers_is_overwritten(universe: str) -> None:
    stored = Subnet.parse(universe)
    holder = OTHER if stored == UNIVERSE else US
    ledger = Ledger(US, UNIVERSE, saved(Ring(stored).seeded([OTHER]), holder, a=("10.0.0.1/26",)), LOG)
    assert not ledger.ring
    assert not ledger.holders.owned
    record = ledger.record_turn()
    assert record.change.owned == {"a": None}
    assert record.change.ring is not None
    assert wire.decode_ring(record.change.ring) == Copy(UNIVERSE.range, US, (), ())
    # Until it is durable, every record says so.
    assert ledger.record_turn().change == record.change
    ledger.commit(record)
    assert not ledger.record_turn().change


def test_a_ring_that_cannot_be_read_ends_the_start() -> None:
    with pytest.raises(JournalError, match="the stored ring cannot be read"):
        Ledger(US, UNIVERSE, Saved(b"\x01\x02", {}), LOG)
    entries = tuple(Entry(UNIVERSE.start + token, US, 0, 0) for token in (9, 3))
    with pytest.raises(JournalError, match="the stored ring cannot be read: Ring not sorted"):
        Ledger(US, UNIVERSE, saved(Ring(UNIVERSE, entries)), LOG)


def test_a_hint_that_is_too_large_is_no_reason_to_forget_everything() -> None:
    ring = Ring(UNIVERSE, (Entry(UNIVERSE.start, US, 3, 99),))
    ledger = Ledger(US, UNIVERSE, saved(ring, a=("10.0.0.1/26",)), LOG)
    assert ledger.ring.entries == (Entry(UNIVERSE.start, US, 3, UNIVERSE.size),)
    assert ledger.holders.owned


def test_hints_alone_are_written_at_the_tick() -> None:
    world = World(Random(1), ["seed=::1"])
    peer = world.peers[1]
    world.commit(peer)
    allocator = world.core(peer)
    allocator.allocate(Allocate("c", UNIVERSE))
    record, _ = allocator.take_turn()
    assert record.change.ring is None
    assert list(record.change.owned) == ["c"]
    allocator.ledger.commit(record)
    allocator.tick(1.0)
    record, _ = allocator.take_turn()
    assert record.change.ring is not None
    assert record.ring.entries[0].free == UNIVERSE.size - 1


def test_a_peer_alone_leaves_without_an_heir() -> None:
    world = World(Random(1), ["seed=::1"])
    peer = world.peers[1]
    world.core(peer).shut_down(Order())
    record, effects = world.core(peer).take_turn()
    assert [type(each) for each in effects] == [Answer]
    assert record.ring.owners() <= {US}
