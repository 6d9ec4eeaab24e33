"""A world of allocators on virtual time: messages late, lost, twice and out of order; partitions, deaths, clock jumps.

Every step is one event at one peer, and is followed by the invariants. A commit may be under way for many steps, and
fail; a peer that dies comes back with what its journal holds. Some peers may follow the reference's merge. Everything
comes from one `Random`. Source: IPAM spec §20.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

from ipam import wire
from ipam.allocator import Allocator
from ipam.founding import Init
from ipam.ledger import Ledger, Record
from ipam.operations import Allocate, Answer, Broadcast, Claim, Effect, Operation, Order, Send
from ipam.paxos import Node
from ipam.ranges import Range, RangeSet, Subnet
from ipam.ring import Copy, RingError
from ipam.seams import Cidr, IpamError
from mesh.names import UNKNOWN, PeerName, format_peer_name
from mesh.seams import GossipError
from tests.ipam import reference
from tests.ipam.journals import MemoryJournal

UNIVERSE = Subnet.parse("10.0.0.0/26")
SUBNETS = [UNIVERSE, Subnet.parse("10.0.0.0/28"), Subnet.parse("10.0.0.32/28"), Subnet.parse("10.0.0.0/24")]
IDENTS = [f"c{number}" for number in range(12)] + ["_"]
LOG = logging.getLogger("world")
LOG.setLevel(logging.CRITICAL)


class ReferenceLedger(Ledger):
    """Merges as 2.8 does: whole rings are refused."""

    def _merge_copy(self, copy: Copy) -> bool:
        free = self.space.free

        def busy(bounds: Range) -> bool:
            return free.count(bounds) < bounds.size

        self.ring, updated = reference.merge(self.ring, copy, self._ourself, busy)
        if updated:
            self._follow()
        return updated

    merge = _merge_copy


@dataclass
class Peer:
    """One peer: what runs, what its disk holds, what its clients believe."""

    number: int
    init: Init
    is_reference: bool
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    allocator: Allocator | None = None
    under_way: tuple[Record, list[Effect]] | None = None
    offset: float = 0.0
    operations: dict[Operation, str] = field(default_factory=dict)
    # Answered, and not given back since.
    held: dict[str, set[Cidr]] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> PeerName:
        return PeerName(self.number)


@dataclass(frozen=True)
class Message:
    sender: int
    to: int
    unicast: bool
    source: PeerName
    data: bytes


class World:
    """All peers and what is between them. `steps` counts events."""

    def __init__(
        self,
        rng: Random,
        inits: Iterable[str],
        reference_peers: Iterable[int] = (),
        reclaim: float | None = None,
    ) -> None:
        self.rng = rng
        self.reclaim = reclaim
        self.now = 0.0
        self.steps = 0
        self.messages: list[Message] = []
        self.groups: dict[int, int] = {}
        self.answers = 0
        self.refusals: list[str] = []
        self.shares = False
        self._uids = 0
        olds = set(reference_peers)
        self.peers = {n: Peer(n, Init.parse(init), n in olds) for n, init in enumerate(inits, 1)}
        for peer in self.peers.values():
            self.start(peer)

    # --- life and death ---

    def start(self, peer: Peer, *, lost: bool = False) -> None:
        """From what its journal holds."""
        self._uids += 1
        mesh = View(self, peer.number)
        peer.under_way = None
        peer.operations.clear()
        allocator = Allocator(
            Node(peer.name, self._uids),
            f"host{peer.number}",
            UNIVERSE,
            peer.init,
            mesh=mesh,
            rng=self.rng,
            log=LOG,
            saved=peer.journal.load(),
            lost=lost,
            reclaim=self.reclaim,
        )
        if peer.is_reference:
            allocator.ledger.__class__ = ReferenceLedger
        peer.allocator = allocator
        peer.versions = {}
        self.pump(peer)

    def die(self, peer: Peer) -> None:
        """At once: what was under way is not written, what was sent may still arrive."""
        peer.allocator = None
        peer.under_way = None
        peer.operations.clear()

    def wipe(self, peer: Peer) -> None:
        """The host is gone with its containers."""
        self.die(peer)
        peer.journal = MemoryJournal()
        peer.held.clear()

    def living(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.allocator is not None]

    def core(self, peer: Peer) -> Allocator:
        assert peer.allocator is not None
        return peer.allocator

    def reachable(self, one: int, other: int) -> bool:
        peer = self.peers.get(other)
        alive = peer is not None and peer.allocator is not None
        return alive and self.groups.get(one) == self.groups.get(other)

    # --- turns ---

    def pump(self, peer: Peer, commit: bool | None = None) -> None:
        """Take a turn where none is under way; mostly it is durable at once."""
        if peer.allocator is None or peer.under_way is not None:
            return
        if peer.is_reference:
            peer.allocator.ledger.report_free()
        record, effects = peer.allocator.take_turn()
        if not record.change:
            self.release(peer, effects)
            return
        peer.under_way = (record, effects)
        if self.rng.random() < 0.7 if commit is None else commit:
            self.commit(peer)

    def commit(self, peer: Peer) -> None:
        if peer.under_way is None or peer.allocator is None:
            return
        record, effects = peer.under_way
        peer.under_way = None
        peer.journal.commit(record.change)
        peer.allocator.ledger.commit(record)
        self.release(peer, effects)
        self.pump(peer)

    def fail(self, peer: Peer) -> None:
        """The disk is full; or it has it all, and only says that it has not."""
        if peer.under_way is None or peer.allocator is None:
            return
        record, effects = peer.under_way
        if self.rng.random() < 0.3:
            peer.journal.commit(record.change)
        peer.under_way = None
        peer.versions = {}
        self.release(peer, peer.allocator.roll_back(effects, "no space left on device"))

    def release(self, peer: Peer, effects: list[Effect]) -> None:
        allocator = self.core(peer)
        for effect in effects:
            if isinstance(effect, Answer):
                self.answered(peer, effect)
            elif isinstance(effect, Broadcast):
                state = self.emitted(allocator.state(0))
                for other in self.living():
                    if other is not peer and self.reachable(peer.number, other.number):
                        self.messages.append(Message(peer.number, other.number, False, peer.name, state))
            else:
                self.send(peer, effect)
        if allocator.effects:
            self.pump(peer)

    def send(self, peer: Peer, send: Send) -> None:
        if not self.reachable(peer.number, send.peer):
            destination = format_peer_name(send.peer)
            self.core(peer).undeliverable(send, f"unknown relay destination: {destination}")
            return
        if send.wanted is None:
            data = bytes((send.kind,)) + self.emitted(self.core(peer).state(0))
        else:
            data = wire.encode_request(send.kind, send.wanted)
        self.messages.append(Message(peer.number, send.peer, True, peer.name, data))

    def emitted(self, state: bytes) -> bytes:
        """Nothing is ever sent that a 2.8 router would refuse."""
        copy = wire.decode_state(state).ring
        if copy is not None:
            copy.over(UNIVERSE).check()
            assert copy.entries
        return state

    def answered(self, peer: Peer, answer: Answer) -> None:
        ident = peer.operations.pop(answer.operation, None)
        if ident is None:
            return
        if answer.error is not None:
            self.refusals.append(str(answer.error))
            return
        self.answers += 1
        operation = answer.operation
        if isinstance(operation, Allocate):
            assert answer.value is not None
            assert operation.subnet.hosts.holds(int(answer.value.addr)) or ident != "_"
            peer.held.setdefault(str(answer.value.addr) if ident == "_" else ident, set()).add(answer.value)

    # --- what clients do ---

    def allocate(self, peer: Peer, ident: str, subnet: Subnet) -> None:
        operation = Allocate(ident, subnet, is_container=ident[-1] in "012345")
        peer.operations[operation] = ident
        self.core(peer).allocate(operation)
        self.pump(peer)

    def claim(self, peer: Peer, ident: str, number: int, *, lenient: bool) -> None:
        cidr = Cidr(UNIVERSE.address(UNIVERSE.start + number), UNIVERSE.prefix_len)
        operation = Claim(ident, cidr, lenient=lenient)
        peer.operations[operation] = ident
        self.core(peer).claim(operation)
        self.pump(peer)

    def give_back(self, peer: Peer, ident: str, *, whole: bool) -> None:
        """Free one address or all of an identifier; from now on its clients use none."""
        order, allocator = Order(), self.core(peer)
        self.forget(peer, ident)
        held = allocator.ledger.holders.of(ident)
        try:
            if whole or not held:
                allocator.delete(order, ident)
                peer.held.pop(ident, None)
            else:
                allocator.free(order, ident, held[0].addr)
                peer.held[ident] = {c for c in peer.held.get(ident, set()) if c.addr != held[0].addr}
        except IpamError:
            assert not held
        self.pump(peer)

    def forget(self, peer: Peer, ident: str) -> None:
        """Its clients do not wait for answers any more."""
        peer.operations = {operation: each for operation, each in peer.operations.items() if each not in (ident, "_")}

    def cancel(self, peer: Peer) -> None:
        if peer.operations:
            operation = self.rng.choice(list(peer.operations))
            del peer.operations[operation]
            self.core(peer).cancel(operation)

    # --- what the network does ---

    def deliver(self, index: int, *, again: bool = False) -> None:
        message = self.messages[index] if again else self.messages.pop(index)
        peer = self.peers[message.to]
        if not self.reachable(message.sender, message.to) or peer.allocator is None:
            return
        try:
            if message.unicast:
                peer.allocator.received_unicast(message.source, message.data)
                if message.data[0] == wire.Kind.SPACE_REQUEST and peer.allocator.ledger.ring:
                    assert Send(message.source, wire.Kind.RING_UPDATE) in peer.allocator.effects
            else:
                peer.allocator.received(message.source, message.data)
        except (GossipError, RingError):
            assert peer.is_reference or any(other.is_reference for other in self.peers.values())
        self.pump(peer)

    def gossip(self, peer: Peer, to: Peer) -> None:
        if self.reachable(peer.number, to.number):
            state = self.emitted(self.core(peer).state(0))
            self.messages.append(Message(peer.number, to.number, False, UNKNOWN, state))

    def tick(self, peer: Peer) -> None:
        self.core(peer).tick(self.now + peer.offset)
        self.pump(peer)

    def partition(self) -> None:
        self.groups = {number: self.rng.randrange(2) for number in self.peers}

    # --- a random step ---

    def step(self) -> None:
        """One event, then the invariants of whoever it concerned, and of all."""
        self.steps += 1
        peer = self.rng.choice(self.living() or [self.revived()])
        self.rng.choices(ACTIONS, WEIGHTS)[0](self, peer)
        self.check_everything()

    def check_everything(self) -> None:
        for each in self.living():
            self.check(each)
        self.check_all()

    def revived(self) -> Peer:
        peer = self.rng.choice(list(self.peers.values()))
        self.start(peer)
        return peer

    # --- invariants ---

    def check(self, peer: Peer) -> None:
        """Cover, validity, monotone versions, space as the ring says, durability."""
        allocator = self.core(peer)
        ledger = allocator.ledger
        ring, space = ledger.ring, ledger.space
        if not ring:
            assert not space.free
            return
        ring.check(hints=False)
        assert sum(each.size for _, each in ring.divided()) == UNIVERSE.size
        versions = {entry.token: entry.version for entry in ring.entries}
        assert all(versions.get(token, -1) >= version for token, version in peer.versions.items())
        peer.versions = versions
        ours = RangeSet(ring.ranges_of(peer.name))
        parts = RangeSet([*space.free, *space.withheld, *(Range(n, n + 1) for n in space.used)])
        assert parts == ours
        assert space.free.size + space.withheld.size + len(space.used) == ours.size
        inside = sorted(
            int(cidr.addr)
            for each in ledger.holders.owned.values()
            for cidr in each.cidrs
            if UNIVERSE.holds(cidr.addr)
        )
        assert inside == list(space.used)
        for ident, cidrs in peer.held.items():
            known = {cidr.addr for cidr in ledger.holders.of(ident)}
            assert {cidr.addr for cidr in cidrs} <= known, (ident, cidrs)

    def held_by(self, peer: Peer, ident: str) -> bool:
        return bool(self.core(peer).ledger.holders.of(ident))

    def holders(self) -> list[tuple[int, set[int]]]:
        """Who uses what, whether it runs or not."""
        found = []
        for peer in self.peers.values():
            used = {int(cidr.addr) for cidrs in peer.held.values() for cidr in cidrs}
            if peer.allocator is not None:
                used.update(peer.allocator.ledger.space.used)
            used.update(int(c.addr) for each in peer.journal.owned.values() for c in each.cidrs)
            found.append((peer.number, {number for number in used if UNIVERSE.range.holds(number)}))
        return found

    def check_all(self) -> None:
        """No address is in use twice, and none is owned twice; unless somebody was removed while it lived."""
        if self.shares:
            return
        for (one, used), (other, also) in combinations(self.holders(), 2):
            assert not used & also, f"peers {one} and {other} both use {sorted(used & also)}"
        owned = [(p.number, self.core(p).ledger.ring.ranges_of(p.name)) for p in self.living()]
        for (one, parts), (other, others) in combinations(owned, 2):
            clash = RangeSet(parts).both(RangeSet(others))
            assert not clash, f"peers {one} and {other} both own {clash}"

    # --- when all is well ---

    def settle(self, rounds: int = 40) -> None:
        """Heal everything and let it come to rest; then all agree, and nobody waits for what there is."""
        self.groups = {}
        for peer in self.peers.values():
            if peer.allocator is None:
                self.start(peer)
        for _ in range(rounds):
            self.now += 5
            for peer in self.living():
                self.tick(peer)
                self.commit(peer)
            self.flush()
            for peer in self.living():
                for other in self.living():
                    if other is not peer:
                        self.gossip(peer, other)
            self.flush()
            if self.at_rest():
                break
        for peer in self.living():
            self.check(peer)
        self.check_all()
        self.check_agreement()

    def flush(self) -> None:
        """Deliver everything, in order."""
        while self.messages:
            self.deliver(0)
            for peer in self.living():
                self.commit(peer)

    def at_rest(self) -> bool:
        rings = {self.core(peer).ledger.committed for peer in self.living()}
        return len(rings) == 1 and not any(self.core(peer).allocates for peer in self.living())

    def check_agreement(self) -> None:
        living = self.living()
        shapes = {
            tuple((e.token, e.peer, e.version, e.free) for e in self.core(peer).ledger.committed.entries)
            for peer in living
        }
        assert len(shapes) == 1, "the rings of peers that hear each other differ"
        if shapes == {()}:
            return
        for peer in living:
            for operation in self.core(peer).allocates:
                for other in living:
                    spare = self.core(other).ledger.space.free.lowest(operation.subnet.hosts)
                    assert spare is None, f"peer {peer.number} waits for {operation.subnet}; {other.number} has {spare}"


    # --- administration, where all is well ---

    def remove_dead(self, dead: Peer, by: Peer) -> None:
        """A host is gone for good; an administrator gives its part to another, and a new host comes under its name."""
        self.settle()
        self.wipe(dead)
        order = Order()
        gained = self.core(by).take_over(order, str(format_peer_name(dead.name)))
        before = sum(each.size for each in self.core(by).ledger.ring.ranges_of(by.name))
        assert gained <= before
        self.pump(by, commit=True)
        self.flush()
        assert dead.name not in self.core(by).ledger.ring.owners()
        self.start(dead)
        self.settle()

    def hand_over(self, peer: Peer) -> None:
        """A peer leaves in order, is reset, and comes back with nothing."""
        self.settle()
        self.core(peer).shut_down(Order())
        peer.held.clear()
        self.pump(peer, commit=True)
        self.flush()
        living = [each for each in self.living() if each is not peer]
        if self.core(living[0]).ledger.ring:
            assert all(peer.name not in self.core(each).ledger.ring.owners() for each in living)
        self.wipe(peer)
        self.start(peer)
        self.settle()

    def lose_state(self, peer: Peer) -> None:
        """A disk dies, the containers do not: they are found, and claimed when the ring is known again."""
        self.settle()
        held = [(ident, cidr) for ident, cidrs in peer.held.items() for cidr in cidrs]
        unknown = self.core(peer).ledger.holders.owned.keys() - peer.held.keys()
        for ident in unknown:
            self.give_back(peer, ident, whole=True)
        self.settle()
        self.die(peer)
        peer.journal = MemoryJournal()
        peer.held.clear()
        self.start(peer, lost=True)
        for ident, cidr in held:
            self.core(peer).claim(Claim(ident, cidr, is_container=True, lenient=True, found=True))
        self.settle()
        for ident, cidr in held:
            if UNIVERSE.holds(cidr.addr) and self.core(peer).ledger.ring:
                assert cidr.addr in {each.addr for each in self.core(peer).ledger.holders.of(ident)}
                peer.held.setdefault(ident, set()).add(cidr)


class View:
    """The mesh as one peer knows it (`ipam.seams.Mesh`)."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number

    def knows(self, name: PeerName) -> bool:
        return name == self._number or self._world.reachable(self._number, name)

    def nickname(self, name: PeerName) -> str:
        return f"host{name}" if self.knows(name) else ""

    def names(self) -> Iterable[PeerName]:
        return [PeerName(number) for number in self._world.peers if self.knows(PeerName(number))]

    def target_count(self) -> int:
        return len(self._world.peers) - 1


# --- actions ---


def _allocate(world: World, peer: Peer) -> None:
    world.allocate(peer, world.rng.choice(IDENTS), world.rng.choice(SUBNETS))


def _claim(world: World, peer: Peer) -> None:
    rng = world.rng
    world.claim(peer, rng.choice(IDENTS), rng.randrange(UNIVERSE.size), lenient=rng.random() < 0.5)


def _give_back(world: World, peer: Peer) -> None:
    idents = list(world.core(peer).ledger.holders.owned) or IDENTS
    world.give_back(peer, world.rng.choice(idents), whole=world.rng.random() < 0.7)


def _cancel(world: World, peer: Peer) -> None:
    world.cancel(peer)


def _deliver(world: World, peer: Peer) -> None:
    del peer
    if world.messages:
        # Mostly the oldest ones.
        index = int(len(world.messages) * world.rng.random() ** 3)
        world.deliver(index, again=world.rng.random() < 0.05)


def _lose(world: World, peer: Peer) -> None:
    del peer
    if world.messages:
        del world.messages[world.rng.randrange(len(world.messages))]


def _tick(world: World, peer: Peer) -> None:
    world.now += 1.0
    world.tick(peer)


def _jump(world: World, peer: Peer) -> None:
    """A clock that never goes back may still leap: the host slept."""
    peer.offset += world.rng.choice([1.0, 60.0, 3600.0])
    world.tick(peer)


def _gossip(world: World, peer: Peer) -> None:
    if len(world.messages) < 200:
        world.gossip(peer, world.rng.choice(list(world.peers.values())))


def _commit(world: World, peer: Peer) -> None:
    world.commit(peer)


def _fail(world: World, peer: Peer) -> None:
    world.fail(peer)


def _crash(world: World, peer: Peer) -> None:
    # Before the first ring is kept, a restart forgets promises: agreement then rests on the others.
    if world.core(peer).ledger.committed:
        world.die(peer)
        if world.rng.random() < 0.7:
            world.start(peer)


def _revive(world: World, peer: Peer) -> None:
    del peer
    for each in world.peers.values():
        if each.allocator is None:
            world.start(each)
            return


def _partition(world: World, peer: Peer) -> None:
    del peer
    world.partition()


def _heal(world: World, peer: Peer) -> None:
    del peer
    world.groups = {}


def _container_dies(world: World, peer: Peer) -> None:
    ident = world.rng.choice(IDENTS)
    world.core(peer).container_died(ident, world.now + peer.offset)
    if world.core(peer).ledger.holders.is_container(ident):
        world.forget(peer, ident)
        peer.held.pop(ident, None)
    world.pump(peer)


_WEIGHTED: list[tuple[Callable[[World, Peer], None], int]] = [
    (_allocate, 14),
    (_claim, 4),
    (_give_back, 12),
    (_cancel, 2),
    (_deliver, 50),
    (_lose, 4),
    (_tick, 8),
    (_jump, 1),
    (_gossip, 10),
    (_commit, 12),
    (_fail, 2),
    (_crash, 2),
    (_revive, 3),
    (_partition, 1),
    (_heal, 1),
    (_container_dies, 1),
]
ACTIONS = [act for act, _ in _WEIGHTED]
WEIGHTS = [weight for _, weight in _WEIGHTED]
