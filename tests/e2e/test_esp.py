"""Encrypted links in the kernel: what is on the wire, keys, who restarts, what is left. Needs a kernel with ESP.

`script/test-guest` has one.
"""

import subprocess
import sys
import time
from typing import Any

import pytest

from fastdp.ipsec import TABLE, problem
from lab.capture import captured
from lab.net import inside, run
from lab.router import wait_until, weave
from lab.traffic import datagrams, ping, tcp
from tests.clusters import Cluster, chain_links, cluster
from tests.e2e.test_fastdp import all_fast, containers, fastdp, none_fast, reason, started, while_a_flow_lives
from tests.traffic import everything_passes

NO_ESP = problem()
pytestmark = pytest.mark.skipif(bool(NO_ESP), reason=f"this kernel does not encrypt: {NO_ESP}")
MARK = "TOP-SECRET-MARK"
# A silence is noticed in 12 s; the way back takes a heartbeat or two. Emulation is slow.
BACK = 40.0
GONE = 50.0


def start(made: Cluster, count: int, *flags: str, chain: bool = False) -> dict[int, str]:
    """Routers with a password, all links fast; their containers."""
    return started(made, count, *flags, chain=chain, password="secret", within=BACK)


def links(made: Cluster, number: int) -> list[dict[str, Any]]:
    return list(fastdp(made, number)["Links"] or ())


def ip(made: Cluster, number: int, *words: str) -> str:
    return run("ip", "-n", made.underlay.host(number).namespace, *words)


def states(made: Cluster, number: int) -> int:
    return ip(made, number, "xfrm", "state").count("proto esp")


def policies(made: Cluster, number: int) -> int:
    return ip(made, number, "xfrm", "policy").count("proto udp")


def say(source: str, target: str, address: str) -> None:
    """A datagram with the mark in it, from one container to another."""
    program = (
        "import socket,sys,time;s=socket.socket(2,2)\n"
        f"for _ in range(5): s.sendto(b'{MARK}'*8,('{address}',9));time.sleep(.02)"
    )
    run(*inside(source, sys.executable, "-I", "-S", "-c", program))


def test_nothing_is_in_clear() -> None:
    with cluster(fastdp=True) as made:
        made.underlay.host(1)
        with captured(made.underlay, 1, MARK) as wire:
            attached = start(made, 3)
            assert all(link["ESP"]["In"] and link["ESP"]["Out"] for link in links(made, 1))
            text = weave(made.underlay.host(1), "status", "connections")
            assert text.count("established encrypted   fastdp") == 2 and text.count("encrypted=truemtu=1376") == 2
            assert weave(made.underlay.host(1), "status", "fastdp").count("works, encrypted") == 2
            everything_passes(attached, 1_000_000)
            assert ping(attached[1], "10.32.0.2", size=1348, df=True)
            for other in (2, 3):
                say(attached[1], attached[other], f"10.32.0.{other}")
                say(attached[other], attached[1], "10.32.0.1")
        assert wire.clear == 0 and wire.marked == 0, wire.first
        assert wire.esp > 1000 and "1460" in wire.sizes, "heartbeats and the largest frames"
        assert all(link["ESP"]["In"]["Failed"] == 0 for link in links(made, 1))
        assert fastdp(made, 1)["Counts"]["out-unicast"] > 100


def test_the_capture_sees_what_is_in_clear() -> None:
    with cluster(fastdp=True) as made:
        made.underlay.host(1)
        with captured(made.underlay, 1, MARK) as wire:
            attached = started(made, 2, within=BACK)
            say(attached[1], attached[2], "10.32.0.2")
        assert wire.esp == 0 and wire.clear > 5 and wire.marked >= 5


def test_a_relay_and_ipv6() -> None:
    with cluster(fastdp=True) as made:
        first, second = made.underlay.host(1), made.underlay.host(2)
        made.underlay.host(3)
        with captured(made.underlay, 2, MARK) as wire:
            made.start(1, [], "--no-discovery", password="secret")
            made.start(2, [f"[{first.address6}]"], "--no-discovery", password="secret")
            made.start(3, [second.address], "--no-discovery", password="secret")
            made.await_links(chain_links(3))
            attached = containers(made)
            made.await_routes()
            wait_until("everything is fast", lambda: all_fast(made), BACK)
            everything_passes(attached, 300_000)
            say(attached[1], attached[3], "10.32.0.3")
        assert wire.clear == 0 and wire.marked == 0 and wire.esp > 500
        assert fastdp(made, 2)["Counts"]["relayed"] > 50


def test_a_path_that_loses_and_reorders() -> None:
    with cluster(fastdp=True) as made:
        attached = start(made, 2)
        for number in (1, 2):
            words = ("loss", "3%", "delay", "4ms", "3ms", "reorder", "20%", "50%")
            host = made.underlay.host(number).namespace
            run("tc", "-n", host, "qdisc", "add", "dev", "eth0", "root", "netem", *words)
        for one, other in ((1, 2), (2, 1)):
            tcp(attached[one], attached[other], f"10.32.0.{other}", 2_000_000)
        got = datagrams(attached[1], {attached[2]: "10.32.0.2"}, "10.32.0.2", [100] * 20)
        assert len(got[attached[2]]) > 60, "of a hundred"
        assert all_fast(made), "lost heartbeats change nothing"
        ends = [link["ESP"]["In"] for number in (1, 2) for link in links(made, number)]
        assert all(end["Failed"] == 0 and end["Replayed"] == 0 for end in ends), "the window takes what comes late"


def test_a_reconnection_brings_new_keys_and_old_ones_go() -> None:
    with cluster(fastdp=True) as made:
        start(made, 2)
        before = links(made, 1)[0]["ESP"]
        with captured(made.underlay, 1) as wire:
            made.routers[2].stop()
            made.start(2, [1], password="secret")
            wait_until("fast again", lambda: made.neighbours(2) == {1} and all_fast(made), BACK)
            assert ping(made.underlay.container(1), "10.32.0.2")
        after = links(made, 1)[0]["ESP"]
        assert before["In"]["SPI"] != after["In"]["SPI"] and before["Out"]["SPI"] != after["Out"]["SPI"]
        assert wire.clear == 0, wire.first
        for number in (1, 2):
            wait_until("old keys are gone", lambda n=number: states(made, n) == 2, GONE)  # type: ignore[misc]
            assert policies(made, number) == 2
        assert ping(made.underlay.container(1), "10.32.0.2") and all_fast(made)


def test_flows_outlive_a_killed_router_encrypted() -> None:
    with cluster(fastdp=True) as made:
        start(made, 2)

        def restart() -> None:
            made.routers[1].stop(kill=True)
            time.sleep(2)
            made.start(1, [2], password="secret")
            wait_until("fast again", lambda: made.neighbours(1) == {2} and all_fast(made), BACK)

        with captured(made.underlay, 1) as wire:
            assert while_a_flow_lives(made, restart) < 5.0
        assert wire.clear == 0, wire.first
        for number in (1, 2):
            wait_until("old keys are gone", lambda n=number: states(made, n) == 2, GONE)  # type: ignore[misc]
        assert all_fast(made)


def test_what_somebody_flushes_is_made_anew_and_nothing_leaks() -> None:
    with cluster(fastdp=True) as made:
        attached = start(made, 2)
        with captured(made.underlay, 1, MARK) as wire:
            for what in ("state", "policy"):
                ip(made, 1, "xfrm", what, "flush")
            for _ in range(10):
                say(attached[1], attached[2], "10.32.0.2")
            # New keys are there so soon that nobody may see them gone.
            wait_until("both left", lambda: all(links(made, n)[0]["Changes"] for n in (1, 2)), BACK)
            wait_until("both return", lambda: all_fast(made), 2 * BACK)
            assert ping(attached[1], "10.32.0.2")
        assert wire.clear == 0 and wire.marked == 0, wire.first
        assert fastdp(made, 1)["Drops"]["clear-out"] > 0


def test_a_removed_table_or_policy_comes_back() -> None:
    with cluster(fastdp=True) as made:
        attached = start(made, 2)
        host = made.underlay.host(1).namespace
        with captured(made.underlay, 1, MARK) as wire:
            ip(made, 1, "xfrm", "policy", "flush")
            run(*inside(host, "nft", "delete", "table", "inet", TABLE))
            wait_until("both are there", lambda: TABLE in run(*inside(host, "nft", "list", "tables")), 20)
            assert policies(made, 1) == 2
            say(attached[1], attached[2], "10.32.0.2")
            assert ping(attached[1], "10.32.0.2")
        assert wire.marked == 0


def test_protocol_50_is_blocked() -> None:
    with cluster(fastdp=True) as made:
        attached = start(made, 2)
        made.underlay.block(1, 2, "esp")
        wait_until("both leave", lambda: none_fast(made), BACK)
        assert "by ESP, IP protocol 50" in reason(made, 1)
        assert ping(attached[1], "10.32.0.2")
        for number in (1, 2):
            made.underlay.clear(number)
        wait_until("both return", lambda: all_fast(made), BACK)


def test_the_path_shrinks() -> None:
    with cluster(fastdp=True) as made:
        attached = start(made, 2)
        made.underlay.set_mtu(1, 1452)
        wait_until("both leave", lambda: none_fast(made), BACK)
        assert "path MTU 1452 < 1460" in reason(made, 1)
        tcp(attached[1], attached[2], "10.32.0.2", 300_000)
        made.underlay.set_mtu(1, 1500)
        wait_until("both return", lambda: all_fast(made), BACK)


def test_what_arrives_in_clear_is_dropped() -> None:
    with cluster(fastdp=True) as made:
        start(made, 2)
        ids = {p["NickName"]: p["ShortID"] for p in made.routers[1].report()["Router"]["Peers"]}
        vni = ids["host2"] | ids["host1"] << 12
        payload = f"08000000{vni:06x}00" + "ffffffffffff" + "02deadbeef01" + "0800" + "00" * 46
        program = (
            "import socket,struct\n"
            f"u=bytes.fromhex('{payload}')\n"
            "u=struct.pack('>HHHH',5555,6784,8+len(u),0)+u\n"
            "s=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW)\n"
            "h=struct.pack('>BBHHHBBH4s4s',0x45,0,20+len(u),0,0,64,17,0,socket.inet_aton('10.99.0.2'),socket.inet_aton('10.99.0.1'))\n"
            "s.sendto(h+u,('10.99.0.1',0))\n"
        )
        # From a third host, under the second one's address.
        run(*inside(made.underlay.host(3).namespace, sys.executable, "-c", program))
        wait_until("it is counted", lambda: fastdp(made, 1)["Drops"]["clear-in"] >= 1, 10)
        assert all(row["Mac"] != "02:de:ad:be:ef:01" for row in fastdp(made, 1)["MACs"] or ())
        assert all_fast(made)


def test_only_links_between_trusted_hosts_are_in_clear() -> None:
    with cluster(fastdp=True) as made:
        start(made, 3, "--trusted-subnets", "10.99.0.1/32,10.99.0.2/32")
        assert [bool(link["ESP"]) for link in sorted(links(made, 1), key=lambda one: one["Address"])] == [False, True]
        assert all(link["ESP"] for link in links(made, 3))
        assert policies(made, 1) == 2 and policies(made, 3) == 4


def test_what_others_left_goes_and_so_does_ours() -> None:
    with cluster(fastdp=True) as made:
        ends = ("src", "10.99.0.1", "dst", "10.99.0.2")
        back = ("src", "10.99.0.2", "dst", "10.99.0.1")
        other = ("src", "10.99.0.1", "dst", "10.99.0.77")
        made.underlay.host(1)
        key = ("aead", "rfc4106(gcm(aes))", "0x" + "11" * 36, "128")
        for number, between in enumerate((ends, back, other)):
            ip(made, 1, "xfrm", "state", "add", *between, "proto", "esp", "spi", str(0x1000 + number), *key)
        template = ("tmpl", *ends, "proto", "esp", "spi", "0x1000", "mode", "transport")
        mark = ("mark", "0x20000", "mask", "0x20000")
        words = ("src", "10.99.0.1/32", "dst", "10.99.0.2/32", "proto", "udp", "dir", "out", *mark)
        ip(made, 1, "xfrm", "policy", "add", *words, *template)
        start(made, 2)
        assert "0x20000" not in ip(made, 1, "xfrm", "policy") and states(made, 1) == 3
        made.routers[1].stop()
        host = made.underlay.host(1)
        assert states(made, 1) >= 3 and TABLE in run(*inside(host.namespace, "nft", "list", "tables"))
        weave(host, "reset", "--force")
        assert states(made, 1) == 1 and policies(made, 1) == 0, "somebody else's stays"
        assert TABLE not in run(*inside(host.namespace, "nft", "list", "tables"))


def test_a_password_after_none() -> None:
    """What the router without a password left forwarding in clear is not forwarded any more."""
    with cluster(fastdp=True) as made:
        attached = started(made, 2, within=BACK)
        assert ping(attached[1], "10.32.0.2")
        made.routers[1].stop()
        made.start(1, [], password="secret")
        with captured(made.underlay, 1, MARK) as wire:
            say(attached[1], attached[2], "10.32.0.2")
        assert wire.clear == 0 and wire.marked == 0
        pinging = subprocess.run(inside(attached[1], "ping", "-c", "1", "-W", "1", "10.32.0.2"), check=False)
        assert pinging.returncode != 0
