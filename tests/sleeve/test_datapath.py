"""Two data paths over real sockets: establishment, frames of every kind, smaller paths, loss, faults, strangers."""

import asyncio
import os
import socket

import pytest

from mesh.names import PeerName
from mesh.seams import ConnectionParams, OverlayError
from overlay.frames import ipv4_header
from sleeve.datagram import SealedSession, frame_header
from tests.namespaces import run
from tests.sleeve.nodes import (
    ADDRESSES,
    KEY,
    NO_CORE,
    PORT,
    UID,
    Node,
    frame,
    frame6,
    join,
    make,
    play,
    until,
    up,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")


ENDS = [("python", "python"), ("native", "native"), ("native", "python"), ("python", "native")]


@pytest.fixture(params=ENDS, ids="-".join)
def packets(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Which packet path each end has: the plain one and the core are to be told apart by nobody."""
    ends: tuple[str, str] = request.param
    if "native" in ends:
        pytest.importorskip("sleeve._sleeve", reason=NO_CORE)
    return ends


def send(node: Node, made: bytes, *, broadcast: bool = False) -> None:
    ends = (PeerName(1), PeerName(2)) if node.path.ourself == 1 else (PeerName(2), PeerName(1))
    node.forwarder.send(*ends, made, broadcast)


@pytest.mark.parametrize(
    ("family", "key", "mtu"),
    [(4, None, 1438), (4, KEY, 1414), (6, None, 1418), (6, KEY, 1394)],
    ids=["ipv4", "ipv4-sealed", "ipv6", "ipv6-sealed"],
)
def test_a_link_comes_up_and_carries_frames(packets: tuple[str, str], family: int, key: bytes | None, mtu: int) -> None:
    async def scenario(one: Node, two: Node) -> None:
        for node in (one, two):
            expected = {"name": "sleeve", "mtu": mtu}
            assert node.forwarder.attrs() == (expected | {"encrypted": True} if key else expected)
            assert node.heard == ["established"]
            assert [tag for tag, _ in node.controls].count(1) == 1, "said once"
        kinds = [frame(mtu), frame(mtu, df=False), frame(8000, df=False), frame(60000, df=False), frame6(100)]
        for made in kinds:
            send(one, made)
        await until(lambda: len(two.frames) == len(kinds))
        assert sorted(two.frames) == sorted((1, 2, made) for made in kinds)
        send(two, frame(100, source=2, destination=1))
        await until(lambda: one.frames)
        assert one.frames == [(2, 1, frame(100, source=2, destination=1))]

    play(scenario, packets, family=family, key=key)


def test_before_anything_is_known_the_mtu_is_not(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        assert one.forwarder.attrs() == {"name": "sleeve", "mtu": 65535, "encrypted": True}
        send(two, frame(100, source=2, destination=1))
        assert two.forwarder.counts == {"awaiting-contact": 1}, "the acceptor does not know where to send"

    play(scenario, packets, wait=False)


def test_small_frames_travel_together_and_large_runs_in_order(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        before = one.forwarder.counts["datagrams-out"]
        for number in range(40):
            send(one, frame(60, number=number))
        await until(lambda: len(two.frames) == 40)
        # 14 + 74 bytes each: 16 of them fit 1472 bytes.
        assert one.forwarder.counts["datagrams-out"] - before == 3
        for number in range(300):
            send(one, frame(1376, number=40 + number))
        await until(lambda: len(two.frames) == 340)
        assert [int.from_bytes(got[34:38], "big") for _, _, got in two.frames] == list(range(340))
        assert "no-send-offload" not in one.path.counts

    play(scenario, packets)


@pytest.mark.parametrize("broadcast", [False, True])
def test_what_does_not_fit_with_df_is_answered(packets: tuple[str, str], broadcast: bool) -> None:
    async def scenario(one: Node, two: Node) -> None:
        send(one, frame(1415), broadcast=broadcast)
        if broadcast:
            assert not one.frames
            assert one.forwarder.counts["too-big-broadcast"] == 1
            return
        source, destination, answer = one.frames.pop()
        assert (source, destination) == (2, 1), "as if the peer had sent it"
        assert ipv4_header(answer) is not None
        assert answer[34:36] == b"\3\4"
        assert int.from_bytes(answer[40:42], "big") == 1414
        send(one, frame6(1415))
        _, _, answer = one.frames.pop()
        assert answer[54:56] == b"\2\0"
        assert int.from_bytes(answer[58:62], "big") == 1414
        await until(lambda: two.frames)
        assert two.frames == [(1, 2, frame6(1415))], "the underlay fragments it all the same"

    play(scenario, packets)


def test_frames_are_cut_where_fragments_do_not_pass(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        one.forwarder.link.fragments_pass = False
        send(one, frame(3000, df=False))
        await until(lambda: len(two.frames) == 3)
        assert max(len(got) for _, _, got in two.frames) <= 1414 + 14
        assert one.forwarder.counts["over-path-mtu"] == 1, "only the trigger of the search was refused"

    play(scenario, packets)


def test_a_path_that_shrinks_is_noticed_and_measured_anew(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        run("ip", "link", "set", "lo", "mtu", "1400")
        send(one, frame(1414))
        await until(lambda: one.forwarder.mtu.mtu == 1314 and one.forwarder.mtu.verified)
        assert not two.frames, "the frame that found it out is lost"
        send(one, frame(1314))
        send(one, frame(1315))
        await until(lambda: two.frames)
        assert two.frames == [(1, 2, frame(1314))]
        assert one.frames[0][2][34:36] == b"\3\4"
        assert [line for line in one.log.lines if line.endswith("Effective MTU verified at 1314")]

    play(scenario, packets)


def test_half_of_all_packets_may_be_lost(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        rules = "add table ip t; add chain ip t c { type filter hook input priority 0; }; "
        run("nft", rules + "add rule ip t c numgen random mod 2 == 0 drop")
        for node in (one, two):
            node.forwarder.confirm()
        await until(lambda: all(node.heard and node.forwarder.mtu.verified for node in (one, two)), 30.0)
        for number in range(200):
            send(one, frame(1000, number=number))
            one.path.flush()
        await until(lambda: len(two.frames) > 50)
        numbers = [int.from_bytes(got[34:38], "big") for _, _, got in two.frames]
        assert numbers == sorted(set(numbers)), "late, lost, but never twice"
        run("nft", "flush ruleset")

    play(scenario, packets, wait=False)


def test_sending_that_fails_for_a_while_does_not_end_the_link(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        run("nft", "add table ip t; add chain ip t c { type filter hook output priority 0; policy drop; }")
        for number in range(5):
            send(one, frame(100, number=number))
            one.path.flush()
        assert one.forwarder.counts["refused-by-firewall"] == 5
        complaint = "sleeve ->[127.0.0.2:6783|00:00:00:00:00:02(two)]: cannot send (refused by firewall); still trying"
        assert one.log.lines.count(complaint) == 1
        run("nft", "flush ruleset")
        send(one, frame(100, number=9))
        await until(lambda: two.frames)
        assert one.heard == ["established"]

    play(scenario, packets)


def test_a_datagram_that_is_played_again_is_counted_and_nothing_else(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.bind(("127.0.0.7", 0))
        sealed = SealedSession(PeerName(1), KEY, outbound=True)
        sealed._sequence[False] = 5000
        datagram = sealed.seal(frame_header(PeerName(1), PeerName(2), 114) + frame(100), False)
        for _ in range(3):
            stranger.sendto(datagram, ("127.0.0.2", PORT))
        await until(lambda: two.frames and two.forwarder.counts["replayed"] == 2)
        assert two.frames == [(1, 2, frame(100))], "the sender's address is nobody's business"
        assert two.forwarder.link.remote == ("127.0.0.1", PORT), "only a heartbeat moves it"
        before = two.path.counts["unknown-sender"]
        for garbage in (datagram[:-1], datagram[:12], datagram[:6], os.urandom(500), b"", b"x"):
            stranger.sendto(garbage, ("127.0.0.2", PORT))
        await until(lambda: two.path.counts["unknown-sender"] == before + 3)
        await until(lambda: two.forwarder.counts["malformed"] == 3)
        assert len(two.frames) == 1
        stranger.close()

    play(scenario, packets)


def test_a_peer_whose_address_changes_is_followed(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        moved = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        moved.bind(("127.0.0.8", 7777))
        heartbeat = bytes(14) + UID.to_bytes(8, "big")
        moved.sendto(
            bytes(5) + b"\1" + frame_header(PeerName(1), PeerName(2), len(heartbeat)) + heartbeat, ("127.0.0.2", PORT)
        )
        await until(lambda: two.forwarder.link.remote == ("127.0.0.8", 7777))
        made = frame(100, source=2, destination=1)
        send(two, made)
        two.path.flush()
        await until(lambda: select_readable(moved))
        assert moved.recv(2000) == bytes(5) + b"\2" + frame_header(PeerName(2), PeerName(1), len(made)) + made
        moved.close()

    play(scenario, packets, key=None)


def select_readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_a_link_that_ended_takes_and_sends_nothing(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        two.forwarder.stop()
        two.forwarder.control_message(1, b"")
        send(two, frame(100, source=2, destination=1))
        before = two.path.counts["unknown-sender"]
        send(one, frame(100))
        one.path.flush()
        await until(lambda: two.path.counts["unknown-sender"] == before + 1)
        assert not two.frames
        assert not two.path.links()
        assert two.forwarder._alarm._handle is None

    play(scenario, packets)


def test_a_younger_link_to_the_same_peer_takes_over(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        older = two.forwarder
        params = ConnectionParams(PeerName(1), "one", UID + 1, None, ADDRESSES[4][1], ("127.0.0.1", 1), False, {})
        younger = two.path.prepare(params, two)
        younger.confirm()
        older.stop()
        assert two.path.links() == [younger], "the older one's end does not touch it"
        younger.stop()

    play(scenario, packets, key=None)


def test_specials_are_nobodys_frames(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, two: Node) -> None:
        send(one, bytes(22))
        assert one.forwarder.counts["foreign-special"] == 1
        # From a third peer over this link: neither a heartbeat of the link, nor a frame for anybody.
        raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        special = bytes(14) + UID.to_bytes(8, "big")
        raw.sendto(bytes(5) + b"\1" + frame_header(PeerName(3), PeerName(2), 22) + special, ("127.0.0.2", PORT))
        await until(lambda: two.forwarder.counts["foreign-special"] == 1)
        assert two.forwarder.link.remote == ("127.0.0.1", PORT)
        assert not two.frames
        raw.close()

    play(scenario, packets, key=None)


def test_a_host_of_several_addresses_answers_from_the_right_one(packets: tuple[str, str]) -> None:
    async def scenario(_one: Node, _two: Node) -> None:
        one = make(1, "127.0.0.1", 7000, packets[0])
        two = make(2, "", 7001, packets[1])
        join(one, two, (("127.0.0.1", 7000), ("127.0.0.9", 7001)), KEY)
        for node in (one, two):
            node.forwarder.confirm()
        await until(lambda: up(one) and up(two))
        assert one.forwarder.link.remote == ("127.0.0.9", 7001)
        # An address that went away is no reason to be silent.
        link = two.forwarder
        link.channel.answer_from("192.0.2.1")
        send(two, frame(100, source=2, destination=1))
        await until(lambda: one.frames)
        for node in (one, two):
            node.forwarder.stop()
            node.path.close()

    play(scenario, packets, wait=False)


def test_datagrams_are_the_same_with_and_without_offload() -> None:
    async def scenario(one: Node, two: Node) -> None:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        ear.bind(("127.0.0.5", 5555))
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        udp = one.path.packets.socket_for("127.0.0.5")  # type: ignore[attr-defined]
        runs = [
            [bytes((n,)) * 1400 for n in range(60)],
            [b"a" * 1000, b"b" * 1000, b"c" * 10, b"d" * 1000, b"e", b"f", b"g" * 2000, b"h" * 3000],
        ]
        for segments in (True, False):
            udp._segments = segments
            for made in runs:
                for df in (True, False):
                    fitting = [datagram for datagram in made if not df or len(datagram) <= 1472]
                    assert udp.send(fitting, ("127.0.0.5", 5555), df, None, 1472) is None
                    await asyncio.sleep(0.01)
                    assert [ear.recv(4000) for _ in fitting] == fitting
            assert not select_readable(ear)
        refused = udp.send([b"x" * 1473] * 3, ("127.0.0.5", 5555), True, None, 65507)
        assert (refused.reason, refused.path_mtu) == ("over-path-mtu", 1500)
        ear.close()

    play(scenario, ("python", "python"), wait=False)


def test_an_address_of_a_family_that_is_not_bound_is_refused(packets: tuple[str, str]) -> None:
    async def scenario(one: Node, _two: Node) -> None:
        params = ConnectionParams(PeerName(9), "", 1, None, ("fd00::1", 1), ("fd00::2", PORT), True, {})
        with pytest.raises(OverlayError, match="no UDP socket of ours reaches fd00::2"):
            one.path.prepare(params, one)

    play(scenario, packets, wait=False)
