"""The switch between data paths: the reference's tables, one connection's life, and what a peer gets wrong."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.names import PeerName
from mesh.seams import ConnectionParams, OverlayError
from overlay.seams import Forwarder, ForwarderEvents
from overlay.switch import OverlaySwitch, Slot, choose_best, common_overlays
from tests.overlay.fakes import LOG, FakePath, Recorder, document, params


@pytest.mark.parametrize(
    "case", document("overlay-switch.json")["common"], ids=lambda case: f"{case['ours']} with {case['peer_feature']}"
)
def test_common_overlays(case: dict[str, Any]) -> None:
    if case.get("error"):
        with pytest.raises(OverlayError, match=case["error"]):
            common_overlays(case["ours"], case["peer_feature"])
    else:
        assert common_overlays(case["ours"], case["peer_feature"]) == case["forwarders_by_index"]


@pytest.mark.parametrize(
    "case", document("overlay-switch.json")["choose_best"], ids=lambda case: f"{case['fastdp']}, {case['sleeve']}"
)
def test_choice(case: dict[str, Any]) -> None:
    slots = [
        Slot(name, None if case[name] == "dead" else FakePath(name), "established" in case[name], "hold" in case[name])
        for name in ("fastdp", "sleeve")
    ]
    best = choose_best(slots)
    assert (-1 if best is None else best) == case["best_index"]


def test_a_connection_through_its_life() -> None:
    fast, sleeve, ear = FakePath("fastdp"), FakePath("sleeve"), Recorder()
    switch = OverlaySwitch([fast, sleeve], log=LOG, peer_gone=lambda name: None)
    assert switch.features()["Overlays"] == "fastdp sleeve"
    connection = switch.prepare_connection(params({"Overlays": "fastdp sleeve"}), ear)
    assert connection.attrs()["name"] == "fastdp"
    connection.control_message(7, b"\1\1")
    assert not sleeve.calls, "nothing before confirm"
    connection.confirm()
    assert switch.link(PeerName(2)) is connection
    assert sleeve.events is not None
    assert fast.events is not None
    sleeve.events.established()
    sleeve.events.send_control(1, b"")
    assert ear.heard == ["established", (7, b"\1\1")]
    assert connection.attrs()["name"] == "sleeve"
    fast.events.established()
    connection.send(PeerName(1), PeerName(2), b"frame", False)
    assert fast.calls[-1] == ("send", b"frame")
    connection.send(PeerName(99), PeerName(2), b"other", False)
    assert sleeve.calls[-1] == ("send", b"other"), "what the best path declines goes to the next"
    fast.events.healthy(False)
    assert connection.attrs()["name"] == "sleeve"
    fast.events.healthy(True)
    assert connection.attrs()["name"] == "fastdp"
    for payload in (b"", b"\0", b"\2\1", b"\xff\1"):
        connection.control_message(7, payload)
    connection.control_message(1, b"\1\1")
    connection.control_message(7, b"\1\3\5\x9e")
    assert [call for call in sleeve.calls if call[0] == "control"] == [("control", 3, b"\5\x9e")]
    fast.events.failed(OSError("gone"))
    sleeve.events.failed(OSError("gone too"))
    assert ear.heard[-1] == "no working forwarders to 00:00:00:00:00:02(two)"
    connection.stop()
    assert switch.link(PeerName(2)) is None


def test_a_peer_without_the_feature_gets_bare_tags() -> None:
    sleeve, ear = FakePath("sleeve"), Recorder()
    connection = OverlaySwitch([sleeve], log=LOG, peer_gone=lambda name: None).prepare_connection(params({}), ear)
    connection.confirm()
    assert sleeve.events is not None
    sleeve.events.send_control(3, b"\5\x9e")
    connection.control_message(2, b"")
    connection.control_message(7, b"\0\1")
    assert ear.heard == [(3, b"\5\x9e")]
    assert sleeve.calls == [("confirm",), ("control", 2, b"")]


class BrokenPath(FakePath):
    """A data path that can serve nobody."""

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> Forwarder:
        raise OverlayError("no such thing in this kernel")


def switch_of(*paths: FakePath) -> OverlaySwitch:
    return OverlaySwitch(paths, log=LOG, peer_gone=lambda name: None)


BOTH = {"Overlays": "fastdp sleeve"}


def test_a_path_that_cannot_be_prepared_is_a_dead_slot() -> None:
    sleeve, ear = FakePath("sleeve"), Recorder()
    connection = switch_of(BrokenPath("fastdp"), sleeve).prepare_connection(params(BOTH), ear)
    assert connection.attrs() == {"name": "sleeve", "reason": "no fastdp: no such thing in this kernel"}
    connection.confirm()
    connection.control_message(7, b"\0\0")
    connection.control_message(7, b"\1\2")
    assert sleeve.calls == [("confirm",), ("control", 2, b"")], "the index counts dead slots too"
    with pytest.raises(OverlayError, match=r"no working forwarders to 00:00:00:00:00:02\(two\)"):
        switch_of(BrokenPath("sleeve")).prepare_connection(params(BOTH), ear)
    with pytest.raises(OverlayError, match="no overlays in common with peer"):
        switch_of(sleeve).prepare_connection(params({"Overlays": "awsvpc"}), ear)


def test_all_on_hold_ends_the_connection() -> None:
    """Spec 2.3: the fast path on hold while sleeve is dead closes the connection."""
    fast, sleeve, ear = FakePath("fastdp"), FakePath("sleeve"), Recorder()
    connection = switch_of(fast, sleeve).prepare_connection(params(BOTH), ear)
    connection.confirm()
    assert fast.events is not None
    assert sleeve.events is not None
    fast.events.established()
    sleeve.events.failed(OSError("timed out waiting for UDP heartbeat"))
    assert ear.heard == ["established"]
    fast.events.healthy(False)
    assert ear.heard[-1].startswith("no working forwarders")
    assert connection.attrs() == {"name": "none", "reason": "no fastdp: silence"}


def test_the_log_says_what_is_used_and_what_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fast, sleeve = FakePath("fastdp"), FakePath("sleeve")
    switch_of(fast, sleeve).prepare_connection(params(BOTH), Recorder()).confirm()
    assert fast.events is not None
    assert sleeve.events is not None
    sleeve.events.established()
    fast.events.established()
    sleeve.events.failed(OSError("timed out waiting for UDP heartbeat"))
    fast.events.healthy(True)
    assert caplog.messages == [
        "overlay_switch ->[00:00:00:00:00:02(two)] using sleeve",
        "overlay_switch ->[00:00:00:00:00:02(two)] using fastdp",
        "overlay_switch ->[00:00:00:00:00:02(two)] sleeve timed out waiting for UDP heartbeat",
    ]


def test_of_duplicates_the_latest_carries_frames() -> None:
    switch = switch_of(FakePath("sleeve"))
    older, newer, never = (switch.prepare_connection(params(BOTH), Recorder()) for _ in range(3))
    older.confirm()
    newer.confirm()
    assert switch.link(PeerName(2)) is newer
    older.stop()
    assert switch.link(PeerName(2)) is newer
    never.stop()
    never.confirm()
    assert switch.link(PeerName(2)) is newer, "a refused connection takes nobody's place"
    newer.stop()
    assert switch.link(PeerName(2)) is None


def test_after_stop_nothing_is_said_or_heard() -> None:
    sleeve, ear = FakePath("sleeve"), Recorder()
    connection = switch_of(sleeve).prepare_connection(params(BOTH), ear)
    connection.confirm()
    connection.stop()
    connection.stop()
    assert sleeve.events is not None
    sleeve.events.established()
    sleeve.events.failed(OSError("late"))
    sleeve.events.healthy(False)
    sleeve.events.send_control(1, b"")
    connection.control_message(7, b"\0\1")
    connection.send(PeerName(1), PeerName(2), b"frame", False)
    assert ear.heard == []
    assert sleeve.calls == [("confirm",), ("stop",)]


@settings(max_examples=200)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=70)), max_size=20))
def test_garbage_reaches_the_forwarder_it_names_or_nobody(legacy: bool, messages: list[tuple[int, bytes]]) -> None:
    fast, sleeve, ear = FakePath("fastdp"), FakePath("sleeve"), Recorder()
    connection = switch_of(fast, sleeve).prepare_connection(params({} if legacy else BOTH), ear)
    connection.confirm()
    for tag, payload in messages:
        connection.control_message(tag, payload)
    if legacy:
        expected = [("control", tag, payload) for tag, payload in messages if tag in (1, 2, 3)]
        assert sleeve.calls[1:] == expected
        assert fast.calls == []
    else:
        for index, path in enumerate((fast, sleeve)):
            assert path.calls[1:] == [
                ("control", payload[1], payload[2:])
                for tag, payload in messages
                if tag == 7 and len(payload) >= 2 and payload[0] == index
            ]
    assert ear.heard == []
