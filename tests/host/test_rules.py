"""Packet rules of the host: what they are, what foreign FORWARD chains get, and that they come back."""

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network

import pytest

from host.attach import attach
from host.bridge import ensure_bridge
from host.expose import expose, hide
from host.iptables import pass_joined, remove_old
from host.rules import DockerBridge, Plan, Rules, remove
from nft import readback
from nft.ruleset import Family
from tests.host.iptables import LEGACY, NATIVE, iptables, needs, restore, works
from tests.host.views import ruleset
from tests.namespaces import namespace, run, within
from tests.vectors import ROOT

MAC = "0a:00:00:00:00:01"
ONE, OTHER = IPv4Interface("10.32.0.2/12"), IPv4Interface("10.33.7.1/24")
OUTSIDE = IPv4Interface("192.168.200.1/24")


@pytest.fixture
def host() -> Iterator[str]:
    with namespace() as name:
        within(name, lambda: ensure_bridge("weave", MAC, 1400))
        yield name


def listed(place: str, chain: str) -> list[str]:
    """The rules of a chain of ours as nft prints them, without their comments."""
    run("ip", "netns", "exec", place, "nft", "list", "ruleset")
    lines = run("ip", "netns", "exec", place, "nft", "list", "chain", "inet", "weave", chain).splitlines()
    return [line.partition(" comment ")[0].strip() for line in lines if "comment" in line]


def applied(place: str, plan: Plan) -> Rules:
    rules = Rules(plan)
    within(place, rules.apply)
    return rules


def test_nat_is_that_of_the_reference(host: str) -> None:
    """The captured NAT rules of an exposed host, in nftables' words."""
    captured = (ROOT / "api/iptables.host1-exposed-no-npc.txt").read_text()
    applied(host, Plan("weave", exposed={ONE: True}))
    words = {
        "-A WEAVE -s 10.32.0.0/12 -d 224.0.0.0/4 -j RETURN": "ip saddr 10.32.0.0/12 ip daddr 224.0.0.0/4 return",
        "-A WEAVE ! -s 10.32.0.0/12 -d 10.32.0.0/12 -j MASQUERADE": (
            "ip daddr 10.32.0.0/12 ip saddr != 10.32.0.0/12 masquerade"
        ),
        "-A WEAVE -s 10.32.0.0/12 ! -d 10.32.0.0/12 -j MASQUERADE": (
            "ip saddr 10.32.0.0/12 ip daddr != 10.32.0.0/12 masquerade"
        ),
    }
    assert all(line in captured for line in words)
    assert listed(host, "postrouting") == list(words.values())


def test_what_is_hidden_leaves_no_rule(host: str) -> None:
    rules = applied(host, Plan("weave", control_port=6784))
    before = ruleset(host)
    assert "hook postrouting" not in before, "no connection is tracked before something is exposed"
    within(host, lambda: rules.change(exposed={ONE: True, OTHER: True}))
    assert "10.33.7.0/24" in ruleset(host)
    within(host, lambda: rules.change(exposed={}))
    assert ruleset(host) == before


def test_without_masquerade_there_is_no_nat(host: str) -> None:
    applied(host, Plan("weave", exposed={OUTSIDE: False}))
    assert "masquerade" not in ruleset(host)


def test_local_containers_are_not_masqueraded(host: str) -> None:
    networks = (IPv4Network("10.32.0.0/13"), IPv4Network("10.40.0.0/14"), IPv4Network("10.32.8.0/24"))
    rules = applied(host, Plan("weave", exposed={ONE: True}, no_masq_local=True, local=networks))
    assert listed(host, "postrouting")[0] == "ip daddr @local return"
    assert "elements = { 10.32.0.0/13, 10.40.0.0/14 }" in ruleset(host)
    within(host, lambda: rules.change(local=(IPv4Network("10.32.0.0/14"), IPv4Network("10.40.0.0/14"))))
    assert "elements = { 10.32.0.0/14, 10.40.0.0/14 }" in ruleset(host)
    within(host, lambda: rules.change(local=()))
    assert "elements" not in ruleset(host)


def test_the_control_port_is_for_this_host_only(host: str) -> None:
    applied(host, Plan("weave", control_port=6784))
    assert listed(host, "input") == ["ip daddr 127.0.0.1 tcp dport 6784 fib saddr type != local drop"]


def test_containers_of_docker_stay_outside(host: str) -> None:
    applied(host, Plan("weave", docker=DockerBridge("docker0", "172.17.0.1", 6783)))
    ports = ("tcp dport 6783", "udp dport 6783", "udp dport 6784")
    assert listed(host, "input") == [f'iifname "docker0" ip daddr 172.17.0.1 {port} drop' for port in ports]
    assert listed(host, "forward") == ['iifname "docker0" oifname "weave" drop']


def test_an_address_for_names_only(host: str) -> None:
    rules = applied(host, Plan("weave", dns_only=ONE, exposed={OTHER: True}))
    assert listed(host, "input") == [
        'iifname "weave" ip daddr 10.32.0.2 tcp dport 53 accept',
        'iifname "weave" ip daddr 10.32.0.2 udp dport 53 accept',
        'iifname "weave" ip saddr 10.33.7.0/24 accept',
        'iifname "weave" ip saddr 10.32.0.0/12 drop',
    ]
    assert listed(host, "forward")[-2:] == [
        'iifname "weave" oifname != "weave" ip saddr 10.32.0.0/12 drop',
        'oifname "weave" iifname != "weave" ip daddr 10.32.0.0/12 drop',
    ]
    within(host, lambda: rules.change(exposed={ONE: True}))
    assert "drop" not in ruleset(host)


def flush(place: str) -> None:
    run("ip", "netns", "exec", place, "nft", "flush", "ruleset")


def test_flushed_rules_come_back(host: str) -> None:
    rules = applied(host, Plan("weave", control_port=6784, exposed={ONE: True}))
    before = ruleset(host)
    assert within(host, rules.check) == ()
    flush(host)
    assert set(within(host, rules.check)) == {"chain inet weave input", "chain inet weave postrouting"}
    assert ruleset(host) == before
    run("ip", "netns", "exec", host, "nft", "flush", "chain", "inet", "weave", "postrouting")
    assert within(host, rules.check) == ("chain inet weave postrouting",)
    assert ruleset(host) == before


# --- foreign chains ---


@pytest.fixture(params=[NATIVE, LEGACY])
def program(request: pytest.FixtureRequest, host: str) -> str:
    works(host, request.param)
    return str(request.param)


FORWARD = [
    "-A FORWARD -i weave -o weave",
    "-A FORWARD -d 10.32.0.0/12 -o weave",
    "-A FORWARD -i weave ! -o weave",
    "-A FORWARD -o weave -m conntrack --ctstate RELATED,ESTABLISHED",
]


def accepted(place: str, program: str) -> list[str]:
    """The accepts at the top of a foreign FORWARD chain, without their comments."""
    lines = iptables(place, program, "-S", "FORWARD").splitlines()[1:]
    return [line.partition(" -m comment")[0].removesuffix(" -j ACCEPT") for line in lines]


def test_a_foreign_chain_lets_pass_what_the_reference_let_pass(host: str, program: str) -> None:
    iptables(host, program, "-P", "FORWARD", "DROP")
    iptables(host, program, "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT")
    untouched = iptables(host, program, "-S")
    rules = applied(host, Plan("weave", exposed={ONE: True}))
    assert accepted(host, program) == [*FORWARD, "-A FORWARD -i docker0"]
    assert within(host, rules.check) == ()
    # iptables goes on working with what we wrote.
    iptables(host, program, "-I", "FORWARD", "-j", "ACCEPT")
    assert within(host, rules.check) == (), "rules before ours are their owner's affair"
    iptables(host, program, "-D", "FORWARD", "-j", "ACCEPT")
    within(host, lambda: rules.change(exposed={}))
    assert accepted(host, program) == [FORWARD[0], FORWARD[2], FORWARD[3], "-A FORWARD -i docker0"]
    iptables(host, program, "-F", "FORWARD")
    assert within(host, rules.check) == ("chain ip filter FORWARD",)
    assert accepted(host, program) == [FORWARD[0], FORWARD[2], FORWARD[3]]
    within(host, remove)
    assert iptables(host, program, "-S") == untouched.replace("-A FORWARD -i docker0 -j ACCEPT\n", "")


def test_somebody_rewrites_the_chain_meanwhile(host: str, program: str) -> None:
    script = f"for i in $(seq 20); do {program} -w 5 -I FORWARD -i docker0 -j ACCEPT; {program} -w 5 -F FORWARD; done"
    rules = applied(host, Plan("weave"))
    with subprocess.Popen(["ip", "netns", "exec", host, "sh", "-c", script]) as other:
        number = 0
        while other.poll() is None:
            number = number % 50 + 1
            exposed = {IPv4Interface(f"10.{number}.0.1/16"): True}
            within(host, lambda exposed=exposed: rules.change(exposed=exposed))  # type: ignore[misc]
    within(host, rules.check)
    assert within(host, rules.check) == ()
    assert f"-A FORWARD -d 10.{number}.0.0/16 -o weave" in accepted(host, program)


def test_with_network_policy_its_own_table_decides(host: str, program: str) -> None:
    iptables(host, program, "-P", "FORWARD", "DROP")
    applied(host, Plan("weave", expect_npc=True, exposed={ONE: True}))
    assert accepted(host, program) == ["-A FORWARD -o weave", FORWARD[2], FORWARD[3]]


def test_no_foreign_chain_is_made(host: str) -> None:
    applied(host, Plan("weave", exposed={ONE: True}))
    assert within(host, lambda: readback.tables(Family.IP)) == ()
    assert run("ip", "netns", "exec", host, "cat", "/proc/net/ip_tables_names") == ""


def test_other_dropping_chains_are_named(host: str) -> None:
    rules = applied(host, Plan("weave"))
    assert within(host, rules.obstacles) == []
    chain = "{ type filter hook forward priority 0 ; policy drop ; }"
    run("ip", "netns", "exec", host, "nft", "add", "table", "inet", "theirs")
    run("ip", "netns", "exec", host, "nft", "add", "chain", "inet", "theirs", "through", chain)
    (line,) = within(host, rules.obstacles)
    assert line.startswith("chain inet theirs through drops what it does not know: add to it 'iifname")


def test_old_sets_are_removed(host: str) -> None:
    needs("ipset")
    for name in ("weaver-no-masq-local", "weave-abc", "theirs"):
        run("ip", "netns", "exec", host, "ipset", "create", name, "hash:net")
    assert set(within(host, lambda: remove_old("weave"))) == {"ipset weaver-no-masq-local", "ipset weave-abc"}
    assert run("ip", "netns", "exec", host, "ipset", "list", "-n") == "theirs\n"


def test_what_leaves_by_a_joined_bridge_keeps_its_sender(host: str) -> None:
    """First in the chain where Docker translates; once, and gone with all the rest."""
    works(host, "iptables")
    docker = ("POSTROUTING", "-s", "172.17.0.0/16", "!", "-o", "docker0", "-j", "MASQUERADE")
    iptables(host, "iptables", "-t", "nat", "-A", *docker)
    for _ in range(2):
        within(host, lambda: pass_joined("weave"))
    rules = iptables(host, "iptables", "-t", "nat", "-S", "POSTROUTING").splitlines()
    assert rules[1:] == ["-A POSTROUTING -o weave -j ACCEPT", f"-A {' '.join(docker)}"]
    within(host, lambda: remove_old("weave"))
    assert iptables(host, "iptables", "-t", "nat", "-S", "POSTROUTING").splitlines()[1:] == rules[2:]


# --- what they do ---


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_containers_reach_out_through_an_exposed_host(host: str, program: str, policy: str) -> None:
    """A container behind the bridge pings a stranger who knows no route back: NAT, and FORWARD lets it pass."""
    with namespace() as container, namespace() as stranger:
        iptables(host, program, "-P", "FORWARD", policy)
        run("ip", "-n", host, "link", "add", "out", "type", "veth", "peer", "name", "eth0", "netns", stranger)
        for place, link, address in ((host, "out", "192.0.2.1/24"), (stranger, "eth0", "192.0.2.9/24")):
            run("ip", "-n", place, "addr", "add", address, "dev", link)
            run("ip", "-n", place, "link", "set", link, "up")
        run("ip", "netns", "exec", host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        within(host, lambda: attach(container, [IPv4Interface("10.32.0.9/12")]))
        rules = applied(host, Plan("weave"))
        within(host, lambda: expose(rules, ONE, True))
        run("ip", "-n", container, "route", "add", "default", "via", str(ONE.ip))
        run("ip", "netns", "exec", host, "ping", "-c", "1", "-W", "3", "10.32.0.9")
        run("ip", "netns", "exec", container, "ping", "-c", "1", "-W", "3", "192.0.2.9")
        within(host, lambda: hide(rules, ONE))
        assert "1 received" not in run("ip", "netns", "exec", container, "ping", "-c1", "-W1", "192.0.2.9", check=False)


def test_the_old_rules_are_recognised(host: str, program: str) -> None:
    """What a 2.8 router wrote is removed with its chains; a user's own rules about the bridge stay."""
    iptables(host, program, "-A", "FORWARD", "-i", "weave", "-j", "ACCEPT", "-m", "comment", "--comment", "mine")
    iptables(host, program, "-t", "nat", "-A", "POSTROUTING", "-o", "eth9", "-j", "MASQUERADE")
    iptables(host, program, "-A", "INPUT", "-i", "docker0", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
    for table in ("mangle", "nat", "filter"):
        iptables(host, program, "-t", table, "-S")
    before = iptables(host, program, "-S"), iptables(host, program, "-t", "nat", "-S")
    for capture in ("host1-exposed-no-npc", "kube-expect-npc-no-masq-local"):
        text = (ROOT / f"api/iptables.{capture}.txt").read_text()
        lines = [line for line in text.splitlines() if "--match-set" not in line]
        restore(host, program, "\n".join(lines).replace("\\'", "'") + "\n")
        iptables(host, program, "-A", "INPUT", "-i", "docker0", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
        for protocol, port, target in (("tcp", "6783", "DROP"), ("udp", "6784", "DROP"), ("udp", "53", "ACCEPT")):
            to = ("-i", "docker0", "-d", "172.17.0.1", "-p", protocol, "--dport", port)
            iptables(host, program, "-A", "INPUT", *to, "-j", target)
        iptables(host, program, "-A", "FORWARD", "-i", "weave", "-j", "ACCEPT", "-m", "comment", "--comment", "mine")
        iptables(host, program, "-t", "nat", "-A", "POSTROUTING", "-o", "eth9", "-j", "MASQUERADE")
        removed = within(host, lambda: remove_old("weave"))
        assert any("WEAVE-CANARY" in name for name in removed)
        assert (iptables(host, program, "-S"), iptables(host, program, "-t", "nat", "-S")) == before
        assert "WEAVE" not in iptables(host, program, "-t", "mangle", "-S")
        assert within(host, lambda: remove_old("weave")) == []
