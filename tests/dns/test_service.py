"""The service as the router uses it: gossip of several, what is kept over restarts, what goes with its container."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dns.service import NameSettings, listen_address
from mesh.names import PeerName
from tests.dns.names import NOW, Node, Rows, serving
from tests.vectors import ROOT


async def exchange(*nodes: Node) -> None:
    """What each says reaches all others, until nobody says anything; then all greet each other."""
    for _ in range(4):
        for channel in ("nameserver", "nameserver6"):
            for node in nodes:
                for message in await node.said(channel):
                    for other in nodes:
                        if other is not node:
                            other.users[channel].on_broadcast(PeerName(1), message)
    for channel in ("nameserver", "nameserver6"):
        for node in nodes:
            whole = node.users[channel].gossip()
            for other in nodes:
                if whole is not None and other is not node:
                    other.users[channel].on_gossip(whole)


async def test_names_of_both_families_reach_everybody() -> None:
    one, two = Node(1), Node(2)
    one.service.add("web.weave.local", "c1", "10.32.0.1")
    one.service.add("web.weave.local", "c1", "fd00::1")
    two.service.add("db.weave.local", "c2", "10.32.0.2")
    await exchange(one, two)
    expected = [("db.weave.local.", "10.32.0.2"), ("web.weave.local.", "10.32.0.1"), ("web.weave.local.", "fd00::1")]
    assert one.names() == two.names() == expected
    one.service.container_died("c1")
    await exchange(one, two)
    assert two.names() == expected[:1]


async def test_what_is_said_in_one_turn_is_one_message() -> None:
    node = Node(1)
    for number in range(50):
        node.service.add(f"n{number}.weave.local", "c", "10.32.0.1")
        node.service.delete(hostname=f"n{number % 7}.weave.local")
    assert len(await node.said()) == 1


async def test_a_peer_takes_its_names_along() -> None:
    one, two = Node(1), Node(2)
    two.service.add("db.weave.local", "c2", "10.32.0.2")
    two.service.add("db.weave.local", "c2", "fd00::2")
    await exchange(one, two)
    one.service.peer_gone(PeerName(2))
    assert one.service.entries() == []
    await exchange(one, two)
    assert len(one.names()) == 2


async def test_names_survive_a_restart() -> None:
    rows = Rows()
    other = Node(2)
    async with serving(journal=rows) as before:
        before.service.add("ext.weave.local", "weave:extern", "192.0.2.1")
        before.service.add("web.weave.local", "c1", "10.32.0.1")
        before.service.add("old.weave.local", "c1", "10.32.0.3")
        before.service.delete(hostname="OLD.weave.local")
        assert await before.service.settled() is None
        await exchange(before, other)
    async with serving(journal=rows) as after:
        # A peer that remembers cannot bury them.
        await exchange(after, other)
        assert after.names() == other.names() == [("ext.weave.local.", "192.0.2.1"), ("web.weave.local.", "10.32.0.1")]
        # The container ended while nobody looked.
        assert after.service.reconcile([], ["10.32.0.7"]) == 1
        await exchange(after, other)
        assert after.names() == other.names() == [("ext.weave.local.", "192.0.2.1")]
        await after.service.settled()
    assert rows.rows == [("ext.weave.local.", "weave:extern", "192.0.2.1")]


async def test_without_a_journal_a_restart_buries_what_is_left() -> None:
    """DNS spec §13.4."""
    other = Node(2)
    first = Node(1)
    first.service.add("web.weave.local", "c1", "10.32.0.1")
    await exchange(first, other)
    restarted = Node(1)
    for _ in range(2):
        await exchange(restarted, other)
    assert other.names() == []


async def test_a_journal_that_fails_is_said_and_costs_no_more() -> None:
    rows = Rows()
    rows.broken = True
    async with serving(journal=rows) as node:
        assert node.service.add("web.weave.local", "c1", "10.32.0.1")
        assert await node.service.settled() == "no space left on device"
        assert node.names() == [("web.weave.local.", "10.32.0.1")]
        rows.broken = False
        node.service.add("web.weave.local", "c1", "10.32.0.1")
        assert await node.service.settled() is None
    assert rows.rows == [("web.weave.local.", "c1", "10.32.0.1")]


async def test_what_ended_while_nobody_looked_loses_its_names() -> None:
    rows = Rows()
    rows.rows = [
        ("a.weave.local.", "c1", "10.32.0.1"),
        ("b.weave.local.", "c2", "10.32.0.2"),
        ("c.weave.local.", "weave:expose", "10.32.0.3"),
        ("d.weave.local.", "c4", "fd00::4"),
        ("e.weave.local.", "c5", "10.32.0.5"),
    ]
    async with serving(journal=rows) as node:
        # One was registered again, and another is new: that the look at the host missed them means nothing.
        node.service.add("e.weave.local", "c5", "10.32.0.5")
        node.service.add("f.weave.local", "c6", "10.32.0.6")
        assert node.service.reconcile(["c1"], ["fd00::4"]) == 1
        assert [name[0] for name, _ in node.names()] == ["a", "c", "d", "e", "f"]


async def test_what_is_not_ours_to_name_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(1)
    with caplog.at_level("INFO", "dns"):
        assert not node.service.add("web.example.com", "c1", "10.32.0.1")
    assert caplog.messages == ["Ignoring registration web.example.com 10.32.0.1 c1 (not a subdomain of weave.local.)"]
    with pytest.raises(ValueError, match=r"^invalid IP Address: nonsense$"):
        node.service.add("web.weave.local", "c1", "nonsense")
    with pytest.raises(ValueError, match=r"^invalid IP Address: bad$"):
        node.service.delete(address="bad")


async def test_the_report_is_the_reference_s_and_more() -> None:
    capture = json.loads((ROOT / "api" / "report.dns-entries.json").read_text())["DNS"]
    async with serving() as node:
        node.peers |= {PeerName(1), PeerName(2)}
        other = Node(2)
        for one in capture["Entries"]:
            teller = node if one["Origin"].endswith("01") else other
            teller.service.add(one["Hostname"], one["ContainerID"], one["Address"])
        await exchange(node, other)
        report = node.service.report()
        host, port = node.service.address or ("", 0)
        assert list(report)[: len(capture)] == list(capture)
        assert report | {"Upstream": capture["Upstream"]} == report | capture | {"Address": f"{host}:{port}"}
        assert (node.service.metrics().own, node.service.metrics().live) == (4, 5)


async def test_tombstones_go_in_the_end() -> None:
    one, two = Node(1), Node(2)
    one.service.add("web.weave.local", "c1", "10.32.0.1")
    await exchange(one, two)
    one.service.delete()
    await exchange(one, two)
    for node, late, left in ((one, 1800, 1), (one, 1801, 0), (two, 1801, 0)):
        node.now = NOW + late
        node.service.purge()
        assert len(node.service.entries()) == left


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2]),
        st.sampled_from(["add", "delete", "meet", "later", "restart"]),
        st.sampled_from(["a.weave.local", "A.weave.local", "b.weave.local"]),
        st.sampled_from(["10.32.0.1", "fd00::1"]),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=60, deadline=None)
async def test_three_of_them_agree_in_the_end(history: list[tuple[int, str, str, str]]) -> None:
    """DNS spec §13.1, 2, 4: after lost messages, restarts without memory and clocks that differ a little."""
    nodes = [Node(number) for number in (1, 2, 3)]
    for which, op, name, address in history:
        node = nodes[which]
        if op == "add":
            node.service.add(name, f"c{which}", address)
        elif op == "delete":
            node.service.delete(hostname=name, address=address)
        elif op == "meet":
            await exchange(*(other for other in nodes if other is not node))
        elif op == "later":
            node.now += 60
        else:
            nodes[which] = Node(which + 1)
            nodes[which].now = node.now
    own = [own_names(node, number + 1) for number, node in enumerate(nodes)]
    for _ in range(3):
        await exchange(*nodes)
    assert nodes[0].service.entries() == nodes[1].service.entries() == nodes[2].service.entries()
    assert [own_names(node, number + 1) for number, node in enumerate(nodes)] == own, "who registered, decides"


def own_names(node: Node, name: int) -> list[Any]:
    return [(e.hostname, e.address) for e in node.service.entries() if e.origin == name and not e.tombstone]


def test_where_to_listen() -> None:
    assert listen_address("172.17.0.1:53") == ("172.17.0.1", 53)
    assert listen_address(":53") == ("0.0.0.0", 53)
    assert listen_address("[fd00::1]:5353") == ("fd00::1", 5353)
    line = 'invalid DNS listen address "foo": address foo: missing port in address'
    with pytest.raises(ValueError, match=f"^{line}$"):
        listen_address("foo")
    for wrong in ("foo:53", "1.2.3.4:x", "1.2.3.4:99999", ""):
        with pytest.raises(ValueError, match="invalid DNS listen address"):
            listen_address(wrong)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"domain": "weave..local"}, 'invalid DNS domain "weave..local": labels have 1 to 63 bytes'),
        ({"domain": "a" * 64}, "invalid DNS domain"),
        ({"ttl": 2**31}, "invalid DNS TTL 2147483648"),
        ({"upstream": ("dns.example.com",)}, 'invalid DNS upstream "dns.example.com", should be IP'),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        NameSettings(**settings)
