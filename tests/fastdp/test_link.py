"""The state machine of a fast link, against a clock of its own."""

from random import Random

import pytest

from fastdp.link import OUR_TIMEOUT, FastLink
from fastdp.wire import Cause, Control, heartbeat

# What we hear of a peer, told again.
ASKED = (Control.HEALTH, b"\1")
UID = 0x10EB717196F92EFB
MTU = 1376


class Side:
    """One end, and what it had done."""

    def __init__(self, *, ours: bool, esp: int | None = None) -> None:
        self.link = FastLink(self, UID, MTU, ours=ours, port=6784, esp=esp)
        self.heard: list[object] = []
        self.beats = 0
        self.now = 0.0
        self.limit: int | None = None
        self.said: bool | None = None

    def beat(self, heard: bool | None) -> int | None:
        self.beats += 1
        self.said = heard
        return self.limit

    def send_control(self, tag: int, payload: bytes) -> None:
        self.heard.append((tag, payload))

    def established(self) -> None:
        self.heard.append("established")

    def healthy(self, health: bool) -> None:
        self.heard.append(health)

    def fits_again(self) -> None:
        self.heard.append("fits again")

    def renew_key(self) -> None:
        self.heard.append("new key")

    def until(self, when: float) -> None:
        while (at := self.link.next_timer()) is not None and at <= when:
            self.now = at
            self.link.tick(at)
        self.now = when

    def receive(self, heard: bool | None = None) -> None:
        self.link.heartbeat(heartbeat(UID, MTU, heard), self.now)

    def establish(self) -> None:
        self.link.confirm(self.now)
        self.receive()
        self.link.control(Control.HEARTBEAT_ACK, b"", self.now)
        self.heard.clear()
        self.beats = 0


@pytest.fixture(params=[False, True], ids=["2.8", "ours"])
def side(request: pytest.FixtureRequest) -> Side:
    return Side(ours=request.param)


def test_establishing(side: Side) -> None:
    side.link.confirm(0.0)
    side.until(1.6)
    assert side.beats == 4, "at once, then every half a second"
    side.receive()
    side.receive()
    assert side.heard == [(Control.HEARTBEAT_ACK, b"")], "acknowledged once"
    side.link.control(Control.HEARTBEAT_ACK, b"", side.now)
    side.link.control(Control.HEARTBEAT_ACK, b"", side.now)
    assert side.heard[1:] == ["established"] and side.link.trouble == ""


def test_nothing_counts_before_confirm(side: Side) -> None:
    assert not side.link.heartbeat(heartbeat(UID, MTU), 0.0)
    assert side.heard == []


@pytest.mark.parametrize("frame", [heartbeat(UID + 1, MTU), heartbeat(UID, MTU)[:-1], bytes(23), b"\1" + bytes(40)])
def test_what_is_no_heartbeat(side: Side, frame: bytes) -> None:
    side.link.confirm(0.0)
    assert not side.link.heartbeat(frame, 0.0) and side.heard == []


def test_unknown_control_messages_are_ignored(side: Side) -> None:
    side.establish()
    for tag, payload in ((1, bytes(64)), (9, b"x"), (Control.HEALTH, b"")):
        side.link.control(tag, payload, 1.0)
    assert side.heard == []


def test_silence_of_2_8() -> None:
    side = Side(ours=False)
    side.establish()
    side.until(59.9)
    assert side.heard == [] and side.beats == 5
    side.until(60.1)
    assert side.heard == [False] and "nothing is received on UDP port 6784" in side.link.trouble
    side.until(70.0)
    side.receive()
    assert side.heard == [False, True], "its first heartbeat heals"


def test_silence_of_ours() -> None:
    side = Side(ours=True)
    side.establish()
    side.until(OUR_TIMEOUT / 2 - 0.1)
    assert side.heard == []
    side.until(OUR_TIMEOUT + 0.1)
    assert side.heard == [ASKED] * 6 + [(Control.HEALTH, b"\0"), False]
    side.heard = side.heard[6:]
    side.until(20.0)
    side.receive()
    assert len(side.heard) == 2, "one heartbeat is chance"
    side.until(22.0)
    side.receive()
    assert side.heard[2:] == [(Control.HEALTH, b"\1"), True]


def test_who_is_asked_sends_a_heartbeat() -> None:
    side = Side(ours=True)
    side.establish()
    side.until(2.6)
    assert side.beats == 1
    for _ in range(5):
        side.link.control(*ASKED, 2.6)
        side.until(2.7)
    assert side.beats == 2, "at once, but not as often as he asks"


def test_the_peer_does_not_hear_us() -> None:
    side = Side(ours=True)
    side.establish()
    side.link.control(Control.HEALTH, b"\0", 1.0)
    assert side.heard == [False] and "the peer receives nothing" in side.link.trouble
    side.link.control(Control.HEALTH, b"\1", 2.0)
    assert side.heard == [False, True]


def test_two_of_ours_return_by_heartbeats_alone() -> None:
    """The control connection may wait for its turn as long again as nothing passed."""
    one, other = Side(ours=True), Side(ours=True)
    for side in (one, other):
        side.establish()
        side.until(30.0)
        side.link.control(Control.HEALTH, b"\0", 30.0)
        assert side.link.changes == 1 and side.said is False
    for when in (32.0, 34.0, 36.0):
        for side in (one, other):
            side.until(when)
        for side, peer in ((one, other), (other, one)):
            side.receive(peer.said)
    for side in (one, other):
        assert side.link.trouble == "" and side.link.changes == 2
        # What had waited comes at last, and is old.
        side.link.control(Control.HEALTH, b"\0", 36.5)
        assert side.link.changes == 2
        side.link.control(Control.HEALTH, b"\0", 45.0)
        assert side.link.changes == 3, "no heartbeat said anything else for long"


def test_a_heartbeat_says_that_ours_are_not_heard() -> None:
    side = Side(ours=True)
    side.establish()
    side.receive(False)
    assert side.heard == [False] and "the peer receives nothing" in side.link.trouble
    side.receive(True)
    assert side.heard == [False, True]


def test_2_8_says_nothing_of_health() -> None:
    side = Side(ours=False)
    side.establish()
    side.link.control(Control.HEALTH, b"\0", 1.0)
    side.until(100.0)
    assert (Control.HEALTH, b"\0") not in side.heard and False in side.heard
    assert side.said is None, "its heartbeats have zeros there"


def test_the_path_shrinks(side: Side) -> None:
    side.establish()
    side.limit = 1400
    side.until(10.1)
    side.receive()
    assert False in side.heard and side.link.trouble == "path MTU 1400 < 1426"
    side.limit = None
    for when in (12.2, 14.2, 16.2):
        side.until(when)
        side.receive()
    assert side.heard.count(True) == 1 and "fits again" in side.heard and side.link.trouble == ""


def test_random_loss_changes_next_to_nothing() -> None:
    rng = Random(4)
    side = Side(ours=True)
    side.establish()
    for second in range(1, 3600):
        side.until(float(second))
        sent = second % 2 == 0 or ASKED in side.heard
        side.heard.clear()
        if sent and rng.random() > 0.3:
            side.receive()
    assert side.link.changes == 0, "an hour with every third heartbeat lost"


def test_ipv6_takes_more() -> None:
    side = Side(ours=True)
    assert side.link.needs == 1426
    assert FastLink(side, UID, MTU, ours=True, port=6784, v6=True).needs == 1446


@pytest.mark.parametrize("ours", [False, True], ids=["2.8", "ours"])
def test_encrypted_nothing_is_sent_before_the_key(ours: bool) -> None:
    side = Side(ours=ours, esp=34)
    side.link.confirm(0.0)
    side.link.control(Control.HEARTBEAT_ACK, b"", 0.1)
    side.until(3.0)
    assert side.beats == 0 and side.heard == [] and "no key" in side.link.trouble
    side.link.keyed(3.0)
    assert side.beats == 1 and side.link.needs == 1460
    side.receive()
    side.link.control(Control.HEARTBEAT_ACK, b"", 3.1)
    assert side.heard == [(Control.HEARTBEAT_ACK, b""), "established"] and side.link.trouble == ""


def test_encrypted_silence_of_ours_renews_the_key() -> None:
    side = Side(ours=True, esp=34)
    side.link.keyed(0.0)
    side.establish()
    side.until(OUR_TIMEOUT * 2.5)
    assert side.heard == [ASKED] * 6 + [(Control.HEALTH, b"\0"), False, "new key", "new key"]
    assert "IP protocol 50" in side.link.trouble
    side.receive()
    side.until(OUR_TIMEOUT * 2.5 + 2)
    side.receive()
    side.until(OUR_TIMEOUT * 3.4)
    assert side.heard[10:12] == [(Control.HEALTH, b"\1"), True]


def test_stop(side: Side) -> None:
    side.establish()
    side.link.stop()
    assert side.link.next_timer() is None


def test_a_link_that_must_not_be_used() -> None:
    """Both ends leave it at once, each with its reason, and come back to it at once."""
    one, other = Side(ours=True), Side(ours=True)
    for side in (one, other):
        side.establish()
    for cause, healthy in ((Cause.RELAYS, False), (Cause.NOTHING, True)):
        one.link.bar(cause)
        assert one.heard[-1] is healthy
        message = one.heard[-2]
        assert isinstance(message, tuple) and message[0] == Control.HEALTH
        other.link.control(message[0], message[1], other.now)
        assert other.heard == [healthy]
        other.heard.clear()
        assert ("relay" in one.link.trouble, "relay" in other.link.trouble) == (not healthy, not healthy)
