"""Frames carried by the kernel between whole routers: mesh, relay, mixed links, what breaks and comes back."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fastdp.ipsec import problem
from lab.net import inside, run
from lab.router import wait_until, weave
from lab.traffic import ping, tcp
from tests.clusters import Cluster, chain_links, cluster, mesh_links
from tests.traffic import everything_passes

PORT = 6784
BACK = 15.0


def paths(made: Cluster, number: int) -> dict[str, str]:
    """What carries a router's established connections, by the neighbour's nickname."""
    rows = made.routers[number].report()["Router"]["Connections"] or []
    return {
        row["Info"].rpartition("(")[2].rstrip(")"): row["Attrs"]["name"]
        for row in rows
        if row["State"] == "established"
    }


def all_fast(made: Cluster) -> bool:
    return all(set(paths(made, number).values()) == {"fastdp"} for number in made.routers)


def none_fast(made: Cluster) -> bool:
    return all("fastdp" not in paths(made, number).values() for number in made.routers)


def fastdp(made: Cluster, number: int) -> dict[str, Any]:
    return dict(made.routers[number].report()["Router"]["Fastdp"])


def reason(made: Cluster, number: int) -> str:
    rows = made.routers[number].report()["Router"]["Connections"] or []
    return str(rows[0]["Attrs"].get("reason", ""))


def filter_vxlan(made: Cluster, number: int, *rules: str) -> None:
    """Rules for what a host receives on the VXLAN port; none: everything passes again."""
    host = made.underlay.host(number).namespace
    run(*inside(host, "nft", "delete table inet fast"), check=False)
    if rules:
        script = "add table inet fast\nadd chain inet fast in { type filter hook input priority 0 ; }\n"
        script += "".join(f"add rule inet fast in udp dport {PORT} {rule}\n" for rule in rules)
        run(*inside(host, "nft", "-f", "-"), stdin=script)


def containers(made: Cluster) -> dict[int, str]:
    return {number: made.container(number) for number in made.routers}


def started(
    made: Cluster, count: int, *flags: str, chain: bool = False, password: str | None = None, within: float = 10.0
) -> dict[int, str]:
    """Routers whose links are all fast within so many seconds; their containers."""
    made.start_all(count, *flags, chain=chain, password=password)
    made.await_links(chain_links(count) if chain else mesh_links(count))
    attached = containers(made)
    made.await_routes()
    wait_until("everything is fast", lambda: all_fast(made), within)
    return attached


def test_mesh() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 3)
        everything_passes(attached, 10_000_000)
        assert ping(attached[1], "10.32.0.2", size=1348, df=True)
        text = weave(made.underlay.host(1), "status", "connections")
        assert text.count("established fastdp") == 2 and text.count("mtu=1376\n") == 2
        shown = weave(made.underlay.host(1), "status", "fastdp")
        assert "UDP port 6784, MTU 1376" in shown and shown.count("works") == 2 and "dropped:" in shown
        metrics = made.routers[1].get("/metrics")
        assert 'weave_fastdp_events_total{event="out-unicast"}' in metrics
        assert 'weave_fastdp_drops_total{reason="bad-source"}' in metrics
        counted(made, 10_000_000)
        # Sleeve saw nothing but what every port of the bridge sees.
        assert all(
            link["Counts"].get("frames-out", 0) < 30 for link in made.routers[1].report()["Router"]["Sleeve"]["Links"]
        )


def counted(made: Cluster, size: int) -> None:
    """Each connection's counters hold streams of `size` bytes each way and agree with those of the other end."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for router in made.routers.values():
        report = router.report()["Router"]
        for row in report["Connections"]:
            found[report["Name"], row["Counters"]["Peer"]] = row["Counters"]
    for (one, other), counters in found.items():
        back = found[other, one]
        for what in ("Bytes", "Frames", "Packets"):
            assert counters[f"{what}Out"] == pytest.approx(back[f"{what}In"], rel=0.02), what
        assert size < counters["BytesOut"] < 3 * size
        # Frames are counted as they are on the wire, and not as the runs that the kernel handles.
        assert size / 1376 < counters["FramesOut"] == counters["PacketsOut"] < 5 * size / 1376


def test_relay_in_the_kernel() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 3, chain=True)
        everything_passes(attached, 10_000_000)
        counts = fastdp(made, 2)["Counts"]
        assert counts["relayed"] > 100 and counts["flooded-on"] > 0
        assert counts.get("to-daemon", 0) < 20


@pytest.mark.parametrize("slow", [1, 3], ids=["sleeve first", "sleeve last"])
def test_fast_and_sleeve_in_one_chain(slow: int) -> None:
    with cluster(fastdp=True) as made:
        for number, peers in ((1, []), (2, [1]), (3, [2])):
            flags = ["--no-fastdp", "--mtu", "1376"] if number == slow else []
            made.start(number, peers, "--no-discovery", *flags)
        made.await_links(chain_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until("both kinds", lambda: sorted(paths(made, 2).values()) == ["fastdp", "sleeve"], 10)
        everything_passes(attached, 1_000_000)
        assert "does not speak fastdp" in "".join(
            str(row["Attrs"].get("reason")) for row in made.routers[2].report()["Router"]["Connections"]
        )


def test_a_blocked_port() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 2)
        assert ping(attached[1], "10.32.0.2")
        ended = made.routers[1].report()["Router"]["TerminationCount"]
        for number in (1, 2):
            filter_vxlan(made, number, "drop")
        wait_until("both leave", lambda: none_fast(made), BACK)
        wait_until("a reason", lambda: "nothing is received on UDP port 6784" in reason(made, 1), BACK)
        assert "(no fastdp: nothing is received on UDP port 6784" in made.routers[1].get("/status/connections")
        everything_passes(attached, 1_000_000)
        for number in (1, 2):
            filter_vxlan(made, number)
        wait_until("both return", lambda: all_fast(made), BACK)
        everything_passes(attached, 1_000_000)
        assert made.routers[1].report()["Router"]["TerminationCount"] == ended


def test_blocked_from_the_start() -> None:
    with cluster(fastdp=True) as made:
        for number in (1, 2):
            made.underlay.host(number)
            filter_vxlan(made, number, "drop")
        made.start_all(2)
        made.await_links(mesh_links(2))
        attached = containers(made)
        made.await_routes()
        assert none_fast(made)
        assert ping(attached[1], "10.32.0.2")
        for number in (1, 2):
            filter_vxlan(made, number)
        wait_until("both are fast", lambda: all_fast(made), BACK)
        everything_passes(attached, 1_000_000)


@pytest.mark.skipif(not problem(), reason="this kernel encrypts")
def test_a_kernel_that_does_not_encrypt_is_named() -> None:
    with cluster(fastdp=True) as made:
        made.start_all(2, password="secret")
        made.await_links(mesh_links(2))
        assert set(paths(made, 1).values()) == {"sleeve"}
        assert reason(made, 1).startswith("no fastdp: encrypted without ESP: unable to")
        assert "(no fastdp: encrypted without ESP" in made.routers[1].get("/status/connections")


def test_one_way_loss_is_left_by_both() -> None:
    with cluster(fastdp=True) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        attached = containers(made)
        wait_until("everything is fast", lambda: all_fast(made), 10)
        filter_vxlan(made, 2, "drop")
        wait_until("both leave", lambda: none_fast(made), BACK)
        assert "the peer receives nothing" in reason(made, 1) and "nothing is received" in reason(made, 2)
        assert ping(attached[1], "10.32.0.2")
        filter_vxlan(made, 2)
        wait_until("both return", lambda: all_fast(made), BACK)


def test_lost_heartbeats_change_nothing() -> None:
    with cluster(fastdp=True) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        wait_until("everything is fast", lambda: all_fast(made), 10)
        for number in (1, 2):
            filter_vxlan(made, number, "numgen random mod 100 < 30 drop")
        time.sleep(40)
        assert sum(link["Changes"] for number in (1, 2) for link in fastdp(made, number)["Links"]) <= 2


def test_the_path_shrinks_and_recovers() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 2)
        made.underlay.set_mtu(1, 1400)
        wait_until("both leave", lambda: none_fast(made), BACK)
        assert "path MTU 1400 < 1426" in reason(made, 1)
        tcp(attached[1], attached[2], "10.32.0.2", 1_000_000)
        tcp(attached[2], attached[1], "10.32.0.1", 1_000_000)
        made.underlay.set_mtu(1, 1500)
        wait_until("both return", lambda: all_fast(made), BACK)
        for number, address in ((1, "10.32.0.2"), (2, "10.32.0.1")):
            # Sleeve told the container of its smaller path, and that is remembered there.
            run(*inside(attached[number], "ip", "route", "flush", "cache"))
            assert ping(attached[number], address, size=1348, df=True)


def test_an_address_moves() -> None:
    """The same MAC on one host after the other: its first frame heals everybody."""
    with cluster(fastdp=True) as made:
        attached = started(made, 3)
        mac = "02:aa:bb:cc:dd:ee"
        for number in (2, 3, 1, 2):
            run(
                "ip", "-n", attached[number], "link", "add", "mv0", "link", "ethwe", "type", "macvlan", "mode", "bridge"
            )
            run("ip", "-n", attached[number], "link", "set", "mv0", "address", mac)
            run("ip", "-n", attached[number], "addr", "add", "10.32.1.1/12", "dev", "mv0")
            run("ip", "-n", attached[number], "link", "set", "mv0", "up")
            time.sleep(0.6)
            command = inside(attached[number], "ping", "-I", "mv0", "-c", "1", "-W", "2", "10.32.0.99")
            run(*command, check=False)
            for other in {1, 2, 3} - {number}:
                run("ip", "-n", attached[other], "neigh", "replace", "10.32.1.1", "lladdr", mac, "dev", "ethwe")
                assert ping(attached[other], "10.32.1.1", count=3), f"{other} -> {number}"
            run("ip", "-n", attached[number], "link", "del", "mv0")


_ECHO_SERVER = """
import socket
s=socket.socket();s.setsockopt(1,2,1);s.bind(('0.0.0.0',5002));s.listen(1);s.settimeout(60);print('ready',flush=True)
c,_=s.accept();c.settimeout(60)
while True:
    b=c.recv(65536)
    if not b: break
    c.sendall(b)
"""
_ECHO_CLIENT = """
import select,socket,sys,time
c=socket.create_connection((sys.argv[1],5002),20);c.settimeout(30);print('ready',flush=True);worst=0.0;n=0
while not select.select([0],[],[],0.002)[0]:
    t=time.monotonic();c.sendall(b'x'*1000);left=1000
    while left: left-=len(c.recv(left))
    worst=max(worst,time.monotonic()-t);n+=1
print(n,worst,flush=True)
"""


def while_a_flow_lives(made: Cluster, change: Callable[[], None]) -> float:
    """A flow between the first two containers during a change; its longest wait for an echo, in seconds."""
    one, two = made.underlay.container(1), made.underlay.container(2)
    python = (sys.executable, "-I", "-S", "-c")
    server = subprocess.Popen(inside(two, *python, _ECHO_SERVER), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    command = inside(one, *python, _ECHO_CLIENT, "10.32.0.2")
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None and client.stdout.readline() == "ready\n"
        change()
        number, worst = client.communicate("end\n", timeout=60)[0].split()
        assert int(number) > 100 and client.returncode == 0
        return float(worst)
    finally:
        for process in (client, server):
            process.kill()
            process.wait()


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
def test_flows_outlive_the_router(kill: bool) -> None:
    with cluster(fastdp=True) as made:
        started(made, 2)
        before = made.routers[1].report()["Router"]["Peers"]

        def restart() -> None:
            made.routers[1].stop(kill=kill)
            time.sleep(2)
            made.start(1, [2])
            wait_until("everything is fast again", lambda: made.neighbours(1) == {2} and all_fast(made), 20)

        # Nothing waits for the router; a busy machine may take its time.
        assert while_a_flow_lives(made, restart) < 2.0
        assert fastdp(made, 1)["Adopted"]
        ids = {peer["Name"]: peer["ShortID"] for peer in before}
        assert {p["Name"]: p["ShortID"] for p in made.routers[1].report()["Router"]["Peers"]} == ids
        assert ping(made.underlay.container(2), "10.32.0.1")


def test_over_ipv6() -> None:
    with cluster(fastdp=True) as made:
        made.start(1, [], "--no-discovery")
        made.start(2, [f"[{made.underlay.host(1).address6}]"], "--no-discovery")
        made.start(3, [f"[{made.underlay.host(2).address6}]"], "--no-discovery")
        made.await_links(chain_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 10)
        everything_passes(attached, 1_000_000)
        assert "fd99::2" in weave(made.underlay.host(1), "status", "fastdp")
        assert fastdp(made, 2)["Counts"]["relayed"] > 100


def test_another_port() -> None:
    """Whoever accepts a connection decides its port: the dialler has a device of that port beside its own."""
    with cluster(fastdp=True) as made:
        made.start(1, [], "--no-discovery", "--port", "7000")
        made.start(2, [f"{made.address(1)}:7000"], "--no-discovery")
        made.start(3, [2], "--no-discovery")
        made.await_links(chain_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until("everything is fast", lambda: all_fast(made), 10)
        assert [fastdp(made, number)["Ports"] for number in (1, 2, 3)] == [[7001], [6784, 7001], [6784]]
        everything_passes(attached, 1_000_000)
        assert heard(attached[3], lambda: send_raw(attached[1], "ffffffffffff", "02dddddddd01", 5)) == 5
        assert heard(attached[2], lambda: send_raw(attached[1], "02eeeeeeeeee", "02dddddddd01", 5)) == 5


def test_a_spoofed_source_is_dropped() -> None:
    with cluster(fastdp=True) as made:
        made.start_all(2)
        made.await_links(mesh_links(2))
        made.underlay.host(3)
        wait_until("everything is fast", lambda: all_fast(made), 10)
        ids = {p["NickName"]: p["ShortID"] for p in made.routers[1].report()["Router"]["Peers"]}
        vni = ids["host2"] | ids["host1"] << 12
        packet = f"08000000{vni:06x}00" + "ffffffffffff" + "02deadbeef01" + "0800" + "00" * 46
        # The peer's first heartbeats may have come before the connection was known.
        before = fastdp(made, 1)["Drops"]["bad-source"]
        program = f"import socket;socket.socket(2,2).sendto(bytes.fromhex('{packet}'),('10.99.0.1',{PORT}))"
        run(*inside(made.underlay.host(3).namespace, "python3", "-c", program))
        wait_until("it is counted", lambda: fastdp(made, 1)["Drops"]["bad-source"] == before + 1, 5)
        assert all(row["Mac"] != "02:de:ad:be:ef:01" for row in fastdp(made, 1)["MACs"])


def test_nothing_is_left_without() -> None:
    """A router that is told `--no-fastdp` after one that was not; and reset."""
    with cluster(fastdp=True) as made:
        made.start(1, [])
        host = made.underlay.host(1).namespace
        assert "vxlan-6784" in run("ip", "-n", host, "link")
        made.routers[1].stop()
        assert "vxlan-6784" in run("ip", "-n", host, "link")
        made.start(1, [], "--no-fastdp")
        assert "vxlan-6784" not in run("ip", "-n", host, "link")
        made.routers[1].stop()
        made.start(1, [])
        made.routers[1].stop()
        weave(made.underlay.host(1), "reset", "--force")
        links = run("ip", "-n", host, "link")
        assert "vxlan-6784" not in links and "vethwe" not in links and "weave" not in links


def heard(namespace: str, work: Callable[[], None], ethertype: str = "88b5") -> int:
    """How many frames of a type reach a container's interface while something is done, and a second longer."""
    return heard_by([namespace], work, ethertype)[0]


def heard_by(namespaces: Sequence[str], work: Callable[[], None], ethertype: str = "88b5") -> list[int]:
    """The same for several containers at once."""
    program = (
        "import socket,time\n"
        f"s=socket.socket(17,3,socket.htons(0x{ethertype}));s.bind(('ethwe',0x{ethertype}))\n"
        "s.settimeout(0.2);print('ready',flush=True);n=0;end=time.monotonic()+3\n"
        "while time.monotonic()<end:\n"
        "    try: s.recv(2000);n+=1\n"
        "    except TimeoutError: pass\n"
        "print(n,flush=True)\n"
    )
    commands = [inside(namespace, sys.executable, "-I", "-S", "-c", program) for namespace in namespaces]
    listeners = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        for listener in listeners:
            assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
        work()
        return [int(listener.communicate(timeout=20)[0]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.kill()
            listener.wait()


def each_once(attached: dict[int, str]) -> None:
    """Group frames, and those for an address that nobody has, arrive at every other container exactly once."""
    for target in ("ffffffffffff", "0333aabbccdd", "02eeeeeeeeee"):
        for source in attached:
            others = [attached[other] for other in attached if other != source]
            got = heard_by(others, lambda: send_raw(attached[source], target, f"02ddddddd00{source}", 5))  # noqa: B023
            assert set(got) == {5}, f"{target} from {source}: {got}"


def send_raw(namespace: str, target: str, source: str, count: int) -> None:
    """Frames of a type that nobody uses, to any address."""
    frame = f"{target}{source}88b5" + "00" * 50
    program = (
        "import socket,time\ns=socket.socket(17,3);s.bind(('ethwe',0))\n"
        f"for _ in range({count}): s.send(bytes.fromhex('{frame}'));time.sleep(.02)\n"
    )
    run(*inside(namespace, sys.executable, "-I", "-S", "-c", program))


@pytest.mark.parametrize("slow", [(), (3,), (2,)], ids=["all fast", "last slow", "middle slow"])
def test_every_frame_arrives_once(slow: tuple[int, ...]) -> None:
    """Group frames, and frames for addresses that nobody has, at each other container exactly once."""
    with cluster(fastdp=True) as made:
        for number in (1, 2, 3):
            flags = ["--no-fastdp", "--mtu", "1376"] if number in slow else []
            made.start(number, [other for other in (1, 2, 3) if other < number], *flags)
        made.await_links(mesh_links(3))
        attached = containers(made)
        made.await_routes()
        wait_until(
            "the paths are chosen",
            lambda: all(
                path == ("sleeve" if {number, int(peer[-1])} & set(slow) else "fastdp")
                for number in made.routers
                for peer, path in paths(made, number).items()
            ),
            15,
        )
        each_once(attached)


def test_five_in_a_mesh() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 5, within=20)
        for one, namespace in attached.items():
            for other in attached.keys() - {one}:
                assert ping(namespace, f"10.32.0.{other}"), f"{one} -> {other}"
        assert heard(attached[5], lambda: send_raw(attached[1], "ffffffffffff", "02dddddddd01", 5)) == 5


def test_four_in_a_chain() -> None:
    with cluster(fastdp=True) as made:
        attached = started(made, 4, chain=True, within=20)
        for one, other in ((1, 4), (4, 1), (2, 4), (1, 3)):
            assert ping(attached[one], f"10.32.0.{other}"), f"{one} -> {other}"
        tcp(attached[1], attached[4], "10.32.0.4", 50_000_000)
        assert heard(attached[4], lambda: send_raw(attached[1], "ffffffffffff", "02dddddddd01", 5)) == 5
        # The cable in the middle is pulled, and plugged in again.
        made.underlay.cut(3)
        wait_until("the neighbour is missed", lambda: "fastdp" not in paths(made, 2).get("host3", ""), BACK)
        made.underlay.cut(3, down=False)
        wait_until("it is back", lambda: ping(attached[1], "10.32.0.4", count=1), BACK)
