"""Complete recorded sessions of real routers, one side of them played to a router of ours; and the tie-break."""

import logging
from random import Random
from typing import Any

import pytest

from mesh.config import MeshConfig
from mesh.maker import DirectPeer
from mesh.messages import Tag, decode_gossip, encode_gossip
from mesh.names import parse_peer_name
from mesh.router import Router, duplicates_kept
from tests.mesh.sim import Clock, SimOverlay
from tests.vectors import vectors

PEERS = {"dialer": "02:00:00:00:00:0b", "acceptor": "02:00:00:00:00:0a"}


class Listening:
    """A wire that keeps what is sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.aborted = False

    def send(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def unsent(self) -> int:
        return 0


@pytest.mark.parametrize("ours", ["dialer", "acceptor"])
@vectors("mesh", "session-plain.json")
def test_a_real_router_finds_in_us_what_it_expects(vector: dict[str, Any], ours: str) -> None:
    """Everything that one side of a real session sent is understood, and the connection stays to its end."""
    theirs = "acceptor" if ours == "dialer" else "dialer"
    clock, rng = Clock(), Random(1)
    config = MeshConfig(parse_peer_name(PEERS[ours]), "ours")
    router = Router(
        config, uid=1, scheduler=clock, rng=rng, entropy=rng.randbytes, dial=lambda address, attempt: None,
        log=logging.getLogger("test"),
    )  # fmt: skip
    router.attach_overlay(SimOverlay(clock, 0.001))
    router.start()
    wire = Listening()
    if ours == "dialer":
        # A direct target: there, an unknown peer may answer.

        router.connect([DirectPeer("peer", ("192.168.77.1:6783",), True)])
    local, remote = ("192.168.77.2", 40000), ("192.168.77.1", 6783)
    connection = router.opened(wire, local=local, remote=remote, attempt=1 if ours == "dialer" else 0)
    played = 0
    for message in vector["messages"]:
        if message["dir"] != theirs:
            continue
        clock.run(max(0.0, message["t"] - clock.now()))
        if message["kind"] == "RST":
            break
        assert not connection.closed, f"closed at {message['t']}: {connection.error}"
        connection.receive(bytes.fromhex(message["hex"]))
        played += 1
    assert played >= 9
    assert connection.active
    assert not wire.aborted
    entry = router.topology.get(parse_peer_name(PEERS[theirs]))
    assert entry is not None
    assert entry.nickname == ("host-a" if theirs == "acceptor" else "host-b")
    assert wire.sent.startswith(b"weave\x01\x02")


@vectors("mesh", "session-plain.json")
def test_gossip_headers_re_encode_to_the_recorded_bytes(vector: dict[str, Any]) -> None:
    checked = 0
    for message in vector["messages"]:
        if message.get("tag") in (Tag.GOSSIP, Tag.GOSSIP_BROADCAST):
            payload = bytes.fromhex(message["hex"])[5:]
            channel, source, data = decode_gossip(payload)
            assert (channel, data.hex()) == (message["channel"], message["data"])
            assert encode_gossip(channel, source, data) == payload
            checked += 1
    assert checked > 5


@vectors("mesh", "tiebreak.json")
def test_of_two_connections_the_lower_uid_stays(vector: dict[str, Any]) -> None:
    keep_existing, keep_new = duplicates_kept(int(vector["existing_uid"]), int(vector["new_uid"]))
    expected = {
        "new kept, existing closed": (False, True),
        "new closed, existing kept": (True, False),
        "both closed": (False, False),
    }
    assert (keep_existing, keep_new) == expected[vector["result"]]
