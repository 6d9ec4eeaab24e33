"""Maps, concatenations, intervals, counters, logs and comments, as nft prints them; audits; notifications."""

import errno
import re
import select
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from nft import audit
from nft.elements import Key, KeyType, Member, key_bytes
from nft.events import Changed, Events
from nft.expressions import (
    Field,
    State,
    accept,
    count,
    counter,
    drop,
    in_interface,
    jump,
    limit,
    log,
    protocol,
    state,
    to,
    verdict_by,
    within,
)
from nft.ruleset import Hook, Transaction
from nft.wire import Channel, Message, NftError
from tests import namespaces
from tests.namespaces import namespace, run

TABLE = "weave_npc"
NAMED: KeyType = (Key.IPV4, Key.PROTOCOL, Key.PORT)
NAMED6: KeyType = (Key.IPV6, Key.PROTOCOL, Key.PORT)
PORTS: KeyType = (Key.PROTOCOL, Key.PORT)
PORT_FIELDS = (Field.PROTOCOL, Field.DESTINATION_PORT)


@pytest.fixture
def place() -> Iterator[str]:
    with namespace() as name:
        yield name


def listing(place: str) -> str:
    return run("ip", "netns", "exec", place, "nft", "list", "ruleset")


def change(place: str, work: Callable[[Transaction], object]) -> None:
    def commit() -> None:
        with Transaction(TABLE) as transaction:
            work(transaction)

    namespaces.within(place, commit)


def key(kind: KeyType, *values: str) -> Member:
    return Member(key_bytes(kind, *values))


def ports(protocol: int, first: int, last: int) -> Member:
    return Member(key_bytes(PORTS, str(protocol), str(first)), key_bytes(PORTS, str(protocol), str(last)))


def everything(change: Transaction) -> None:
    """One of each thing that a table of network policy is made of."""
    change.replace_table(comment="who and what")
    change.add_counter("drops-1", comment="of a class")
    change.add_chain("class", comment="shop/p")
    change.add_chain("ingress", Hook.FORWARD, -4)
    change.add_set("peers", Key.IPV4, comment="app=front")
    change.add_members("peers", Key.IPV4, [key(Key.IPV4, "10.32.0.1"), key(Key.IPV4, "10.32.0.2")])
    change.add_set("blocks", Key.IPV4, interval=True)
    ranges = [Member(b"\x0a\0\0\0", b"\x0a\0\0\xff"), Member(b"\xff\xff\xff\0", b"\xff\xff\xff\xff")]
    change.add_members("blocks", Key.IPV4, ranges, interval=True)
    change.add_set("blocks6", Key.IPV6, interval=True)
    change.add_members("blocks6", Key.IPV6, [Member(bytes(16), b"\xff" * 16)], interval=True)
    change.add_set("named", NAMED)
    change.add_members("named", NAMED, [key(NAMED, "10.32.0.1", "6", "80"), key(NAMED, "10.32.0.2", "132", "2905")])
    change.add_set("named6", NAMED6)
    change.add_members("named6", NAMED6, [key(NAMED6, "fd00::1", "17", "53")])
    change.add_set("pairs", (Key.IPV6, Key.IPV6))
    change.add_members("pairs", (Key.IPV6, Key.IPV6), [key((Key.IPV6, Key.IPV6), "fd00::1", "fd00::1")])
    change.add_verdict_map("in4", Key.IPV4)
    change.add_members("in4", Key.IPV4, [Member(key_bytes(Key.IPV4, "10.32.0.9"), verdict=to("class"), comment="a/b")])
    few = change.add_anonymous(PORTS, [ports(6, 80, 90), ports(17, 53, 53), ports(132, 0, 65535)], interval=True)
    change.add_rule("class", within((Field.SOURCE4,), "peers"), within(PORT_FIELDS, few), accept(), comment="shop/p#0")
    change.add_rule("class", within((Field.SOURCE6, Field.DESTINATION6), "pairs"), accept())
    change.add_rule("class", within((Field.DESTINATION6, *PORT_FIELDS), "named6"), accept())
    change.add_rule("class", within((Field.DESTINATION4, *PORT_FIELDS), "named"), accept())
    change.add_rule("class", count("drops-1"), limit(50, 100), log("wnpc:i:class", 86, 96))
    change.add_rule("class", counter(), drop())
    types = [Member(bytes((first,)), bytes((last,))) for first, last in ((130, 132), (133, 137), (143, 143))]
    change.add_rule("ingress", state(State.ESTABLISHED | State.RELATED), accept())
    quiet = change.add_anonymous(Key.ICMPV6_TYPE, types, interval=True)
    change.add_rule("ingress", protocol(58), within((Field.ICMPV6_TYPE,), quiet), accept())
    change.add_rule("ingress", verdict_by((Field.DESTINATION4,), "in4"))


PRINTED = [
    'comment "who and what"',
    'counter drops-1 { comment "of a class" packets 0 bytes 0',
    'comment "app=front"',
    "elements = { 10.32.0.1, 10.32.0.2 }",
    "elements = { 10.0.0.0/24, 255.255.255.0/24 }",
    "elements = { ::/0 }",
    "type ipv4_addr . inet_proto . inet_service",
    "10.32.0.1 . tcp . 80",
    "10.32.0.2 . sctp . 2905",
    "elements = { fd00::1 . udp . 53 }",
    "elements = { fd00::1 . fd00::1 }",
    "type ipv4_addr : verdict",
    'elements = { 10.32.0.9 comment "a/b" : goto class }',
    'ip saddr @peers meta l4proto . th dport { tcp . 80-90, udp . 53, sctp . 0-65535 } accept comment "shop/p#0"',
    "ip6 saddr . ip6 daddr @pairs accept",
    "ip6 daddr . meta l4proto . th dport @named6 accept",
    "ip daddr . meta l4proto . th dport @named accept",
    'counter name "drops-1" limit rate 50/second burst 100 packets log prefix "wnpc:i:class" group 86 snaplen 96',
    "counter packets 0 bytes 0 drop",
    "ct state established,related accept",
    "icmpv6 type { 130-132, 133-137, mld2-listener-report } accept",
    "ip daddr vmap @in4",
    "hook forward priority filter - 4; policy accept;",
]


def test_nft_prints_what_was_meant(place: str) -> None:
    change(place, everything)
    printed = re.sub(r"\s+", " ", listing(place)).replace("meta nfproto ipv4 ", "").replace("meta nfproto ipv6 ", "")
    assert [line for line in PRINTED if line not in printed] == [], printed


def found_different(place: str) -> list[str]:
    def compare() -> list[str]:
        wanted = Transaction(TABLE)
        everything(wanted)
        with Channel() as channel:
            return audit.differences(audit.intended(wanted.messages), audit.read(channel, TABLE))

    return namespaces.within(place, compare)


def test_a_table_reads_back_as_it_was_meant(place: str) -> None:
    assert found_different(place) == ["the table is gone"]
    change(place, everything)
    assert found_different(place) == []


FOREIGN = [
    ("add rule inet weave_npc ingress accept", ["rules of chain ingress"]),
    ("insert rule inet weave_npc class accept", ["rules of chain class"]),
    ("flush chain inet weave_npc class", ["rules of chain class"]),
    ("flush chain inet weave_npc ingress", ["rules of chain ingress"]),
    ("delete element inet weave_npc in4 { 10.32.0.9 }", ["set in4: 1 elements missing, 0 too many"]),
    ("add element inet weave_npc peers { 10.32.0.7 }", ["set peers: 0 elements missing, 1 too many"]),
    ("add chain inet weave_npc theirs", ["chain theirs: foreign"]),
    ("add set inet weave_npc theirs { type ipv4_addr; }", ["set theirs: foreign"]),
    ("add counter inet weave_npc theirs", ["counter theirs: foreign"]),
    ("flush table inet weave_npc", ["rules of chain class", "rules of chain ingress"]),
    ("delete table inet weave_npc", ["the table is gone"]),
    ("add chain inet weave_npc ingress { policy drop; }", ["chain ingress: changed"]),
]


@pytest.mark.parametrize(("command", "expected"), FOREIGN, ids=[command for command, _ in FOREIGN])
def test_what_somebody_changed_is_named(place: str, command: str, expected: list[str]) -> None:
    change(place, everything)
    run("ip", "netns", "exec", place, "nft", command)
    assert found_different(place) == expected


def test_others_changes_are_told_and_ours_are_not(place: str) -> None:
    def heard(events: Events) -> set[Changed]:
        return set(events.read()) if select.select([events], [], [], 5)[0] else set()

    def work() -> None:
        channel = Channel()
        events = Events(channel.port)
        made = Transaction(TABLE)
        everything(made)
        channel.commit(made.messages)
        assert list(events.read()) == []
        run("ip", "netns", "exec", place, "nft", "add table ip other")
        assert heard(events) == {Changed("other")}
        run("ip", "netns", "exec", place, "nft", "flush ruleset")
        assert Changed(TABLE) in heard(events)
        events.close()
        channel.close()

    namespaces.within(place, work)


def test_a_channel_serves_after_a_refusal(place: str) -> None:
    def work() -> None:
        with Channel() as channel:
            refused = Transaction(TABLE)
            for number in range(2000):
                refused.add_rule(f"none{number}", drop())
            with pytest.raises(NftError, match="a rule of chain inet weave_npc none0: No such file"):
                channel.commit(refused.messages)
            made = Transaction(TABLE)
            everything(made)
            channel.commit(made.messages)
            channel.commit(made.messages)

    namespaces.within(place, work)
    assert found_different(place) == []


def test_ten_thousand_elements_of_each_kind(place: str) -> None:
    def work(change: Transaction) -> None:
        change.replace_table()
        addresses = [f"10.{number >> 8}.{number & 255}.1" for number in range(10_000)]
        change.add_set("many", Key.IPV4)
        change.add_members("many", Key.IPV4, [key(Key.IPV4, one) for one in addresses])
        change.add_set("named", NAMED)
        change.add_members("named", NAMED, [key(NAMED, one, "6", "80") for one in addresses])
        change.add_set("blocks", Key.IPV4, interval=True)
        change.add_elements("blocks", Key.IPV4, [f"{one}/32" for one in addresses], interval=True)

    change(place, work)

    def counts() -> dict[str, int]:
        with Channel() as channel:
            return {name: len(rows) for name, rows in audit.read(channel, TABLE).entries.items()}

    assert namespaces.within(place, counts) == {"many": 10_000, "named": 10_000, "blocks": 20_000}


def test_a_change_of_the_interface_rule_is_seen(place: str) -> None:
    """Names of interfaces are compared as a whole, not by what they have in common."""

    def work(change: Transaction) -> None:
        change.replace_table()
        change.add_chain("class")
        change.add_chain("ingress", Hook.FORWARD, -4)
        change.add_rule("ingress", in_interface("weave"), jump("class"))

    def compare(other: str) -> list[str]:
        wanted = Transaction(TABLE)
        wanted.replace_table()
        wanted.add_chain("class")
        wanted.add_chain("ingress", Hook.FORWARD, -4)
        wanted.add_rule("ingress", in_interface(other), jump("class"))
        with Channel() as channel:
            return audit.differences(audit.intended(wanted.messages), audit.read(channel, TABLE))

    change(place, work)
    assert namespaces.within(place, lambda: compare("weave")) == []
    assert namespaces.within(place, lambda: compare("weave2")) == ["rules of chain ingress"]


def test_a_table_is_read_and_written_while_others_write(place: str) -> None:
    """Transactions of others make dumps begin again and may come in between; neither is an error."""
    over = threading.Event()

    def disturb() -> None:
        with Channel() as channel:
            while not over.is_set():
                change = Transaction("other")
                change.replace_table()
                change.add_set("many", Key.IPV4)
                change.add_elements("many", Key.IPV4, [f"10.0.{number}.1" for number in range(200)])
                channel.commit(change.messages)

    def work() -> None:
        made = Transaction(TABLE)
        everything(made)
        meant = audit.intended(made.messages)
        others = [threading.Thread(target=disturb) for _ in range(2)]
        for other in others:
            other.start()
        try:
            with Channel() as channel:
                for _ in range(60):
                    channel.commit(made.messages)
                    assert audit.differences(meant, audit.read(channel, TABLE)) == []
        finally:
            over.set()
            for other in others:
                other.join()

    namespaces.within(place, work)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOBUFS, errno.EINTR])
def test_what_is_in_the_way_for_a_moment_costs_nothing(
    place: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, refusals = Channel._commit, [number] * 3

    def busy(self: Channel, messages: Sequence[Message]) -> None:
        if refusals:
            raise NftError("unable to change table weave_npc", refusals.pop())
        really(self, messages)

    monkeypatch.setattr(Channel, "_commit", busy)

    def judge(transaction: Transaction) -> None:
        transaction.replace_table()
        transaction.add_chain("once")
        transaction.add_rule("once", accept())

    change(place, judge)
    assert not refusals and listing(place).count("accept") == 1
    refusals.extend([number] * 9)
    with pytest.raises(NftError, match="unable to change table weave_npc"):
        change(place, lambda transaction: transaction.add_chain("never"))
    assert "never" not in listing(place)
