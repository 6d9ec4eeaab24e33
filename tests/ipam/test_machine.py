"""The same world as a Hypothesis state machine: it looks for the shortest sequence of events that breaks a property."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.ipam.test_simulation import INITS
from tests.ipam.world import IDENTS, SUBNETS, UNIVERSE, Peer, World

PICK = st.integers(0, 1 << 16)


class Peers(RuleBasedStateMachine):
    """Events; peers and messages are picked by a number among those there are."""

    @initialize(seed=st.integers(0, 3), inits=st.sampled_from(INITS), mixed=st.booleans())
    def begin(self, seed: int, inits: list[str], mixed: bool) -> None:
        self.world = World(Random(seed), inits, [1] if mixed else [])

    def peer(self, pick: int) -> Peer:
        living = self.world.living() or [self.world.revived()]
        return living[pick % len(living)]

    @rule(pick=PICK, ident=st.sampled_from(IDENTS), subnet=st.sampled_from(SUBNETS))
    def allocate(self, pick: int, ident: str, subnet: object) -> None:
        self.world.allocate(self.peer(pick), ident, SUBNETS[SUBNETS.index(subnet)])  # type: ignore[arg-type]

    @rule(pick=PICK, ident=st.sampled_from(IDENTS), number=st.integers(0, UNIVERSE.size - 1), lenient=st.booleans())
    def claim(self, pick: int, ident: str, number: int, lenient: bool) -> None:
        self.world.claim(self.peer(pick), ident, number, lenient=lenient)

    @rule(pick=PICK, which=PICK, whole=st.booleans())
    def give_back(self, pick: int, which: int, whole: bool) -> None:
        peer = self.peer(pick)
        idents = list(self.world.core(peer).ledger.holders.owned) or IDENTS
        self.world.give_back(peer, idents[which % len(idents)], whole=whole)

    @rule(pick=PICK, again=st.booleans())
    def deliver(self, pick: int, again: bool) -> None:
        if self.world.messages:
            self.world.deliver(pick % len(self.world.messages), again=again)

    @rule()
    def deliver_all(self) -> None:
        self.world.flush()

    @rule(pick=PICK)
    def lose(self, pick: int) -> None:
        if self.world.messages:
            del self.world.messages[pick % len(self.world.messages)]

    @rule(pick=PICK, leap=st.sampled_from([5.0, 60.0, 3600.0]))
    def tick(self, pick: int, leap: float) -> None:
        self.peer(pick).offset += leap
        self.world.tick(self.peer(pick))

    @rule(pick=PICK, to=PICK)
    def gossip(self, pick: int, to: int) -> None:
        if len(self.world.messages) < 100:
            self.world.gossip(self.peer(pick), self.peer(to))

    @rule(pick=PICK)
    def commit(self, pick: int) -> None:
        self.world.commit(self.peer(pick))

    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        self.world.fail(self.peer(pick))

    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        peer = self.peer(pick)
        if self.world.core(peer).ledger.committed:
            self.world.die(peer)

    @rule(pick=PICK)
    def revive(self, pick: int) -> None:
        dead = [peer for peer in self.world.peers.values() if peer.allocator is None]
        if dead:
            self.world.start(dead[pick % len(dead)])

    @rule(groups=st.lists(st.integers(0, 1), min_size=5, max_size=5))
    def partition(self, groups: list[int]) -> None:
        self.world.groups = dict(enumerate(groups, 1))

    @rule()
    def heal(self) -> None:
        self.world.groups = {}

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check_everything()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


Peers.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestPeers = Peers.TestCase
