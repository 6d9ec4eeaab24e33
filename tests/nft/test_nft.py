"""Transactions as `nft list ruleset` prints them, and as they read back; each test in a namespace of its own."""

import errno
import re
from collections.abc import Callable, Iterator

import pytest

from nft import readback
from nft.elements import Key, Member, network
from nft.expressions import (
    Expression,
    Protocol,
    accept,
    counter,
    destination_in,
    destination_port,
    drop,
    from_this_host,
    in_interface,
    ip_destination,
    ip_source,
    jump,
    leave,
    mark,
    masquerade,
    out_interface,
    source_port,
)
from nft.ruleset import ChainType, Family, Hook, Policy, Transaction
from nft.wire import NftError, attribute, attributes
from tests.namespaces import namespace, run, within


@pytest.fixture
def place() -> Iterator[str]:
    with namespace() as name:
        yield name


def listing(place: str) -> str:
    return run("ip", "netns", "exec", place, "nft", "list", "ruleset")


def change(place: str, work: Callable[[Transaction], None], table: str = "weave") -> None:
    def commit() -> None:
        with Transaction(table) as transaction:
            work(transaction)

    within(place, commit)


RULES = [
    ((in_interface("ethwe"), drop()), 'iifname "ethwe" drop'),
    ((in_interface("weave", negate=True), accept()), 'iifname != "weave" accept'),
    ((out_interface("weave"), drop()), 'oifname "weave" drop'),
    ((out_interface("weave", negate=True), drop()), 'oifname != "weave" drop'),
    ((mark(0x20000), accept()), "meta mark 0x00020000 accept"),
    ((mark(0x20000, 0x20000), accept()), "meta mark & 0x00020000 == 0x00020000 accept"),
    ((ip_source("10.32.0.0/12"), drop()), "ip saddr 10.32.0.0/12 drop"),
    ((ip_source("10.32.0.0/12", negate=True), drop()), "ip saddr != 10.32.0.0/12 drop"),
    ((ip_source("10.32.0.9"), drop()), "ip saddr 10.32.0.9 drop"),
    ((ip_destination("224.0.0.0/4"), drop()), "ip daddr 224.0.0.0/4 drop"),
    ((ip_destination("10.1.2.3", negate=True), drop()), "ip daddr != 10.1.2.3 drop"),
    ((ip_source("fd00::/64"), drop()), "ip6 saddr fd00::/64 drop"),
    ((ip_destination("fd00::5"), drop()), "ip6 daddr fd00::5 drop"),
    ((destination_port(Protocol.TCP, 6784), drop()), "tcp dport 6784 drop"),
    ((destination_port(Protocol.UDP, 53), accept()), "udp dport 53 accept"),
    ((source_port(Protocol.UDP, 6783), accept()), "udp sport 6783 accept"),
    ((source_port(Protocol.TCP, 80), drop()), "tcp sport 80 drop"),
    ((jump("other"),), "jump other"),
    ((in_interface("x"), leave()), 'iifname "x" return'),
    ((counter(), drop()), "counter packets 0 bytes 0 drop"),
    ((destination_in("four", 4, negate=True), accept()), "ip daddr != @four accept"),
    ((destination_in("six", 6), accept()), "ip6 daddr @six accept"),
    ((from_this_host(negate=True), drop()), "fib saddr type != local drop"),
]


@pytest.mark.parametrize(("expressions", "printed"), RULES, ids=[printed for _, printed in RULES])
def test_a_rule_is_what_nft_prints(place: str, expressions: tuple[Expression, ...], printed: str) -> None:
    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        transaction.add_set("four", Key.IPV4)
        transaction.add_set("six", Key.IPV6)
        transaction.add_set("links", Key.INTERFACE)
        transaction.add_chain("other")
        transaction.add_chain("input", Hook.INPUT)
        transaction.add_rule("input", *expressions)

    change(place, work)
    # nft prints the family that an address rule checks only where it is not implied.
    assert re.sub(r"meta nfproto ipv[46] ", "", listing(place)).split("\n").count(f"\t\t{printed}") == 1


def test_nat_policy_comment_and_order(place: str) -> None:
    def work(transaction: Transaction) -> None:
        transaction.replace_table()
        transaction.add_chain("post", Hook.POSTROUTING, 100, kind=ChainType.NAT)
        transaction.add_rule("post", ip_source("10.2.0.0/16"), ip_destination("10.2.0.0/16", negate=True), masquerade())
        transaction.add_chain("forward", Hook.FORWARD, -10, policy=Policy.DROP)
        transaction.add_rule("forward", out_interface("weave"), accept(), comment="second")
        transaction.add_rule("forward", in_interface("weave"), accept(), comment="first", first=True)

    change(place, work)
    printed = listing(place)
    assert "type nat hook postrouting priority srcnat; policy accept;" in printed
    assert "ip saddr 10.2.0.0/16 ip daddr != 10.2.0.0/16 masquerade" in printed
    assert "hook forward priority filter - 10; policy drop;" in printed
    assert printed.index('comment "first"') < printed.index('comment "second"')


def test_a_table_is_deleted_whether_it_is_there_or_not(place: str) -> None:
    for _ in range(2):
        change(place, lambda transaction: transaction.delete_table())
        assert listing(place) == ""
    change(place, lambda transaction: transaction.ensure_table())
    change(place, lambda transaction: transaction.ensure_table(), table="foreign")
    change(place, lambda transaction: transaction.delete_table())
    assert within(place, readback.tables) == ("foreign",)


def test_chains_of_any_family_read_back(place: str) -> None:
    def work() -> None:
        for family in (Family.INET, Family.IP):
            with Transaction("filter", family) as transaction:
                transaction.ensure_table()
                transaction.add_chain("FORWARD", Hook.FORWARD, policy=Policy.DROP)
                transaction.add_chain("mine")
                transaction.add_rule("FORWARD", out_interface("a"), in_interface("b", negate=True), jump("mine"))
                ten = (ip_destination("10.0.0.0/8", bare=True), destination_port(Protocol.UDP, 53))
                transaction.add_rule("FORWARD", *ten, accept(), comment="ten")

    within(place, work)
    found = within(place, lambda: readback.base_chains(Hook.FORWARD))
    assert [(one.family, one.table, one.name, one.policy) for one in found] == [
        (family, "filter", "FORWARD", Policy.DROP) for family in (Family.INET, Family.IP)
    ]
    assert within(place, lambda: readback.base_chains(Hook.INPUT)) == ()
    first, second = within(place, lambda: readback.rules("filter", "FORWARD", Family.IP))
    assert (first.interfaces, first.verdict, first.comment) == (("out a", "not in b"), "mine", "")
    assert first.port == 0
    assert (second.interfaces, second.verdict, second.comment, second.port) == ((), "accept", "ten", 53)
    assert within(place, lambda: readback.rules("filter", "FORWARD", Family.IP6)) == ()


def test_rules_read_back_and_go_by_handle(place: str) -> None:
    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        transaction.add_chain("out", Hook.OUTPUT)
        transaction.add_rule("out", counter(), comment="everything")
        transaction.add_rule("out", out_interface("none"), drop())

    change(place, work)
    run("ip", "netns", "exec", place, "ping", "-c", "2", "-i", "0.01", "127.0.0.1")
    counted, dropped = within(place, lambda: readback.rules("weave", "out"))
    assert (counted.expressions, counted.comment) == (("counter",), "everything")
    assert (counted.packets, counted.octets) == (4, 4 * 84)
    assert dropped.expressions == ("meta", "cmp", "immediate")
    change(place, lambda transaction: transaction.delete_rule("out", counted.handle))
    assert [rule.handle for rule in within(place, lambda: readback.rules("weave", "out"))] == [dropped.handle]
    change(place, lambda transaction: transaction.flush_chain("out"))
    assert within(place, lambda: readback.rules("weave", "out")) == ()
    change(place, lambda transaction: transaction.delete_chain("out"))
    assert within(place, lambda: readback.chains("weave")) == ()


def test_what_is_not_there_reads_as_empty(place: str) -> None:
    assert within(place, readback.tables) == ()
    assert within(place, lambda: readback.chains("weave")) == ()
    assert within(place, lambda: readback.rules("weave", "input")) == ()
    assert within(place, lambda: readback.elements("weave", "members")) == ()


def test_elements_of_sets(place: str) -> None:
    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        for name, key, values in (
            ("four", Key.IPV4, ["10.0.0.1", "10.0.0.2"]),
            ("six", Key.IPV6, ["fd00::1"]),
            ("ports", Key.PORT, ["53", "6784"]),
            ("links", Key.INTERFACE, ["weave", "ethwe"]),
        ):
            transaction.add_set(name, key)
            transaction.add_elements(name, key, values)

    for _ in range(2):
        change(place, work)
    printed = listing(place)
    for expected in ("{ 10.0.0.1, 10.0.0.2 }", "{ fd00::1 }", "{ 53, 6784 }"):
        assert f"elements = {expected}" in printed
    change(place, lambda transaction: transaction.delete_members("four", Key.IPV4, [Member(b"\x0a\0\0\1")]))
    assert [element.key for element in within(place, lambda: readback.elements("weave", "four"))] == [b"\x0a\0\0\2"]
    change(place, lambda transaction: transaction.flush_set("four"))
    assert within(place, lambda: readback.elements("weave", "four")) == ()
    change(place, lambda transaction: transaction.delete_set("four"))
    assert "set four" not in listing(place)


def test_networks_of_an_interval_set(place: str) -> None:
    networks = ["10.0.0.0/24", "10.0.1.0/24", "10.32.0.0/12", "192.168.1.7/32", "255.255.255.0/24"]

    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        transaction.add_set("ranges", Key.IPV4, interval=True)
        transaction.add_elements("ranges", Key.IPV4, networks, interval=True)

    change(place, work)
    printed = listing(place)
    for text in ("10.0.0.0/24", "10.0.1.0/24", "10.32.0.0/12", "192.168.1.7", "255.255.255.0/24"):
        assert text in printed
    gone = [network(Key.IPV4, text) for text in ("10.0.0.0/24", "255.255.255.0/24")]
    change(place, lambda transaction: transaction.delete_members("ranges", Key.IPV4, gone, interval=True))
    printed = listing(place)
    assert "10.0.0.0" not in printed
    assert "10.0.1.0/24" in printed
    assert "255.255.255.0" not in printed


def test_many_elements_are_one_transaction(place: str) -> None:
    addresses = [f"10.{number >> 8}.{number & 255}.1" for number in range(5000)]

    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        transaction.add_set("many", Key.IPV4)
        transaction.add_elements("many", Key.IPV4, addresses)

    change(place, work)
    assert len(within(place, lambda: readback.elements("weave", "many"))) == 5000


def test_a_refused_transaction_names_the_object_and_changes_nothing(place: str) -> None:
    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        transaction.add_chain("input", Hook.INPUT)
        transaction.add_rule("nosuch", in_interface("x"), drop())
        transaction.add_rule("input", in_interface("x"), drop())

    with pytest.raises(NftError, match="a rule of chain inet weave nosuch: No such file") as raised:
        change(place, work)
    assert raised.value.errno == errno.ENOENT
    assert listing(place) == ""
    with pytest.raises(NftError, match="elements of set inet weave none"):
        change(place, lambda transaction: transaction.add_elements("none", Key.IPV4, ["10.0.0.1"]))


def test_an_exception_in_the_block_sends_nothing(place: str) -> None:
    def work(transaction: Transaction) -> None:
        transaction.ensure_table()
        raise KeyError("stop")

    with pytest.raises(KeyError):
        change(place, work)
    assert listing(place) == ""


def test_attributes_are_bounded_both_ways() -> None:
    with pytest.raises(NftError, match="too long"):
        attribute(1, bytes(65536))
    with pytest.raises(NftError, match="cut"):
        list(attributes(b"\x40\0\1\0abcd"))
