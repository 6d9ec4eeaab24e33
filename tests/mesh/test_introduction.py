"""Messages, features, session crypto and the introduction against golden bytes, each other and garbage."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import gob
from mesh.crypto import KeyPair, Opener, Sealer
from mesh.errors import ProtocolError
from mesh.features import FEATURE_MAP, parse_features
from mesh.handshake import DIALER_WAIT, FrameCodec, GobStreamCodec, Handshake
from mesh.messages import (
    MAX_MESSAGE,
    decode_gossip,
    decode_gossip_unicast,
    encode_gossip,
    encode_gossip_unicast,
)
from mesh.names import PeerName, format_peer_name, parse_peer_name
from tests.vectors import load, vectors


@vectors("mesh", "messages.json")
def test_messages_have_the_reference_bytes(vector: dict[str, Any]) -> None:
    if vector["name"] == "too-big-receive":
        with pytest.raises(ProtocolError, match=vector["error"]):
            FrameCodec(None, None).feed(bytes.fromhex(vector["hex"]))
        return
    if vector["name"] == "too-big-send":
        with pytest.raises(ProtocolError, match=vector["error"]):
            FrameCodec(None, None).encode(bytes(vector["size"]))
        return
    raw = bytes.fromhex(vector["hex"])
    if "payload" not in vector:
        assert FrameCodec(None, None).feed(raw)
        return
    plaintext = bytes((vector["tag"],)) + bytes.fromhex(vector["payload"])
    assert FrameCodec(None, None).encode(plaintext) == raw
    assert FrameCodec(None, None).feed(raw) == [plaintext]
    payload = plaintext[1:]
    if vector["tag"] in (4, 6):
        assert encode_gossip(*decode_gossip(payload)) == payload
    elif vector["tag"] == 5:
        assert encode_gossip_unicast(*decode_gossip_unicast(payload)) == payload


def test_oversize_messages_are_refused_both_ways() -> None:
    codec = FrameCodec(None, None)
    expected = f"outgoing message exceeds maximum size: {MAX_MESSAGE + 1} > {MAX_MESSAGE}"
    with pytest.raises(ProtocolError, match=expected):
        codec.encode(bytes(MAX_MESSAGE + 1))
    with pytest.raises(ProtocolError, match="incoming message exceeds maximum size"):
        codec.feed((MAX_MESSAGE + 1).to_bytes(4, "big"))


def test_gossip_headers_of_another_shape_are_read_too() -> None:
    # Non-minimal integers, as the reference accepts them.
    payload = b"\x05\x0c\x00\xff\x01x" + b"\x04\x06\x00\xff\x09" + gob.encode(gob.BYTES, b"d")
    assert decode_gossip(payload) == ("x", PeerName(9), b"d")


@vectors("mesh", "features.json")
def test_features_are_judged_as_by_the_reference(vector: dict[str, Any]) -> None:
    raw = gob.decode(bytes.fromhex(vector["hex"]), FEATURE_MAP)
    assert raw == vector["features"]
    if vector["error"]:
        with pytest.raises(ProtocolError) as caught:
            parse_features(raw)
        assert str(caught.value) == vector["error"]
        return
    features, parsed = parse_features(raw), vector["parsed"]
    assert format_peer_name(features.name) == parsed["name"]
    assert features.nickname == parsed["nickname"]
    assert features.uid == int(parsed["uid"])
    assert (features.short_id is not None) == parsed["hasshortid"]
    assert (features.short_id or 0) == parsed["shortid"]
    assert features.trusted == parsed["trusted_by_remote"]
    assert features.conn_id ^ vector["our_connid"] == int(parsed["connection_uid"])


@vectors("mesh", "session-key.json")
def test_session_keys(vector: dict[str, Any]) -> None:
    password = bytes.fromhex(vector["password_hex"])
    for ours, theirs in (("a", "b"), ("b", "a")):
        keys = KeyPair(bytes.fromhex(vector[f"{ours}_private"]))
        assert keys.public.hex() == vector[f"{ours}_public"]
        assert keys.session_key(bytes.fromhex(vector[f"{theirs}_public"]), password).hex() == vector["hex"]


def test_sealed_streams() -> None:
    for dialer in (True, False):
        sent = [v for v in load("mesh", "crypto-stream.json") if v["sender"] == ("dialer" if dialer else "acceptor")]
        in_order = [v for v in sent if v["seq"] == sent.index(v)]
        assert in_order
        key = bytes.fromhex(in_order[0]["session_key"])
        codec = FrameCodec(Sealer(key, sender_is_dialer=dialer), None)
        opener = FrameCodec(None, Opener(key, sender_is_dialer=dialer))
        for vector in in_order:
            assert codec.encode(bytes.fromhex(vector["plaintext"])).hex() == vector["hex"]
            assert opener.feed(bytes.fromhex(vector["hex"])) == [bytes.fromhex(vector["plaintext"])]


def test_a_forged_message_does_not_open() -> None:
    sealed = Sealer(bytes(32), sender_is_dialer=True).seal(b"x")
    with pytest.raises(ProtocolError, match="Unable to decrypt TCP msg"):
        Opener(bytes(32), sender_is_dialer=False).open(sealed)


def side(outbound: bool, **changes: Any) -> Handshake:
    settings: dict[str, Any] = {
        "outbound": outbound,
        "name": parse_peer_name("::a" if outbound else "::b"),
        "nickname": "dialer" if outbound else "acceptor",
        "uid": 1 if outbound else 2,
        "conn_id": 100 if outbound else 7,
        "short_id": 5,
        "trusted": False,
        "extra": {"Overlays": "sleeve"},
        "key_seed": bytes((1 + outbound,)) * 32,
    }
    return Handshake(**{**settings, **changes})


def golden_side(vector: dict[str, Any], who: str) -> Handshake:
    features = vector[f"{who}_features"]
    short = features.get("ShortID")
    return Handshake(
        outbound=who == "dialer",
        name=parse_peer_name(features["Name"]),
        nickname=features["NickName"],
        uid=int(features["UID"]),
        conn_id=int(features["ConnID"]),
        short_id=None if short is None else int(short),
        trusted=features.get("Trusted") == "true",
        extra={key: features[key] for key in ("Overlays",) if key in features},
        passwords=[vector[f"{who}_password"].encode()] if vector.get(f"{who}_password") else [],
        max_version=vector.get("version", 2) if who == "dialer" else 2,
        key_seed=bytes.fromhex(vector.get(f"{who}_private", "")),
    )


INTRODUCTIONS = [v for v in load("mesh", "intro.json") if "dialer_writes" in v and v["name"] != "v2-empty-password"]


@pytest.mark.parametrize("who", ["dialer", "acceptor"])
@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in INTRODUCTIONS])
def test_recorded_introductions(vector: dict[str, Any], who: str) -> None:
    """One side is ours, the other's recorded bytes are fed to it."""
    other = "acceptor" if who == "dialer" else "dialer"
    machine = golden_side(vector, who)
    if vector["name"].startswith("v1") and who == "dialer":
        machine._max_version = 1
    error = ""
    try:
        sent = machine.start(0.0)
        for written in vector[f"{other}_writes"]:
            if machine.result is None:
                sent += machine.receive(bytes.fromhex(written), 0.0)
    except ProtocolError as caught:
        error = str(caught)
    expected = vector[f"{who}_error"]
    if expected and not expected.startswith(("EOF", "read tcp")):
        assert error == expected
        return
    if expected:
        assert machine.result is None
        return
    assert error == ""
    result = machine.result
    assert result is not None
    assert {key: result.features.raw[key] for key in vector[f"{who}_sees_features"]} == vector[f"{who}_sees_features"]
    key = result.session_key.hex() if result.session_key else ""
    assert key == vector.get("session_key", "")
    for message in vector["messages"]:
        wire = bytes.fromhex("".join(message["wire"]))
        if message["dir"] == who:
            assert result.codec.encode(bytes.fromhex(message["plaintext"])) == wire
        else:
            assert result.codec.feed(wire) == [bytes.fromhex(message["plaintext"])]


@pytest.mark.parametrize(
    "vector", [pytest.param(v, id=v["name"]) for v in load("mesh", "intro.json") if "a_min" in v]
)
def test_header_exchange(vector: dict[str, Any]) -> None:
    for us, them in (("a", "b"), ("b", "a")):
        machine = side(True, min_version=vector[f"{us}_min"], max_version=vector[f"{us}_max"])
        assert machine.start(0.0).hex() == vector[f"{us}_sends"]
        if vector[f"{us}_error"]:
            with pytest.raises(ProtocolError) as caught:
                machine.receive(bytes.fromhex(vector[f"{them}_sends"]), 0.0)
            assert str(caught.value) == vector[f"{us}_error"]
        elif vector[f"{us}_result_version"] in (1, 2):
            machine.receive(bytes.fromhex(vector[f"{them}_sends"]), 0.0)
            assert machine.version == vector[f"{us}_result_version"]


@pytest.mark.parametrize(
    "vector",
    [v for v in load("mesh", "intro.json") if v["name"].startswith(("header-bad", "v2-bad"))],
    ids=lambda v: v["name"],
)
def test_malformed_introductions(vector: dict[str, Any]) -> None:
    machine = side(True)
    prefix = b"weave\x01\x02" if vector["name"] == "v2-bad-flag" else b""
    try:
        machine.receive(prefix + bytes.fromhex(vector["hex"]), 0.0)
        error = str(machine.closed_early("read tcp LOCAL->REMOTE: read: connection reset by peer"))
    except ProtocolError as caught:
        error = str(caught)
    assert error == vector["error"]


def run(dialer: Handshake, acceptor: Handshake, portion: int = 1 << 20) -> None:
    """Carry bytes between two machines, in portions, until neither has more to say."""
    waiting = {True: dialer.start(0.0), False: acceptor.start(0.0)}
    clock = 0.0
    while waiting[True] or waiting[False] or dialer.deadline is not None:
        for sender, receiver in ((True, acceptor), (False, dialer)):
            data, waiting[sender] = waiting[sender][:portion], waiting[sender][portion:]
            if data and receiver.result is None:
                waiting[not sender] += receiver.receive(data, clock)
        if not waiting[True] and not waiting[False] and dialer.deadline is not None:
            clock = dialer.deadline
            waiting[True] += dialer.tick(clock)


@given(
    st.sampled_from([((), ()), ((b"p",), (b"p",)), ((b"a", b"b"), (b"b",)), ((b"a", b"b"), (b"b", b"a"))]),
    st.sampled_from([1, 2]),
    st.integers(1, 200),
)
def test_two_of_ours_meet(passwords: tuple[tuple[bytes, ...], tuple[bytes, ...]], version: int, portion: int) -> None:
    if version == 1 and len(passwords[0]) > 1:
        return
    dialer = side(True, passwords=passwords[0], max_version=version)
    acceptor = side(False, passwords=passwords[1])
    run(dialer, acceptor, portion)
    ours, theirs = dialer.result, acceptor.result
    assert ours is not None
    assert theirs is not None
    assert ours.connection_uid == theirs.connection_uid == 100 ^ 7
    assert ours.session_key == theirs.session_key
    assert ours.codec.feed(theirs.codec.encode(b"hello")) == [b"hello"]


def test_two_passwords_towards_one_that_waits_for_nobody() -> None:
    """A peer with the second password speaks at once, as 2.8 does; we follow."""
    dialer = side(True, passwords=(b"new", b"old"))
    acceptor = side(False, passwords=(b"old",))
    run(dialer, acceptor)
    assert dialer.result is not None
    assert acceptor.result is not None


def test_two_of_ours_with_two_passwords_do_not_wait_for_each_other() -> None:
    dialer = side(True, passwords=(b"a", b"b"))
    acceptor = side(False, passwords=(b"b", b"a"))
    first = dialer.start(0.0)
    reply = acceptor.receive(first, 0.0)
    answer = dialer.receive(acceptor.start(0.0) + reply, 0.0)
    assert acceptor.receive(answer, 0.0) == b""
    assert dialer.deadline == DIALER_WAIT
    assert acceptor.receive(dialer.tick(DIALER_WAIT), 1.0)
    assert acceptor.result is not None


def test_no_password_fits() -> None:
    dialer = side(True, passwords=(b"a", b"b"))
    acceptor = side(False, passwords=(b"c",))
    with pytest.raises(ProtocolError, match="Unable to decrypt TCP msg"):
        run(dialer, acceptor)


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_garbage_costs_only_a_protocol_error(
    chunks: list[bytes], good_header: bool, password: bool, version: int
) -> None:
    machine = side(False, passwords=(b"p",) if password else (), max_version=version)
    head = b"weave\x01\x02" if good_header else b""
    try:
        for chunk in itertools.chain((head,), chunks):
            machine.receive(chunk, 0.0)
            if machine.result is not None:
                return
    except ProtocolError:
        return


@given(st.binary(max_size=300))
def test_garbage_in_codecs_and_headers(data: bytes) -> None:
    for read in (
        FrameCodec(None, None).feed,
        GobStreamCodec(None, None).feed,
        FrameCodec(None, Opener(bytes(32), sender_is_dialer=True)).feed,
        decode_gossip,
        decode_gossip_unicast,
    ):
        try:
            read(data)
        except ProtocolError:
            continue


def test_secrets_are_in_no_repr() -> None:
    dialer = side(True, passwords=(b"topsecret",))
    run(dialer, side(False, passwords=(b"topsecret",)))
    assert dialer.result is not None
    assert dialer.result.session_key is not None
    assert dialer.result.session_key.hex() not in repr(dialer.result)
    assert "topsecret" not in repr(dialer)


@pytest.mark.parametrize("first", [b"weave\x01\x02\x00\x00\x10\x00\x00", b"weave\x01\x01\xfd\x10\x00\x00"])
def test_a_stranger_makes_us_hold_little(first: bytes) -> None:
    with pytest.raises(ProtocolError, match="incoming message exceeds maximum size: 1048576 > 65536"):
        side(False).receive(first, 0.0)
