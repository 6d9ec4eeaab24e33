"""What sessions hold in the kernel, from reconnection to restart. Needs a kernel with ESP: `script/test-guest`."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from fastdp import esp
from fastdp.ipsec import TABLE, Ipsec, Pair, Session, clean, problem
from fastdp.xfrm import Direction, Policy, Xfrm
from mesh.names import PeerName
from nft import readback
from tests.namespaces import namespace, within

NO_ESP = problem()
pytestmark = pytest.mark.skipif(bool(NO_ESP), reason=f"this kernel does not encrypt: {NO_ESP}")
HERE, THERE = "10.0.0.1", "10.0.0.2"
PAIR = Pair(HERE, THERE, 6784)
US, PEER = PeerName(1), PeerName(2)
LOG = logging.getLogger("test.ipsec")


@dataclass(slots=True)
class World:
    """IPsec of a namespace, and a clock that is told when to go on."""

    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    now: float = 0.0

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, work))

    def until(self, when: float) -> None:
        self.now = when
        due = [one for one in self.timers if one[0] <= when]
        self.timers = [one for one in self.timers if one[0] > when]
        for _, work in due:
            work()

    def start(self, *served: str) -> Ipsec:
        return Ipsec(served, self.later, LOG)


def session(ipsec: Ipsec, spi: int) -> Session:
    """A connection whose peer has told its key."""
    made = ipsec.session(PAIR, bytes(32), US, PEER)
    nonce, _ = esp.unpack_body(made.open())
    made.accept(esp.body(nonce, spi))
    return made


def leaves_by() -> int | None:
    with Xfrm() as xfrm:
        return next((one.spi for one in xfrm.policies() if one.direction is Direction.OUT), None)


def policies() -> set[Policy]:
    with Xfrm() as xfrm:
        return set(xfrm.policies())


def spis() -> set[int]:
    with Xfrm() as xfrm:
        return {state.spi for state in xfrm.states()}


@pytest.fixture
def host() -> Iterator[Callable[[Callable[[], None]], None]]:
    with namespace() as name:
        yield lambda work: within(name, work)


def test_policies_come_before_keys(host: Callable[[Callable[[], None]], None]) -> None:
    def work() -> None:
        ipsec = World().start()
        made = ipsec.session(PAIR, bytes(32), US, PEER)
        made.open()
        assert policies() == {PAIR.inward(), PAIR.outward(0)}
        assert [rule.verdict for rule in readback.rules(TABLE, "output")] == ["drop", "drop"]
        made.accept(esp.body(bytes(32), 0x1111))
        assert leaves_by() == 0x1111 and ipsec.protects(THERE) and not ipsec.protects(HERE)

    host(work)


@pytest.mark.parametrize("survivor", [0, 1], ids=["the older", "the younger"])
def test_of_two_connections_the_one_that_stays_has_the_policy(
    survivor: int, host: Callable[[Callable[[], None]], None]
) -> None:
    def work() -> None:
        world = World()
        ipsec = world.start()
        both = session(ipsec, 0x1111), session(ipsec, 0x2222)
        both[1 - survivor].close()
        assert leaves_by() == (0x1111, 0x2222)[survivor]
        assert {0x1111, 0x2222} < spis(), "what is under way arrives still"
        world.until(40)
        kept = both[survivor]
        assert spis() == {(0x1111, 0x2222)[survivor], kept.inward[0].spi}
        kept.close()
        assert leaves_by() == (0x1111, 0x2222)[survivor], "the kernel serves it for a while"
        world.until(80)
        assert spis() == set() and policies() == set() and not ipsec.protects(THERE)

    host(work)


def test_a_reconnection_changes_keys_without_a_gap(host: Callable[[Callable[[], None]], None]) -> None:
    def work() -> None:
        world = World()
        ipsec = world.start()
        session(ipsec, 0x1111).close()
        made = ipsec.session(PAIR, bytes(32), US, PEER)
        made.open()
        assert leaves_by() == 0x1111, "until the peer has told its new key"
        made.accept(esp.body(bytes(32), 0x2222))
        assert leaves_by() == 0x2222
        world.until(40)
        assert spis() == {0x2222, made.inward[0].spi}

    host(work)


def test_the_key_that_the_peer_has_is_kept_while_new_ones_are_under_way(
    host: Callable[[Callable[[], None]], None],
) -> None:
    """Keys are renewed while nothing passes, and what says so waits with everything else."""

    def work() -> None:
        made = session(World().start(), 0x1111)
        had = made.inward[0].spi
        for _ in range(5):
            _, told = esp.unpack_body(made.renew())
        assert spis() == {0x1111, had, told}

    host(work)


def test_what_a_router_left_is_kept_while_it_is_served(host: Callable[[Callable[[], None]], None]) -> None:
    def work() -> None:
        session(World().start(), 0x1111)
        world = World()
        ipsec = world.start(THERE)
        assert leaves_by() == 0x1111 and len(spis()) == 2 and ipsec.protects(THERE)
        world.until(40)
        assert spis() == set() and policies() == set()
        session(ipsec, 0x2222)
        World().start()
        assert spis() == set() and policies() == set(), "nobody is served"

    host(work)


def test_what_was_removed_comes_back_and_all_of_it_goes(host: Callable[[Callable[[], None]], None]) -> None:
    def work() -> None:
        world = World()
        session(world.start(), 0x1111)
        with Xfrm() as xfrm:
            for policy in xfrm.policies():
                xfrm.unset(policy)
        world.until(10)
        assert policies() == {PAIR.inward(), PAIR.outward(0x1111)}
        assert clean() == [f"table inet {TABLE}", "IPsec associations and policies"] and clean() == []
        assert spis() == set() and policies() == set() and TABLE not in readback.tables()

    host(work)
