"""The programs in the kernel against captures of real routers: a relay sends on what 2.8's relay sent on."""

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fastdp.kernel import Kernel
from fastdp.maps import (
    KEY,
    NO_SHORT,
    UPCALL,
    Config,
    Kind,
    Reason,
    Route,
    Traffic,
    Tree,
    host,
    host_text,
    mac_key,
    pack_address,
    unpack_upcall,
)
from fastdp.wire import packet, vni
from host import transmit
from host.bridge import ensure_bridge
from host.tap import CONTROL_NAME, TAP_NAME, open_control, open_tap
from host.vxlan import ensure_vxlan
from lab.net import Underlay, inside, run
from lab.router import socket_in
from tests.namespaces import within
from tests.vectors import ROOT

SESSION = json.loads((ROOT / "overlay/fastdp-relay-session.json").read_text())
RELAY = "02:00:00:00:00:02"
PORT = 6784
LISTENS = 6999
ONE, OURSELF, THREE, FOUR = 2911, 4026, 2217, 2639
LOCAL = bytes.fromhex("02aa00000200")
_ALL = 3


@dataclass(slots=True)
class Lab:
    """Three hosts; the programs run on the second, the others send and look at what comes."""

    underlay: Underlay
    kernel: Kernel
    tap: int
    senders: dict[str, socket.socket]
    ears: dict[str, socket.socket]

    def send(self, source: str, payload: bytes) -> None:
        self.senders[source].sendto(payload, (self.underlay.host(2).address, PORT))

    def heard(self, wait: float = 0.2) -> list[tuple[str, bytes]]:
        """(receiver, UDP payload) of what the second host sent, with outer headers as the reference has them."""
        time.sleep(wait)
        found: list[tuple[str, bytes]] = []
        for address, ear in self.ears.items():
            while True:
                try:
                    data = ear.recv(65536)
                except BlockingIOError:
                    break
                if data[12:14] != b"\x08\x00" or data[23] != 17 or data[26:30] != socket.inet_aton("10.99.0.2"):
                    continue
                if struct.unpack_from(">H", data, 36)[0] != PORT:
                    continue
                assert data[15] == 0 and data[20:22] == b"\x40\0" and data[22] == 64, "TOS 0, DF, TTL 64"
                assert data[40:42] == b"\0\0", "no UDP checksum"
                found.append((address, data[42 : 14 + struct.unpack_from(">H", data, 16)[0]]))
        return found

    def asked(self) -> list[tuple[int, int, bytes]]:
        """(reason, VNI, frame) of what came up to the daemon."""
        found: list[tuple[int, int, bytes]] = []
        while True:
            try:
                data = os.read(self.kernel.ctl, 65536)
            except BlockingIOError:
                return found
            reason, vni, remote = unpack_upcall(data)
            if reason in list(Reason) and host_text(remote).startswith("10.99.0."):
                found.append((reason, vni, data[UPCALL:]))

    def write(self, name: str, key: int, value: bytes) -> None:
        self.kernel.maps[name].set(KEY.pack(key), value)

    def wire(self, number: int, hop: str, short: int) -> int:
        """A transmit device of the second host, for what it captured for a peer; its index."""
        aim = transmit.Aim("10.99.0.2", hop, PORT, vni(OURSELF, short))

        def make() -> int:
            index = transmit.make(number, "a test", aim, LISTENS, 1376)
            self.kernel.seal(index)
            return index

        return within(self.underlay.host(2).namespace, make)

    def route(self, short: int, kind: Kind, hop: str = "0.0.0.0", wired: int = 0) -> None:
        # Traffic with a host is counted under its number.
        route = Route(
            kind, host(hop), host("10.99.0.2"), self.kernel.port, int(hop.rpartition(".")[2]), wired=wired
        )  # fmt: skip
        self.write("peers", short, route.pack())


@pytest.fixture
def lab() -> Iterator[Lab]:
    underlay = Underlay(f"wfp{os.getpid()}")
    try:
        names = {number: underlay.host(number).namespace for number in (1, 2, 3)}

        def start() -> tuple[Kernel, int]:
            ensure_bridge("weave", RELAY, 1376)
            tap, control = open_tap("weave", 1376, unknown=False), open_control(65521)
            return Kernel(
                lambda port: ensure_vxlan("weave", port, 1376, floods=True), PORT, control, TAP_NAME, CONTROL_NAME
            ), tap

        # The bridge itself must have nothing to say.
        run(*inside(names[2], "sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1"))
        kernel, tap = within(names[2], start)
        ears, senders = {}, {}
        for number in (1, 3):
            address = underlay.host(number).address
            senders[address] = socket_in(names[number], socket.SOCK_DGRAM)
            ears[address] = socket_in(names[number], socket.SOCK_RAW, socket.AF_PACKET)
            ears[address].bind(("eth0", _ALL))
            ears[address].setblocking(False)
        made = Lab(underlay, kernel, tap, senders, ears)
        kernel.maps["config"].set(
            KEY.pack(0), Config(OURSELF, OURSELF, kernel.sleeve, kernel.ctl_index, kernel.port).pack()
        )
        for address in ears:
            kernel.maps["sources"].set(host(address), KEY.pack(int(address.rpartition(".")[2])))
        made.route(ONE, Kind.FAST, "10.99.0.1")
        for short in (THREE, FOUR):
            made.route(short, Kind.FAST, "10.99.0.3")
        for source, hop in ((ONE, THREE), (THREE, ONE), (FOUR, ONE)):
            made.write("trees", source, Tree((hop,), False).pack())
        made.write("trees", OURSELF, Tree((ONE, THREE), False).pack())
        kernel.maps["locals"].set(mac_key(LOCAL), pack_address(0, NO_SHORT))
        yield made
        for sock in (*ears.values(), *senders.values()):
            sock.close()
        kernel.close()
        os.close(tap)
    finally:
        underlay.remove()


def captured() -> list[dict[str, Any]]:
    rows = SESSION["captures"][RELAY]
    return [row for row in rows if row["overlay"] == "fastdp" and "heartbeat" not in row["what"] and "hex" in row]


def test_a_captured_relay(lab: Lab) -> None:
    """What arrived at 2.8's relay arrives here; what it sent on is sent on, byte for byte, to the same hosts."""
    expected = [
        (row["dst"].partition(":")[0], bytes.fromhex(row["hex"]))
        for row in captured()
        if row["src"].startswith("10.99.0.2:") and row["src_short_id"] != OURSELF
    ]
    arrived = [row for row in captured() if row["dst"].startswith("10.99.0.2:")]
    sent = []
    for row in arrived:
        lab.send(row["src"].partition(":")[0], bytes.fromhex(row["hex"]))
        sent += lab.heard(0.02)
    sent += lab.heard()
    assert len(expected) > 20 and sorted(sent) == sorted(expected)
    counts = lab.kernel.counts()
    assert counts["relayed"] > 20 and counts["flooded-on"] >= 2
    peers = dict(lab.kernel.learned())
    assert peers[bytes.fromhex("02aa00000100")] == ONE


BROADCAST = b"\xff" * 6 + bytes.fromhex("02aa00000100") + b"\x08\x06" + bytes(46)


def unicast(target: str, source: str) -> bytes:
    return bytes.fromhex(target) + bytes.fromhex(source) + b"\x08\x00" + bytes(46)


def test_traffic_is_counted_by_link(lab: Lab) -> None:
    """What came of a host and what went to it, relayed and flooded copies as well, heartbeats not."""
    lab.send("10.99.0.1", packet(ONE, OURSELF, BROADCAST))
    lab.send("10.99.0.1", packet(ONE, THREE, unicast("02aa00000300", "02aa00000100")))
    lab.send("10.99.0.1", packet(ONE, OURSELF, bytes(1000)))
    assert len(lab.heard()) == 2
    assert lab.kernel.traffic(1) == Traffic(frames_in=2, bytes_in=120)
    assert lab.kernel.traffic(3) == Traffic(frames_out=2, bytes_out=120)


@pytest.mark.parametrize(
    ("source", "ends", "reason"),
    [
        ("10.99.0.3", (OURSELF, ONE), "from-ourself"),
        ("10.99.0.3", (7, OURSELF), "unknown-peer"),
        ("10.99.0.3", (ONE, 7), "no-route"),
        ("10.99.0.3", (ONE, THREE), "hairpin"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_dropped(lab: Lab, source: str, ends: tuple[int, int], reason: str) -> None:
    lab.send(source, packet(*ends, BROADCAST))
    assert lab.heard() == [] and lab.asked() == []
    assert lab.kernel.counts()[reason] == 1


def test_where_floods_end_every_target_is_the_bridges(lab: Lab) -> None:
    frame = unicast("02aa00000999", "02aa00000100")
    lab.send("10.99.0.1", packet(ONE, OURSELF, frame))
    assert lab.heard() == [("10.99.0.3", packet(ONE, THREE, frame))]
    route = Route(Kind.FAST, host("10.99.0.1"), host("10.99.0.2"), lab.kernel.port, 1)
    lab.write("peers", ONE, route.pack(leaf=True))
    lab.send("10.99.0.1", packet(ONE, OURSELF, frame))
    assert lab.heard() == []
    counts = lab.kernel.counts()
    assert (counts["in-flood"], counts["in-unicast"]) == (1, 1)


def test_an_unknown_sender_is_dropped(lab: Lab) -> None:
    lab.kernel.maps["sources"].delete(host("10.99.0.1"))
    lab.route(ONE, Kind.FAST, "10.99.0.3")
    lab.send("10.99.0.1", packet(ONE, OURSELF, BROADCAST))
    lab.send("10.99.0.1", packet(ONE, OURSELF, bytes(100)))
    assert lab.heard() == [] and lab.asked() == []
    assert lab.kernel.counts()["bad-source"] == 2


def test_what_comes_up(lab: Lab) -> None:
    lab.send("10.99.0.1", packet(ONE, OURSELF, bytes(24)))
    time.sleep(0.1)
    assert lab.asked() == [(Reason.HEARTBEAT, ONE | OURSELF << 12, bytes(24))]
    lab.route(FOUR, Kind.SLEEVE)
    frame = unicast("02aa00000400", "02aa00000100")
    lab.send("10.99.0.1", packet(ONE, FOUR, frame))
    time.sleep(0.1)
    assert lab.asked() == [(Reason.RELAY, ONE | FOUR << 12, frame)]
    lab.write("trees", ONE, Tree((THREE,), True).pack())
    lab.send("10.99.0.1", packet(ONE, OURSELF, BROADCAST))
    assert lab.heard() == [("10.99.0.3", packet(ONE, THREE, BROADCAST))]
    assert lab.asked() == [(Reason.FLOOD_SLEEVE, ONE | OURSELF << 12, BROADCAST)]
    lab.kernel.maps["trees"].delete(KEY.pack(ONE))
    lab.send("10.99.0.1", packet(ONE, OURSELF, BROADCAST))
    assert lab.heard() == []
    assert lab.asked() == [(Reason.FLOOD_ALL, ONE | OURSELF << 12, BROADCAST)]


def test_an_address_that_moves(lab: Lab) -> None:
    """From one peer to another, and from us to a peer: known with the first frame, said once."""
    frame = unicast(LOCAL.hex(), "02aa00000900")
    for source, short in (("10.99.0.1", ONE), ("10.99.0.3", THREE)):
        for _ in range(2):
            lab.send(source, packet(short, OURSELF, frame))
    time.sleep(0.1)
    assert list(lab.kernel.learned()) == [(frame[6:12], ONE), (frame[6:12], THREE)]
    lab.send("10.99.0.1", packet(ONE, OURSELF, unicast("02aa00000900", LOCAL.hex())))
    time.sleep(0.1)
    assert list(lab.kernel.learned()) == [(LOCAL, ONE)]
    assert lab.kernel.maps["locals"].all_keys() == []
    assert lab.kernel.counts()["moved"] == 2


def test_forged_addresses_push_out_no_local_one(lab: Lab) -> None:
    for number in range(1500):
        lab.send("10.99.0.1", packet(ONE, OURSELF, unicast(LOCAL.hex(), f"02bb{number:08x}")))
        if number % 100 == 0:
            time.sleep(0.01)
    time.sleep(0.3)
    assert lab.kernel.maps["locals"].all_keys() == [mac_key(LOCAL)]
    assert lab.kernel.counts()["in-unicast"] == lab.kernel.counts()["new-remote"] > 500
