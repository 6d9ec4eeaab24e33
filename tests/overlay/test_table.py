"""The forwarding table follows routes, links, floods and addresses."""

from collections.abc import Callable

from mesh.names import PeerName
from overlay.forwarding import FrameRouter
from overlay.mac import MAX_AGE, REFLECTION_GUARD, Learned, MacTable
from overlay.seams import Forwarder
from overlay.table import TableWriter
from tests.overlay.fakes import BROADCAST, LOG, FakePath, Tap, View, World, arp, ip, mac


class Table:
    """What was written."""

    def __init__(self) -> None:
        self.hops: dict[int, Forwarder | None] = {}
        self.floods: dict[int, object] = {}
        self.addresses: dict[bytes, int] = {}
        self.last: dict[bytes, float] = {}

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        if owner is None:
            del self.addresses[mac]
        else:
            self.addresses[mac] = owner

    def seen(self, mac: bytes) -> float:
        return self.last.get(mac, 0.0)

    def routes(self, hops: list[tuple[PeerName, Forwarder | None]]) -> None:
        self.hops = dict(hops)
        self.floods.clear()

    def flood(self, source: PeerName, hops: object) -> None:
        self.floods[source] = hops


class Link:
    """A link of ours, which is its own forwarder's keeper."""

    def __init__(self, forwarder: Forwarder | None) -> None:
        self.forwarder = forwarder


def made(links: dict[int, set[int]]) -> tuple[Table, TableWriter, dict[int, Link], list[Callable[[], None]]]:
    table, later = Table(), list[Callable[[], None]]()
    ours = {hop: Link(FakePath(f"to {hop}")) for hop in links[1]}
    writer = TableWriter(View(World(links), 1), ours.get, table, later.append)  # type: ignore[arg-type]
    return table, writer, ours, later


CHAIN = {1: {2}, 2: {1, 3}, 3: {2}}


def test_all_known_peers_get_their_hop_in_one_step() -> None:
    table, writer, links, later = made(CHAIN)
    writer.request()
    writer.request()
    assert len(later) == 1, "changes are taken together"
    later.pop()()
    to_two = links[2].forwarder
    assert table.hops == {1: None, 2: to_two, 3: to_two}
    links[2].forwarder = None
    writer.request()
    later.pop()()
    assert table.hops == {1: None, 2: None, 3: None}, "Python is asked where no forwarder is chosen"


def test_a_flood_is_written_once_it_is_used_and_then_kept() -> None:
    table, writer, links, later = made(CHAIN)
    writer.request()
    later.pop()()
    assert not table.floods
    writer.flooded(PeerName(1))
    writer.flooded(PeerName(3))
    writer.flooded(PeerName(9))
    assert table.floods == {1: [links[2].forwarder], 3: []}, "a stranger's is not written"
    writer.request()
    later.pop()()
    assert set(table.floods) == {1, 3}, "nothing is asked anew"
    links[2].forwarder = None
    writer.request()
    later.pop()()
    assert table.floods[1] is None, "not all of its hops are known"


def test_while_a_change_is_pending_floods_are_not_written() -> None:
    table, writer, _, later = made(CHAIN)
    writer.request()
    writer.flooded(PeerName(1))
    assert not table.floods
    later.pop()()
    assert not table.floods


def test_addresses_follow_the_mac_table() -> None:
    table = Table()
    macs = MacTable(PeerName(1), per_peer=2, changed=table.address, seen=table.seen)
    macs.learn_local(mac(1), 0.0)
    macs.learn_remote(mac(2), PeerName(2), 0.0)
    assert table.addresses == {mac(1): 1, mac(2): 2}
    macs.learn_remote(mac(1), PeerName(2), 1.0)
    assert table.addresses == {mac(1): 2, mac(2): 2}
    macs.learn_remote(mac(3), PeerName(2), 2.0)
    assert len(table.addresses) == 2, "one was pushed out"
    macs.forget_peer(PeerName(2))
    assert not table.addresses


def test_what_was_forwarded_without_us_counts_as_seen() -> None:
    table = Table()
    macs = MacTable(PeerName(1), changed=table.address, seen=table.seen)
    macs.learn_remote(mac(2), PeerName(2), 0.0)
    table.last[mac(2)] = 700.0
    assert macs.learn_local(mac(2), 700.0 + REFLECTION_GUARD / 2) is Learned.REFUSED
    macs.expire(700.0 + MAX_AGE)
    assert macs.owner(mac(2)) == 2
    assert [seen for _, _, seen in macs.rows()] == [700.0]
    macs.expire(701.0 + MAX_AGE)
    assert macs.owner(mac(2)) is None
    assert not table.addresses


def test_a_frame_router_teaches_its_table() -> None:
    world = World(CHAIN)
    table, writer, links, later = made(CHAIN)
    writer.request()
    later.pop()()
    router = FrameRouter(
        View(world, 1), Tap(world, 1), lambda hop: None, clock=lambda: 5.0, log=LOG, writer=writer
    )
    router.captured(arp(mac(1)))
    router.received(PeerName(3), PeerName(1), ip(mac(1), mac(3)))
    assert table.addresses == {mac(1): 1, mac(3): 3}
    assert table.floods == {1: [links[2].forwarder]}
    assert BROADCAST not in table.addresses
