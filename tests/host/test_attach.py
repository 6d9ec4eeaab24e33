"""Attach and detach between real network namespaces."""

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_interface
from pathlib import Path

import pytest

from host.addresses import Address
from host.attach import Attachment, attach, detach, host_names
from host.bridge import ensure_bridge
from host.containers import containers
from host.errors import HostError
from host.links import ports
from host.reset import reset
from host.routes import Route
from nft import readback
from nft.ruleset import Hook, Transaction
from tests.host.views import addresses, links, port_flags, ruleset, setting, watching
from tests.namespaces import namespace, run, within

MAC = "0a:00:00:00:00:01"
MTU = 1400
ONE, OTHER, SIX = ip_interface("10.32.0.5/12"), ip_interface("10.40.0.5/24"), ip_interface("fd00::5/64")


@dataclass(frozen=True, slots=True)
class Pair:
    """A host with a bridge, and a container."""

    host: str
    container: str

    def attach(self, *wanted: Address, **options: object) -> Attachment:
        return within(self.host, lambda: attach(self.container, wanted, **options))  # type: ignore[arg-type]

    def detach(self, *leaving: Address, interface: str = "ethwe") -> tuple[str, ...]:
        return within(self.host, lambda: detach(self.container, leaving or None, interface=interface))

    def is_clean(self) -> bool:
        return set(links(self.host)) == {"lo", "weave"} and set(links(self.container)) == {"lo"} and not self.rules()

    def rules(self) -> str:
        return ruleset(self.container)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with namespace() as host, namespace() as container:
        within(host, lambda: ensure_bridge("weave", MAC, MTU))
        yield Pair(host, container)


def test_what_a_container_gets(pair: Pair) -> None:
    made = pair.attach(ONE, SIX)
    assert (made.interface, set(made.addresses), set(made.added)) == ("ethwe",) + ({"10.32.0.5/12", "fd00::5/64"},) * 2
    port, inner = links(pair.host)[made.host_interface], links(pair.container)["ethwe"]
    assert (port["master"], port["mtu"], inner["mtu"], inner["address"]) == ("weave", MTU, MTU, made.mac)
    assert "LOWER_UP" in port["flags"]
    assert "LOWER_UP" in inner["flags"]
    flags = port_flags(pair.host, made.host_interface)
    assert (flags["hairpin"], flags["isolated"]) == (True, False)
    assert addresses(pair.container, "ethwe") == {"10.32.0.5/12", "fd00::5/64"}
    assert "inet 10.32.0.5/12 brd 10.47.255.255" in run("ip", "-n", pair.container, "addr")
    assert "224.0.0.0/4 dev ethwe scope link" in run("ip", "-n", pair.container, "route")
    for path, value in (
        ("ipv4/neigh/ethwe/base_reachable_time", "5"),
        ("ipv4/neigh/ethwe/delay_first_probe_time", "2"),
        ("ipv4/neigh/ethwe/ucast_solicit", "1"),
        ("ipv6/conf/ethwe/accept_ra", "0"),
    ):
        assert setting(pair.container, path) == value
    assert setting(pair.host, f"ipv6/conf/{made.host_interface}/accept_ra") == "0"
    assert setting(pair.container, "ipv6/conf/lo/accept_ra") != "0"


def test_by_descriptor_with_routes_and_an_alias(pair: Pair) -> None:
    routes = [
        Route(IPv4Network("192.0.2.1/32")),
        Route(IPv4Network("0.0.0.0/0"), IPv4Address("192.0.2.1")),
        Route(IPv4Network("10.99.0.0/24"), IPv4Address("10.32.0.1")),
    ]
    with Path(f"/run/netns/{pair.container}").open("rb") as held:
        descriptor = held.fileno()
        for _ in range(2):
            made = within(
                pair.host,
                lambda: attach(descriptor, [ONE], interface="eth0", alias="a pod", routes=routes, identity="p"),
            )
        assert (made.created, made.mtu) == (False, MTU)
        assert "alias a pod" in run("ip", "-n", pair.host, "link", "show", made.host_interface)
        found = run("ip", "-n", pair.container, "route")
        assert "default via 192.0.2.1 dev eth0" in found
        assert "192.0.2.1 dev eth0 scope link" in found
        assert "10.99.0.0/24 via 10.32.0.1 dev eth0" in found
        assert within(pair.host, lambda: detach(descriptor, interface="eth0")) == (str(ONE),)
    assert pair.is_clean()


_READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "


def test_where_settings_cannot_be_written(pair: Pair) -> None:
    """As a container has them that is not privileged: neighbours are tuned, advertisements are dropped by a rule."""
    script = f"from host.attach import *; attach({pair.container!r}, [IPv4Interface('10.32.0.5/12')])"
    command = ["unshare", "--mount", "sh", "-c", f'{_READ_ONLY} "$0" -c "$1"', sys.executable, script]
    run("nsenter", f"--net=/run/netns/{pair.host}", *command)
    assert setting(pair.container, "ipv6/conf/ethwe/accept_ra") == "1"
    assert 'iifname "ethwe" icmpv6 type nd-router-advert drop' in pair.rules()
    table = run("ip", "-n", pair.container, "ntable", "show", "dev", "ethwe", "name", "arp_cache")
    assert all(text in table for text in ("base_reachable 5000", "delay_probe 2000", "ucast_probes 1"))


def test_attach_twice_changes_nothing(pair: Pair) -> None:
    first = pair.attach(ONE, SIX)
    before = {name: link["ifindex"] for name, link in links(pair.host).items()}, pair.rules()
    again = pair.attach(ONE, SIX)
    assert ({name: link["ifindex"] for name, link in links(pair.host).items()}, pair.rules()) == before
    assert (again.host_interface, again.mac, again.addresses, again.added) == (
        first.host_interface,
        first.mac,
        first.addresses,
        (),
    )


def test_options(pair: Pair) -> None:
    made = pair.attach(ONE, multicast_route=False, mtu=1300, hairpin=False, identity="4711")
    assert made.host_interface == "vethwepl4711"
    assert links(pair.container)["ethwe"]["mtu"] == links(pair.host)["vethwepl4711"]["mtu"] == 1300
    assert links(pair.host)["weave"]["mtu"] == MTU
    assert port_flags(pair.host, "vethwepl4711")["hairpin"] is False
    assert "224.0.0.0" not in run("ip", "-n", pair.container, "route")


@pytest.mark.parametrize("mtu", [67, MTU + 1])
def test_mtu_out_of_range(pair: Pair, mtu: int) -> None:
    with pytest.raises(HostError, match=f"MTU {mtu} is out of range: bridge weave takes 68 to {MTU}"):
        pair.attach(ONE, mtu=mtu)
    assert pair.is_clean()


def test_multicast_rules_follow_the_subnets(pair: Pair) -> None:
    pair.attach(ONE)
    pair.attach(OTHER)
    accepted = [f'iifname "ethwe" ip saddr {n} ip daddr 224.0.0.0/4 accept' for n in ("10.32.0.0/12", "10.40.0.0/24")]
    dropped = 'iifname "ethwe" ip daddr 224.0.0.0/4 drop'
    printed = pair.rules()
    assert all(rule in printed for rule in (*accepted, dropped))
    assert printed.index(dropped) > max(printed.index(rule) for rule in accepted)
    assert pair.detach(OTHER) == ("10.40.0.5/24",)
    assert accepted[0] in pair.rules()
    assert accepted[1] not in pair.rules()


def test_multicast_is_heard_from_the_own_subnet_only(pair: Pair) -> None:
    with namespace() as sender:
        pair.attach(ip_interface("10.32.0.5/24"))
        within(pair.host, lambda: attach(sender, [ip_interface("10.32.0.6/24"), ip_interface("10.33.0.6/24")]))

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("", 7000))
            membership = socket.inet_aton("239.1.1.1") + socket.inet_aton("10.32.0.5")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            return sock

        def send(source: str, text: bytes) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((source, 0))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
                sock.sendto(text, ("239.1.1.1", 7000))

        run("ip", "netns", "exec", pair.container, "sysctl", "-qw", "net.ipv4.conf.ethwe.rp_filter=0")
        with within(pair.container, listen) as sock:
            sock.settimeout(5)
            within(sender, lambda: send("10.33.0.6", b"foreign"))
            within(sender, lambda: send("10.32.0.6", b"own"))
            assert sock.recv(100) == b"own"


def test_containers_reach_each_other_and_themselves(pair: Pair) -> None:
    with namespace() as other:
        pair.attach(ONE, SIX)
        within(pair.host, lambda: attach(other, [ip_interface("10.32.0.6/12"), ip_interface("fd00::6/64")]))
        for there in ("10.32.0.6", "fd00::6"):
            run("ip", "netns", "exec", pair.container, "ping", "-c", "1", "-W", "3", there)


def test_gratuitous_arp_for_each_address(pair: Pair) -> None:
    with namespace() as watcher:
        within(pair.host, lambda: attach(watcher, [ip_interface("10.32.0.9/12")]))

        with watching(watcher) as sock:
            made = pair.attach(ONE, OTHER, SIX)
            frames = [sock.recv(100)[:42] for _ in range(2)]
        mac = bytes.fromhex(made.mac.replace(":", ""))
        for frame, address in zip(frames, (ONE, OTHER), strict=True):
            assert frame[:12] == b"\xff" * 6 + mac
            assert frame[20:22] == b"\0\1"
            assert frame[22:] == mac + address.ip.packed + b"\xff" * 6 + address.ip.packed


def test_detach_leaves_nothing(pair: Pair) -> None:
    pair.attach(ONE, SIX)
    assert set(pair.detach()) == {"10.32.0.5/12", "fd00::5/64"}
    assert pair.is_clean()
    assert pair.detach() == ()


def test_detach_of_the_last_address_by_name(pair: Pair) -> None:
    pair.attach(ONE)
    assert pair.detach(OTHER) == ()
    assert "ethwe" in links(pair.container)
    assert pair.detach(ONE) == ("10.32.0.5/12",)
    assert pair.is_clean()


def test_a_second_address_of_the_subnet_stays(pair: Pair) -> None:
    second = ip_interface("10.32.0.6/12")
    pair.attach(ONE, second)
    assert pair.detach(ONE) == ("10.32.0.5/12",)
    assert addresses(pair.container, "ethwe") == {"10.32.0.6/12"}


def test_detach_when_the_pair_is_gone(pair: Pair) -> None:
    made = pair.attach(ONE)
    run("ip", "-n", pair.host, "link", "del", made.host_interface)
    assert pair.detach() == ()
    assert pair.is_clean()


def test_two_interfaces_of_one_container(pair: Pair) -> None:
    first = pair.attach(ONE)
    second = pair.attach(OTHER, interface="eth7")
    assert first.host_interface != second.host_interface
    assert addresses(pair.container, "ethwe") == {"10.32.0.5/12"}
    assert addresses(pair.container, "eth7") == {"10.40.0.5/24"}
    assert 'iifname "ethwe"' in pair.rules()
    pair.detach(interface="eth7")
    assert 'iifname "ethwe"' in pair.rules()
    assert "eth7" not in pair.rules()
    pair.detach()
    assert pair.is_clean()


def test_foreign_rules_in_the_table_stay(pair: Pair) -> None:
    def foreign() -> None:
        with Transaction("weave") as change:
            change.ensure_table()
            change.add_chain("theirs", Hook.OUTPUT)

    within(pair.container, foreign)
    pair.attach(ONE)
    pair.detach()
    assert within(pair.container, lambda: readback.chains("weave")) == ("theirs",)


def test_equal_identities_do_not_take_each_others_interface(pair: Pair) -> None:
    with namespace() as other:
        first = pair.attach(ONE, identity="same")
        second = within(pair.host, lambda: attach(other, [OTHER], identity="same"))
        assert first.host_interface != second.host_interface
        assert addresses(pair.container, "ethwe") == {"10.32.0.5/12"}
        assert addresses(other, "ethwe") == {"10.40.0.5/24"}


@pytest.mark.parametrize("moved", [False, True], ids=["killed before the move", "killed before the renaming"])
def test_an_unfinished_attach_is_started_anew(pair: Pair, moved: bool) -> None:
    port, guest = host_names("77")
    run("ip", "-n", pair.host, "link", "add", port, "type", "veth", "peer", "name", guest)
    if moved:
        run("ip", "-n", pair.host, "link", "set", guest, "netns", pair.container)
    assert pair.attach(ONE, identity="77").host_interface == port
    assert set(links(pair.host)) == {"lo", "weave", port}
    assert set(links(pair.container)) == {"lo", "ethwe"}


def test_a_port_that_lost_its_bridge_is_plugged_in_again(pair: Pair) -> None:
    made = pair.attach(ONE)
    run("ip", "-n", pair.host, "link", "del", "weave")
    within(pair.host, lambda: ensure_bridge("weave", MAC, MTU))
    assert pair.attach(ONE).host_interface == made.host_interface
    assert links(pair.host)[made.host_interface]["master"] == "weave"
    assert port_flags(pair.host, made.host_interface)["hairpin"] is True


def test_an_interface_that_is_not_ours_is_left_alone(pair: Pair) -> None:
    run("ip", "-n", pair.container, "link", "add", "ethwe", "type", "veth", "peer", "name", "else")
    for action in (lambda: pair.attach(ONE), pair.detach):
        with pytest.raises(HostError, match="interface ethwe of the container was not made by weave"):
            action()
    assert set(links(pair.container)) == {"lo", "ethwe", "else"}


def test_a_failed_attach_leaves_nothing(pair: Pair) -> None:
    run("ip", "netns", "exec", pair.container, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    with pytest.raises(HostError, match="unable to attach"):
        pair.attach(ONE, SIX)
    assert pair.is_clean()


def test_a_failed_further_attach_takes_back_its_own_addresses_only(pair: Pair) -> None:
    pair.attach(ONE)
    before = pair.rules()
    run("ip", "netns", "exec", pair.container, "sysctl", "-qw", "net.ipv6.conf.ethwe.disable_ipv6=1")
    with pytest.raises(HostError, match="unable to attach"):
        pair.attach(OTHER, SIX)
    assert addresses(pair.container, "ethwe") == {"10.32.0.5/12"}
    assert pair.rules() == before


def test_no_bridge_no_attach(pair: Pair) -> None:
    with pytest.raises(HostError, match="bridge other does not exist: is the router running"):
        pair.attach(ONE, bridge="other")
    assert pair.is_clean()


def test_attaches_at_the_same_time(pair: Pair) -> None:
    wanted = [ip_interface(f"10.32.0.{number}/12") for number in range(1, 9)]
    with ThreadPoolExecutor(len(wanted)) as pool:
        made = list(pool.map(pair.attach, wanted))
    assert len({one.host_interface for one in made}) == 1
    assert addresses(pair.container, "ethwe") == {str(address) for address in wanted}
    assert len(ports_of(pair)) == 1


def ports_of(pair: Pair) -> list[str]:
    return [port.name for port in within(pair.host, lambda: ports("weave"))]


def test_interface_names_fit_and_differ() -> None:
    assert host_names("4194303") == ("vethwepl4194303", "vethwepg4194303")
    names = {host_names(f"container-{number}")[0] for number in range(100)}
    assert len(names) == 100
    assert all(len(name) <= 15 for name in names)


def test_who_is_containers(pair: Pair) -> None:
    with namespace() as foreign_host, namespace() as foreign_container:
        # Twins by every index: only the namespaces differ.
        within(foreign_host, lambda: ensure_bridge("weave", MAC, MTU))
        within(foreign_host, lambda: attach(foreign_container, [OTHER]))
        made = pair.attach(ONE, SIX)
        (found,) = within(pair.host, lambda: containers("weave"))
        assert (found.port, found.interface, found.mac) == (made.host_interface, "ethwe", made.mac)
        assert found.namespace == f"/run/netns/{pair.container}"
        assert set(found.cidrs) == {"10.32.0.5/12", "fd00::5/64"}
        assert ports_of(pair) == [made.host_interface]
        assert within(pair.host, lambda: containers("none")) == []


def test_reset_removes_what_was_made_and_nothing_else(pair: Pair) -> None:
    def rules() -> None:
        for table in ("weave", "theirs"):
            with Transaction(table) as change:
                change.ensure_table()

    made = pair.attach(ONE)
    within(pair.host, rules)
    run("ip", "-n", pair.host, "link", "add", "vethwe-bridge", "type", "veth", "peer", "name", "vethwe-pcap")
    run("ip", "-n", pair.host, "link", "add", "mine", "type", "veth", "peer", "name", "yours")
    removed = within(pair.host, lambda: reset("weave"))
    assert set(removed) - {"vethwe-bridge", "vethwe-pcap"} == {"weave", made.host_interface, "table inet weave"}
    assert set(links(pair.host)) == {"lo", "mine", "yours"}
    assert set(links(pair.container)) == {"lo"}
    assert pair.rules() == ""
    assert within(pair.host, readback.tables) == ("theirs",)
    assert within(pair.host, lambda: reset("weave")) == []
