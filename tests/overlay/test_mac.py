"""The MAC table: the reference's sequence, its bounds, and any history against a plain model."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.names import PeerName
from overlay.mac import MAX_AGE, REFLECTION_GUARD, Learned, MacTable
from tests.overlay.fakes import document, mac

US, A, B = PeerName(1), PeerName(10), PeerName(11)


def test_mac_table_follows_the_reference_but_heals() -> None:
    """The reference's sequence (address-cache.json); where it refuses for minutes, ours refuses for the guard."""
    peers = {"A": A, "B": B}
    owners = {**peers, "ourself": US, "": None}
    table, address, now = MacTable(US), mac(1), 0.0
    for step in document("mac-cache.json")["ops"]:
        operation = step["op"]
        if operation.startswith("remote learn from"):
            learned = table.learn_remote(address, peers[operation.split()[3]], now)
            assert (learned is Learned.NEW) == step["new"]
        elif operation.startswith("local capture"):
            learned = table.learn_local(address, now)
            assert (learned is Learned.REFUSED) == bool(step["conflict"])
        else:
            table.forget_peer(B)
        assert table.owner(address) == owners[step["owner_after"]]
    assert table.learn_local(address, now + REFLECTION_GUARD) is Learned.MOVED
    table.expire(now + REFLECTION_GUARD + MAX_AGE + 1)
    assert len(table) == 0


def test_forged_sources_push_out_no_local_address() -> None:
    table = MacTable(PeerName(1), per_peer=100)
    table.learn_local(b"\2local", 0.0)
    for number in range(1000):
        table.learn_remote(b"\2\0" + number.to_bytes(4, "big"), PeerName(2), 0.0)
    assert table.owner(b"\2local") == 1
    assert len(table) == 101
    assert table.evicted == 900


@pytest.mark.parametrize(
    ("heard", "verdict"),
    [(0.0, Learned.REFUSED), (REFLECTION_GUARD - 0.01, Learned.REFUSED), (REFLECTION_GUARD, Learned.MOVED)],
)
def test_an_address_comes_home_once_it_was_quiet_elsewhere(heard: float, verdict: Learned) -> None:
    table = MacTable(US)
    table.learn_remote(mac(1), A, 100.0)
    assert table.learn_local(mac(1), 100.0 + heard) is verdict
    assert table.owner(mac(1)) == (US if verdict is Learned.MOVED else A)


def test_refusals_do_not_prolong_the_guard() -> None:
    table = MacTable(US)
    table.learn_remote(mac(1), A, 0.0)
    verdicts = [table.learn_local(mac(1), tick / 10) for tick in range(7)]
    assert verdicts == [Learned.REFUSED] * 5 + [Learned.MOVED, Learned.KNOWN]


def test_between_peers_and_away_from_us_an_address_moves_at_once() -> None:
    table = MacTable(US)
    assert table.learn_local(mac(1), 0.0) is Learned.NEW
    assert table.learn_remote(mac(1), A, 0.0) is Learned.MOVED
    assert table.learn_remote(mac(1), B, 0.0) is Learned.MOVED
    assert list(table.rows()) == [(mac(1), B, 0.0)]


def test_what_is_in_use_outlives_forged_addresses_of_the_same_peer() -> None:
    table = MacTable(US, per_peer=10)
    for number in range(5):
        table.learn_remote(mac(number), A, 0.0)
    for number in range(5, 200):
        table.learn_remote(mac(number), A, float(number))
        for used in range(5):
            assert table.learn_remote(mac(used), A, number + 0.5) is Learned.KNOWN
    assert len(table) == 10


def test_a_full_table_costs_whoever_filled_it() -> None:
    table = MacTable(US, remote=50)
    table.learn_local(mac(250), 0.0)
    for number in range(3):
        table.learn_remote(mac(200 + number), B, 0.0)
    for number in range(200):
        table.learn_remote(mac(number), A, 1.0)
    kept = {address for address, _, _ in table.rows()}
    assert {mac(250), mac(200), mac(201), mac(202)} <= kept
    assert len(table) == 51


PEERS = st.sampled_from([A, B, PeerName(12)])
MACS = st.integers(0, 12).map(mac)


class Histories(RuleBasedStateMachine):
    """Anything may happen in any order; a dictionary says what the table should know."""

    PER_PEER, REMOTE = 4, 7

    def __init__(self) -> None:
        super().__init__()
        self.table = MacTable(US, per_peer=self.PER_PEER, remote=self.REMOTE)
        self.now = 0.0
        self.model: dict[bytes, tuple[PeerName, float]] = {}

    @rule(seconds=st.sampled_from([0.1, 0.5, 60.0, 599.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(address=MACS)
    def local(self, address: bytes) -> None:
        owner, seen = self.model.get(address, (US, -1e9))
        verdict = self.table.learn_local(address, self.now)
        refused = owner != US and self.now - seen < REFLECTION_GUARD
        assert (verdict is Learned.REFUSED) == refused
        if not refused:
            self.took(address, US, verdict)

    @rule(address=MACS, peer=PEERS)
    def remote(self, address: bytes, peer: PeerName) -> None:
        self.took(address, peer, self.table.learn_remote(address, peer, self.now))

    def took(self, address: bytes, peer: PeerName, verdict: Learned) -> None:
        before = self.model.get(address)
        if before is None:
            assert verdict is Learned.NEW
        else:
            assert verdict is (Learned.KNOWN if before[0] == peer else Learned.MOVED)
        self.model[address] = (peer, self.now)
        gone = {known for known in self.model if self.table.owner(known) is None}
        assert len(gone) <= 1, "one comes, at most one goes"
        assert address not in gone
        if peer != US:
            assert all(self.model[known][0] != US for known in gone), "no peer pushes out a local address"
        for known in gone:
            del self.model[known]

    @rule(peer=PEERS)
    def gone(self, peer: PeerName) -> None:
        self.table.forget_peer(peer)
        self.model = {address: known for address, known in self.model.items() if known[0] != peer}

    @rule()
    def expire(self) -> None:
        self.table.expire(self.now)
        self.model = {a: known for a, known in self.model.items() if self.now - known[1] <= MAX_AGE}

    @invariant()
    def agrees(self) -> None:
        assert {address: (peer, seen) for address, peer, seen in self.table.rows()} == self.model
        owners = [peer for peer, _ in self.model.values()]
        assert all(owners.count(peer) <= self.PER_PEER for peer in set(owners))
        assert sum(peer != US for peer in owners) <= self.REMOTE


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40)
