"""Bridge and TAP port, made for real in network namespaces."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from host.bridge import (
    MAX_TAP_MTU,
    BridgeType,
    bridge_mac,
    bridge_mtu,
    bridge_type,
    classify,
    ensure_bridge,
)
from host.errors import HostError
from host.tap import TAP_NAME, open_tap
from tests.host.views import links, port_flags, setting
from tests.namespaces import namespace, run, within
from tests.vectors import ROOT

MAC = "0a:00:00:00:00:01"


@pytest.mark.parametrize(
    ("bridge", "datapath", "kind"),
    [
        (None, None, BridgeType.NONE),
        ("bridge", None, BridgeType.BRIDGE),
        ("openvswitch", None, BridgeType.FASTDP),
        ("bridge", "openvswitch", BridgeType.BRIDGED_FASTDP),
        (None, "openvswitch", None),
        ("openvswitch", "openvswitch", None),
        ("veth", None, None),
        ("bridge", "veth", None),
    ],
)
def test_types(bridge: str | None, datapath: str | None, kind: BridgeType | None) -> None:
    if kind is None:
        with pytest.raises(HostError) as raised:
            classify(bridge, datapath)
        assert str(raised.value) == "Inconsistent bridge state detected. Please do 'weave reset' and try again"
    else:
        assert classify(bridge, datapath) is kind


def test_bridge_is_made_once_and_put_right() -> None:
    with namespace() as host:
        assert within(host, lambda: bridge_type("weave")) is BridgeType.NONE
        assert within(host, lambda: bridge_mac("weave")) is None
        for _ in range(2):
            within(host, lambda: ensure_bridge("weave", MAC, MAX_TAP_MTU))
        assert within(host, lambda: bridge_type("weave")) is BridgeType.BRIDGE
        index = links(host)["weave"]["ifindex"]
        run("ip", "-n", host, "link", "set", "weave", "down", "mtu", "1400", "address", "0a:00:00:00:00:02")
        run("ip", "-n", host, "link", "set", "weave", "type", "bridge", "stp_state", "1", "mcast_snooping", "1")
        within(host, lambda: ensure_bridge("weave", MAC, 9000))
        made = links(host)["weave"]
        assert (made["ifindex"], made["address"], made["mtu"]) == (index, MAC, 9000)
        assert "UP" in made["flags"]
        flags = made["linkinfo"]["info_data"]
        assert (flags["stp_state"], flags["forward_delay"], flags["mcast_snooping"]) == (0, 0, 0)
        assert within(host, lambda: bridge_mac("weave")) == MAC
        assert within(host, lambda: bridge_mtu("weave")) == 9000


def test_settings_are_those_of_the_reference() -> None:
    captured = [line.split() for line in (ROOT / "api/sysctl.host1.txt").read_text().splitlines()]
    values = {words[0].replace("/weave/", "/"): words[1] for words in captured if words[0].startswith("neigh/weave/")}
    with namespace() as host:
        within(host, lambda: ensure_bridge("weave", MAC, 1400))
        for name in ("base_reachable_time", "delay_first_probe_time", "ucast_solicit"):
            assert setting(host, f"ipv4/neigh/weave/{name}") == values[f"neigh/{name}"]
        assert setting(host, "ipv6/conf/weave/accept_ra") == "0"


@pytest.mark.parametrize("mtu", [1400, 1500])
def test_a_port_with_a_small_mtu_does_not_shrink_the_bridge(mtu: int) -> None:
    with namespace() as host:
        within(host, lambda: ensure_bridge("weave", MAC, mtu))
        run("ip", "-n", host, "link", "add", "small", "mtu", "1000", "type", "veth", "peer", "name", "other")
        run("ip", "-n", host, "link", "set", "small", "master", "weave")
        assert links(host)["weave"]["mtu"] == mtu


def test_an_old_capture_pair_goes() -> None:
    with namespace() as host:
        run("ip", "-n", host, "link", "add", "weave", "mtu", "65535", "type", "bridge")
        run("ip", "-n", host, "link", "add", "vethwe-bridge", "type", "veth", "peer", "name", "vethwe-pcap")
        run("ip", "-n", host, "link", "set", "vethwe-bridge", "master", "weave")
        within(host, lambda: ensure_bridge("weave", MAC, MAX_TAP_MTU))
        assert set(links(host)) == {"lo", "weave"}


def test_a_bridge_that_is_none_is_refused() -> None:
    with namespace() as host:
        run("ip", "-n", host, "link", "add", "weave", "type", "veth", "peer", "name", "other")
        with pytest.raises(HostError, match="Inconsistent bridge state"):
            within(host, lambda: ensure_bridge("weave", MAC, 1400))


def test_mtu_out_of_range() -> None:
    with pytest.raises(HostError, match="MTU 65535 is out of range: choose one from 576 to 65521"):
        ensure_bridge("weave", MAC, 65535)


def test_no_bridge() -> None:
    with namespace() as host:
        with pytest.raises(HostError, match="bridge weave does not exist: is the router running"):
            within(host, lambda: bridge_mtu("weave"))
        with pytest.raises(HostError, match="bridge weave does not exist"):
            within(host, lambda: open_tap("weave", 1400))
        assert set(links(host)) == {"lo"}


def test_tap_port() -> None:
    with namespace() as host:
        within(host, lambda: ensure_bridge("weave", MAC, MAX_TAP_MTU))
        tap = within(host, lambda: open_tap("weave", MAX_TAP_MTU))
        made = links(host)[TAP_NAME]
        assert (made["mtu"], made["master"], made["txqlen"]) == (MAX_TAP_MTU, "weave", 1000)
        assert made["linkinfo"]["info_data"]["vnet_hdr"] is True
        assert made["linkinfo"]["info_data"]["persist"] is False
        flags = port_flags(host, TAP_NAME)
        assert (flags["isolated"], flags["hairpin"], flags["learning"]) == (True, False, True)
        assert setting(host, f"ipv6/conf/{TAP_NAME}/disable_ipv6") == "1"
        with pytest.raises(HostError, match="vethwe-sleeve is in use: another router runs here"):
            within(host, lambda: open_tap("weave", MAX_TAP_MTU))
        os.close(tap)
        assert TAP_NAME not in links(host)


def test_frames_cross_the_tap_whole() -> None:
    """What containers hand over with offloads on arrives with its checksum done and cut to the MTU."""
    with namespace() as host:
        within(host, lambda: ensure_bridge("weave", MAC, 1400))
        tap = within(host, lambda: open_tap("weave", 1400))
        try:
            run("ip", "-n", host, "addr", "add", "10.9.0.1/24", "dev", "weave")
            there = ["10.9.0.2", "lladdr", "0a:00:00:00:00:09", "dev", "weave"]
            run("ip", "-n", host, "neigh", "add", *there)
            script = "import socket;socket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(bytes(1000),('10.9.0.2',9))"
            run("ip", "netns", "exec", host, sys.executable, "-c", script)
            assert udp_checksum_is_right(read_udp(tap))
        finally:
            os.close(tap)


def read_udp(tap: int) -> bytes:
    """The IPv4 packet of the next UDP frame of a TAP."""
    for _ in range(100):
        frame = os.read(tap, 70000)[10:]
        if frame[12:14] == b"\x08\0" and frame[23] == 17:
            return frame[14:]
    raise AssertionError("no UDP frame came")


def udp_checksum_is_right(packet: bytes) -> bool:
    segment = packet[20:]
    covered = packet[12:20] + bytes((0, 17)) + len(segment).to_bytes(2, "big") + segment + bytes(len(segment) % 2)
    total = sum(int.from_bytes(covered[at : at + 2], "big") for at in range(0, len(covered), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return segment[6:8] != b"\0\0" and total == 0xFFFF


def test_a_killed_router_leaves_no_tap() -> None:
    script = (
        "import sys; from host.bridge import ensure_bridge; from host.tap import open_tap;"
        f"ensure_bridge('weave', '{MAC}', 1400); open_tap('weave', 1400); print('up', flush=True); sys.stdin.read()"
    )
    with namespace() as host:
        for _ in range(2):
            child = subprocess.Popen(
                ["ip", "netns", "exec", host, sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            with child:
                assert child.stdout is not None
                assert child.stdout.readline() == b"up\n"
                assert TAP_NAME in links(host)
                child.send_signal(signal.SIGKILL)
            assert TAP_NAME not in links(host)
