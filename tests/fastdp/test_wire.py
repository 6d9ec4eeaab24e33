"""The bytes of the fast data path, as the reference and captured sessions have them."""

import hashlib
import json

import pytest

from fastdp.wire import Control, ends, heartbeat, is_heartbeat, packet, said_heard, vni
from tests.vectors import ROOT

VECTORS = json.loads((ROOT / "overlay/fastdp.json").read_text())
SESSION = json.loads((ROOT / "overlay/fastdp-session-plain.json").read_text())


@pytest.mark.parametrize("one", VECTORS["vni"], ids=lambda one: one["vni_hex"])
def test_vni(one: dict[str, object]) -> None:
    source, destination = int(str(one["src_short_id"])), int(str(one["dst_short_id"]))
    assert vni(source, destination) == one["vni"]
    assert ends(int(str(one["vni"]))) == (source, destination)
    assert packet(source, destination, b"").hex() == one["vxlan_header"]


@pytest.mark.parametrize("one", VECTORS["heartbeat_packets"], ids=lambda one: str(one["datapath_mtu"]))
def test_heartbeat(one: dict[str, object]) -> None:
    frame = heartbeat(int(str(one["connection_uid"]), 16), int(str(one["datapath_mtu"])))
    made = packet(0xABC, 0x123, frame)
    assert len(made) == one["udp_payload_len"] and made[:48].hex() == one["udp_payload_first_48"]
    assert hashlib.sha256(made).hexdigest() == one["udp_payload_sha256"]


@pytest.mark.parametrize("one", VECTORS["heartbeat_acceptance"], ids=lambda one: one["description"])
def test_which_heartbeats_are_taken(one: dict[str, object]) -> None:
    taken = is_heartbeat(bytes.fromhex(str(one["frame"])), 0x0123456789ABCDEF)
    assert taken == bool(one["acks_after_first"])


@pytest.mark.parametrize("heard", [True, False, None])
def test_what_our_heartbeats_say(heard: bool | None) -> None:
    frame = heartbeat(7, 1376, heard)
    assert said_heard(frame) is heard and is_heartbeat(frame, 7) and len(frame) == 1390


def test_a_captured_session() -> None:
    """Every heartbeat of real routers is taken, and is what we would have sent."""
    uid = int(SESSION["connection_uid"], 16)
    beats = [one for one in SESSION["datagrams"] if one["overlay"] == "fastdp" and "heartbeat" in one["what"]]
    assert beats
    for one in beats:
        data = bytes.fromhex(one["hex"])
        assert is_heartbeat(data[8:], uid) and said_heard(data[8:]) is None
        assert packet(one["src_short_id"], one["dst_short_id"], heartbeat(uid, 1376)) == data
    assert any(one.get("hex") == f"0700{Control.HEARTBEAT_ACK:02x}" for one in SESSION["control_messages"])
