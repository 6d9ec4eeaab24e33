"""The mesh as a whole on virtual time: it forms, heals, forgets, and never leaks a connection."""

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.config import TIMING
from mesh.maker import DirectPeer
from mesh.names import PeerName
from tests.mesh.sim import Network, Node


def mesh(count: int, seed: int = 1, **changes: object) -> Network:
    """Nodes that are each given the first one, as soon as they start."""
    network = Network(seed)
    nodes = [network.add(number, **changes) for number in range(1, count + 1)]
    for node in nodes[1:]:
        node.connect(nodes[:1])
    return network


def leaks(network: Network) -> list[str]:
    """Open streams beyond the ones that the mesh knows."""
    found = []
    for node in network.nodes.values():
        open_wires = [wire for wire in node.wires if wire.open and wire.connection and not wire.connection.closed]
        if len(open_wires) != len(list(node.router.all_connections())):
            found.append(f"{node.number}: {len(open_wires)} streams")
    return found


def test_three_nodes_become_a_full_mesh() -> None:
    network = mesh(3)
    assert network.clock.run(10, network.agree)
    network.clock.run(5)
    for node in network.nodes.values():
        assert len(node.router.connections) == 2
        assert all(connection.established for connection in node.router.connections.values())
    assert not leaks(network)


def test_no_discovery_keeps_a_star() -> None:
    network = mesh(4, discovery=False)
    assert network.clock.run(10, network.agree)
    network.clock.run(60)
    assert [len(node.router.connections) for node in network.nodes.values()] == [3, 1, 1, 1]
    second = network.nodes[2].router
    assert second.routes.unicast[PeerName(4)] == 1


def test_nodes_given_each_other_never_dial_again() -> None:
    network = Network(3)
    one, two = network.add(1), network.add(2)
    one.connect([two])
    two.connect([one])
    network.clock.run(30)
    connection = next(iter(one.router.connections.values()))
    network.clock.run(3600)
    assert next(iter(one.router.connections.values())) is connection
    rows = [row.state for node in (one, two) for row in node.router.status(str).connections]
    assert rows == ["established", "established"]


def test_ourself_is_tried_once() -> None:
    network = Network(1)
    node = network.add(1)
    node.connect([node])
    network.clock.run(60)
    (row,) = node.router.status(str).connections
    assert row.state == "failed"
    assert row.info == "cannot connect to ourself, retry: never"
    assert node.router.termination_count == 0


def test_a_name_collision_is_said_and_left() -> None:
    network = Network(1)
    one, two = network.add(1), network.add(2)
    impostor = Node(network, 1, 77)
    impostor.address = "10.9.9.9:6783"
    network.by_address[impostor.address] = impostor
    network.nodes[99] = impostor
    two.connect([one])
    network.clock.run(5)
    one.connect([impostor])
    network.clock.run(5)
    rows = [row for row in one.router.status(str).connections if row.state == "failed"]
    assert rows[0].info == (
        'local "00:00:00:00:00:01(n1)" and remote "00:00:00:00:00:01(n1)" peer names collision, retry: never'
    )


def test_a_restarted_node_passes_its_former_self() -> None:
    network = mesh(4)
    assert network.clock.run(10, network.agree)
    network.nodes[2].die()
    again = network.add(2)
    again.connect([network.nodes[1]])
    assert network.clock.run(20, network.agree)
    assert all(
        node.router.topology.get(PeerName(2)).uid == again.router.topology.ourself.uid  # type: ignore[union-attr]
        for node in network.nodes.values()
    )


def test_the_dead_are_forgotten() -> None:
    network = mesh(5)
    assert network.clock.run(10, network.agree)
    network.nodes[3].die()
    assert network.clock.run(10, network.agree)
    assert not any(node.router.topology.knows(PeerName(3)) for node in network.nodes.values())


def test_a_silent_peer_is_lost_after_a_minute() -> None:
    network = mesh(2)
    assert network.clock.run(10, network.agree)
    network.clock.run(30)
    network.partition([1], [2])
    network.clock.run(TIMING.read_timeout + TIMING.heartbeat + 1)
    assert not network.nodes[1].router.connections
    network.partition()
    assert network.clock.run(400, network.agree)


@pytest.mark.parametrize("away", [70, 200, 3600])
def test_who_was_cut_off_is_back_in_seconds(away: int) -> None:
    """However long nobody answered, and though every host is a direct peer of only one other."""
    network = Network(1)
    nodes = [network.add(number) for number in range(1, 6)]
    for node in nodes[1:]:
        node.connect(nodes[:1])
    assert network.clock.run(10, network.agree)
    network.clock.run(70)
    network.partition([1], [2, 3, 4, 5])
    network.clock.run(away)
    network.partition()
    everybody = {node.router.ourself for node in nodes}
    assert network.clock.run(
        TIMING.retry_silent * 1.5 + 1,
        lambda: all({*node.router.connections, node.router.ourself} == everybody for node in nodes),
    )


def test_many_silent_addresses_are_asked_in_turn(caplog: pytest.LogCaptureFixture) -> None:
    network = Network(1)
    one = network.add(1)
    absent = [f"10.9.{number >> 8}.{number & 255}:6783" for number in range(300)]
    one.router.connect([DirectPeer(address, (address,), True) for address in absent])
    network.clock.run(600)
    with caplog.at_level("DEBUG", "sim"):
        network.clock.run(600)
    asked = [record.args for record in caplog.records if "attempting" in record.message]
    assert set(asked) == {(address,) for address in absent}
    assert 0.5 < len(asked) / 600 * TIMING.retry_spacing < 1.2
    # Back-off is for the log, and at its end by now: two lines an attempt.
    told = [record for record in caplog.records if record.levelname == "INFO"]
    assert 0 < len(told) < 1.2 * 2 * len(absent) * 600 / TIMING.retry_max


def test_who_refuses_is_left_alone() -> None:
    """Back-off as ever for a peer that answers and wants nothing of us."""
    network = Network(1)
    one, two = network.add(1, passwords=(b"a",)), network.add(2, passwords=(b"b",))
    two.connect([one])
    network.clock.run(3600)
    assert 10 < two.router.termination_count < 25


def test_connection_limit() -> None:
    network = Network(1)
    hub = network.add(1, conn_limit=2)
    for number in range(2, 6):
        network.add(number, discovery=False).connect([hub])
    network.clock.run(30)
    assert len(hub.router.connections) == 2


def test_wrong_password() -> None:
    network = Network(1)
    one, two = network.add(1, passwords=(b"a",)), network.add(2, passwords=(b"b",))
    two.connect([one])
    network.clock.run(1.5)
    (row,) = two.router.status(str).connections
    assert row.info.startswith("Unable to decrypt TCP msg") or "reset" in row.info


def test_missing_password() -> None:
    network = Network(1)
    one, two = network.add(1, passwords=(b"a",)), network.add(2)
    two.connect([one])
    network.clock.run(1.5)
    (row,) = two.router.status(str).connections
    assert row.info.startswith("no password specificed, but peer requested an encrypted connection")


def test_duplicate_connections_leave_one() -> None:
    for seed in range(12):
        network = Network(seed)
        one, two = network.add(1), network.add(2)
        two_again = "10.0.0.2:6784"
        network.by_address[two_again] = two
        one.router.connect([DirectPeer("a", (two.address,), True), DirectPeer("b", (two_again,), True)])
        two.connect([one])
        network.clock.run(20)
        assert len(one.router.connections) == len(two.router.connections) == 1
        assert not leaks(network)


class Listener:
    """A gossip user that keeps what it gets."""

    def __init__(self) -> None:
        self.unicasts: list[tuple[PeerName, bytes]] = []
        self.broadcasts: list[tuple[PeerName, bytes]] = []
        self.gossiped: set[bytes] = set()

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        self.unicasts.append((sender, message))

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes | None:
        self.broadcasts.append((source, message))
        return message

    def on_gossip(self, message: bytes) -> bytes | None:
        fresh = message not in self.gossiped
        self.gossiped.add(message)
        return message if fresh else None

    def gossip(self) -> bytes | None:
        return None


def test_gossip_channels_reach_everybody_over_strangers() -> None:
    """A chain in which only the ends use the channel: those between relay it without knowing it."""
    network = Network(4)
    nodes = [network.add(number, discovery=False) for number in range(1, 6)]
    for before, node in itertools.pairwise(nodes):
        node.connect([before])
    first, last = Listener(), Listener()
    channel = nodes[0].router.open_channel("news", first)
    nodes[-1].router.open_channel("news", last)
    assert network.clock.run(20, network.agree)
    network.clock.run(3)
    channel.unicast(PeerName(5), b"to you")
    channel.broadcast(b"to all")
    channel.neighbours(b"rumour")
    network.clock.run(3)
    assert last.unicasts == [(1, b"to you")]
    assert last.broadcasts == [(1, b"to all")]
    assert last.gossiped == {b"rumour"}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(3, 14), st.booleans())
def test_after_faults_stop_all_agree(seed: int, count: int, password: bool) -> None:
    """Random deaths, restarts and partitions; then quiet, and within bounded rounds one topology."""
    rng = Random(seed)
    network = mesh(count, seed, passwords=(b"p",) if password else ())
    highest: dict[tuple[int, int, int], int] = {}
    for _ in range(4):
        network.clock.run(rng.uniform(0.1, 40))
        numbers = sorted(network.nodes)
        match rng.randrange(3):
            case 0 if len(numbers) > 2:
                victim = rng.choice(numbers[1:])
                network.nodes[victim].die()
                if rng.random() < 0.6:
                    network.add(victim, passwords=(b"p",) if password else ()).connect([network.nodes[1]])
            case 1:
                half = rng.sample(numbers, len(numbers) // 2)
                network.partition(half, [n for n in numbers if n not in half])
            case _:
                network.partition()
        for node in network.nodes.values():
            for name in node.router.topology.names():
                entry = node.router.topology.get(name)
                assert entry is not None
                key = (node.number, int(name), entry.uid)
                assert entry.version >= highest.get(key, 0) or not entry.uid
    network.partition()
    assert network.clock.run(1200, network.agree, check=5)
    network.clock.run(90)
    assert network.agree()
    assert not leaks(network)


@pytest.mark.parametrize(("count", "degree"), [(60, 8)])
def test_bounded_degree(count: int, degree: int) -> None:
    """Everybody is given everybody, dials a few and reaches all."""
    network = Network(7)
    nodes = [network.add(number, mesh_degree=degree) for number in range(1, count + 1)]
    for node in nodes:
        node.connect([other for other in nodes if other is not node])
    assert network.clock.run(60, network.agree)
    degrees = [len(node.router.connections) for node in nodes]
    # While nothing is known yet nobody is refused, so a start in one instant overshoots.
    assert max(degrees) <= 3 * degree
    assert min(degrees) >= degree // 2
