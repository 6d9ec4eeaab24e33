"""Sleeve's cores against the reference's bytes, verdicts and sequences, and against garbage."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.names import PeerName, parse_peer_name
from sleeve.datagram import (
    DF_BIT,
    FRAME_OVERHEAD,
    PLAIN_OVERHEAD,
    SEALED_OVERHEAD,
    DatagramError,
    PlainSession,
    SealedSession,
    decode_frames,
    frame_header,
)
from sleeve.fragment import fragment
from sleeve.link import FRAGMENT_TEST_SIZE, HEARTBEAT_TIMEOUT, PMTU_TRIGGER_SIZE, SleeveLink
from sleeve.pmtu import PathMtu
from sleeve.replay import ReplayWindow
from tests.vectors import ROOT


def document(file: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "overlay" / file).read_text()))


def name(hexed: str) -> PeerName:
    return PeerName(int(hexed, 16))


def body(frames: list[dict[str, Any]]) -> bytes:
    return b"".join(
        frame_header(name(f["src_peer"]), name(f["dst_peer"]), len(f["frame"]) // 2) + bytes.fromhex(f["frame"])
        for f in frames
    )


def by_text(case: dict[str, Any]) -> str:
    return str(case.get("description", ""))[:50]


@pytest.mark.parametrize("case", document("sleeve-plain.json")["encode"], ids=by_text)
def test_plain_encoding(case: dict[str, Any]) -> None:
    datagram = bytes.fromhex(case["datagram"])
    session = PlainSession(PeerName(int.from_bytes(datagram[:6], "big")))
    assert session.seal(body(case["frames"]), df=True) == datagram


@pytest.mark.parametrize("case", document("sleeve-plain.json")["decode"], ids=by_text)
def test_plain_decoding(case: dict[str, Any]) -> None:
    got, error = [], ""
    try:
        for source, destination, frame in decode_frames(bytes.fromhex(case["body_after_sender_name"])):
            got.append({"src_peer": f"{source:012x}", "dst_peer": f"{destination:012x}", "frame": frame.hex()})
    except DatagramError as caught:
        error = f"Failed to decode packet: {caught}"
    assert error == case["error"]
    assert got == (case["frames_delivered"] or [])


@pytest.mark.parametrize("case", document("sleeve-nacl.json")["cases"], ids=by_text)
def test_sealed_datagrams(case: dict[str, Any]) -> None:
    datagram = bytes.fromhex(case["datagram"])
    outbound = case.get("sender_outbound", "outbound=true" in case["description"])
    key = bytes.fromhex(case["session_key"])
    sender = PeerName(int.from_bytes(datagram[:6], "big"))
    sealing = SealedSession(sender, key, outbound=outbound)
    sequence = int.from_bytes(datagram[6:14], "big")
    sealing._sequence[case["df"]] = sequence
    assert sealing.seal(body(case["frames"]), case["df"]) == datagram
    opening = SealedSession(PeerName(1), key, outbound=not outbound)
    assert opening.open(datagram) == body(case["frames"])
    assert opening.open(datagram) is None, "a datagram opens once"
    with pytest.raises(DatagramError):
        opening.open(datagram[:-1] + bytes((datagram[-1] ^ 1,)))


def test_overheads() -> None:
    expected = document("sleeve-nacl.json")["overheads"]
    assert expected["frame"] == FRAME_OVERHEAD
    assert expected["plain_packet"] == PLAIN_OVERHEAD
    assert expected["nacl_packet"] == SEALED_OVERHEAD


@pytest.mark.parametrize("case", document("replay-window.json")["sequences"], ids=by_text)
def test_replay_window(case: dict[str, Any]) -> None:
    windows = {True: ReplayWindow(), False: ReplayWindow()}
    for step in case["steps"]:
        assert windows[step["df"]].accept(int(step["seq"]) & ~DF_BIT) == step["accept"], step


@pytest.mark.parametrize("case", document("replay-window.json")["errors"], ids=by_text)
def test_what_does_not_open(case: dict[str, Any]) -> None:
    session = SealedSession(PeerName(1), bytes(32), outbound=True)
    with pytest.raises(DatagramError) as caught:
        session.open(bytes(6) + bytes.fromhex(case["body_after_sender_name"]))
    assert f"Failed to decode packet: {caught.value}" == case["error"]


@pytest.mark.parametrize("case", document("fragmentation.json")["cases"], ids=by_text)
def test_fragmentation(case: dict[str, Any]) -> None:
    pieces = fragment(bytes.fromhex(case["frame"]), case["mtu"])
    assert [piece.hex() for piece in pieces] == case["fragments"]


@pytest.mark.parametrize("run", document("pmtu-search.json")["runs"], ids=lambda run: str(run["final"]))
def test_pmtu_search(run: dict[str, Any]) -> None:
    path = PathMtu(run["overheadDF"], 28)
    probe = path.reported(run["kernel_reported_pmtu"])
    assert (path.mtu, path.max_payload) == (run["optimistic"]["mtu"], run["optimistic"]["maxPayload"])
    through = run["largest_underlay_packet_that_gets_through"]
    tried, waited = [], 0.0
    while probe is not None:
        candidate = probe.candidate
        acked = candidate + run["overheadDF"] <= through
        while probe is not None and probe.candidate == candidate:
            if acked:
                probe = path.acknowledged(candidate)
                break
            waited += probe.timeout
            probe = path.expired()
        tried.append({"acked": acked, "bad": path._bad, "candidate": candidate, "good": path._good})
    assert tried == run["probes"]
    assert {"mtu": path.mtu, "maxPayload": path.max_payload} == run["final"]
    assert round(waited * 1000) == run["time_in_timeouts_ms"]


class Effects:
    """What a link had done for it."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bool]] = []
        self.controls: list[tuple[int, bytes]] = []
        self.events: list[Any] = []
        self.moves: list[tuple[str, int]] = []

    def send_special(self, frame: bytes, df: bool) -> None:
        self.sent.append((frame, df))

    def send_control(self, tag: int, payload: bytes) -> None:
        self.controls.append((tag, payload))

    def established(self) -> None:
        self.events.append("established")

    def failed(self, error: Exception) -> None:
        self.events.append(str(error))

    def mtu_verified(self, mtu: int) -> None:
        self.events.append(mtu)

    def moved(self, remote: tuple[str, int]) -> None:
        self.moves.append(remote)


UID = 0x0123456789ABCDEF
US, PEER, ELSEWHERE = ("10.0.0.1", 6783), ("10.0.0.2", 6783), ("10.9.9.9", 999)


def link(remote: tuple[str, int] | None) -> tuple[SleeveLink, Effects]:
    effects = Effects()
    return SleeveLink(effects, PeerName(2), UID, PathMtu(62, 28), remote), effects


def heartbeat(uid: int = UID) -> bytes:
    return bytes(14) + uid.to_bytes(8, "big")


def test_special_frames_have_the_reference_bytes() -> None:
    session = PlainSession(parse_peer_name("0a:00:00:00:00:01"))
    for case in document("sleeve-special.json")["frames"]:
        size = case["frame_len"]
        frame = heartbeat() if size == 22 else bytes(size)
        header = frame_header(parse_peer_name("0a:00:00:00:00:01"), parse_peer_name("0a:00:00:00:00:02"), size)
        datagram = session.seal(header + frame, df=True)
        if "datagram" in case:
            assert datagram.hex() == case["datagram"]
        else:
            assert hashlib.sha256(datagram).hexdigest() == case["datagram_sha256"]


def test_the_dialer_speaks_first_and_slows_down() -> None:
    made, effects = link(PEER)
    made.confirm(0.0)
    assert effects.sent == [(heartbeat(), True)]
    made.tick(0.5)
    assert len(effects.sent) == 2
    made.control(1, b"", 0.6)
    assert effects.events == ["established"]
    assert [(len(f), df) for f, df in effects.sent[2:]] == [(FRAGMENT_TEST_SIZE, False), (PMTU_TRIGGER_SIZE, True)]
    made.tick(10.5)
    assert len(effects.sent) == 4
    made.tick(10.7)
    assert effects.sent[-1] == (heartbeat(), True)


def test_the_acceptor_learns_where_the_peer_is() -> None:
    made, effects = link(None)
    made.confirm(0.0)
    assert not effects.sent
    made.special(heartbeat(UID ^ 1), ELSEWHERE, 1.0)
    assert made.remote is None, "a heartbeat of another connection is nobody's"
    made.special(heartbeat(), PEER, 1.0)
    assert made.remote == PEER
    assert effects.sent == [(heartbeat(), True)]
    assert effects.controls == [(1, b"")]
    made.special(heartbeat(), ELSEWHERE, 2.0)
    assert made.remote == ELSEWHERE, "the peer moved"
    assert effects.moves == [PEER, ELSEWHERE]
    assert effects.controls == [(1, b"")], "said once"


def test_silence_ends_the_link() -> None:
    made, effects = link(PEER)
    made.confirm(0.0)
    made.special(heartbeat(), PEER, 30.0)
    made.tick(HEARTBEAT_TIMEOUT)
    assert not effects.events
    made.tick(30.0 + HEARTBEAT_TIMEOUT)
    assert effects.events == ["timed out waiting for UDP heartbeat"]
    assert made.next_timer() is None


def test_tests_are_answered_every_time() -> None:
    made, effects = link(PEER)
    for _ in range(2):
        made.special(bytes(FRAGMENT_TEST_SIZE), PEER, 0.0)
        made.special(bytes(14 + 1438), PEER, 0.0)
    assert effects.controls == [(2, b""), (3, (1438).to_bytes(2, "big"))] * 2


def test_mtu_search_over_the_link() -> None:
    made, effects = link(PEER)
    made.confirm(0.0)
    made.too_big(1500, 1.0)
    assert len(effects.sent[-1][0]) == 14 + 1438
    made.control(3, b"\5", 1.0)
    made.control(3, (999).to_bytes(2, "big"), 1.0)
    made.control(3, (1438).to_bytes(2, "big"), 1.0)
    assert effects.events == [1438]
    assert made.path.mtu == 1438
    made.too_big(1400, 2.0)
    now = 2.0
    for _ in range(300):
        if not made.path.searching:
            break
        now = made.next_timer() or now
        made.tick(now)
    assert made.path.mtu == 552, "nothing came through: the floor"


SESSIONS = ["sleeve-plain-session.json", "sleeve-encrypted-session.json", "sleeve-relay-session.json"]


@pytest.mark.parametrize("file", SESSIONS)
def test_recorded_sessions_decode(file: str) -> None:
    """Every datagram of real routers opens, once, and carries what the capture says."""
    session = document(file)
    key = session.get("session_key")
    outbound = session.get("outbound_peer", "").replace(":", "")
    opened = 0
    sessions: dict[str, SealedSession] = {}
    for datagram in session["datagrams"]:
        if "hex" not in datagram:
            continue
        raw = bytes.fromhex(datagram["hex"])
        sender = raw[:6].hex()
        if key:
            opener = sessions.setdefault(
                sender, SealedSession(PeerName(1), bytes.fromhex(key), outbound=sender != outbound)
            )
            plain = opener.open(raw)
            assert plain is not None
        else:
            plain = raw[6:]
        frames = list(decode_frames(plain))
        assert len(frames) == len(datagram["frames"])
        opened += 1
    assert opened > 5


@given(st.binary(max_size=200))
def test_garbage_costs_only_a_datagram_error(data: bytes) -> None:
    for opener in (PlainSession(PeerName(1)), SealedSession(PeerName(1), bytes(32), outbound=True)):
        try:
            plain = opener.open(data)
            if plain is not None:
                list(decode_frames(plain))
        except DatagramError:
            continue


@given(st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=40)), max_size=30))
def test_a_link_survives_anything(steps: list[tuple[int, bytes]]) -> None:
    made, _ = link(None)
    made.confirm(0.0)
    for now, (what, data) in enumerate(steps):
        if what < 4:
            made.control(what, data, float(now))
        elif what == 4:
            made.special(bytes(14) + data, ELSEWHERE, float(now))
        elif what == 5:
            made.too_big(len(data) * 40, float(now))
        else:
            made.tick(float(now))
