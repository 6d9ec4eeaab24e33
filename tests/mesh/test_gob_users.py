"""The codec against what its users will send: every IPAM and DNS message of the captures decodes and re-encodes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mesh import gob
from mesh.messages import decode_gossip, decode_gossip_unicast
from tests.mesh.test_gob import decode_all, shown
from tests.vectors import ROOT

FILES = [(room, file) for room in ("ipam", "dns") for file in ("gossip_messages.json", "recorded_mesh.json")]


def streams(document: Any) -> Iterator[bytes]:
    """The gob streams of a file: payloads as they are, recorded messages without tag and header."""
    if isinstance(document, list):
        for item in document:
            yield from streams(item)
        return
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if not isinstance(value, str):
            yield from streams(value)
        elif key == "payload_hex" and value:
            yield bytes.fromhex(value)
        elif key == "frame_hex":
            message = bytes.fromhex(value)
            if message[0] == 5:
                yield decode_gossip_unicast(message[1:])[3]
            elif message[0] in (4, 6):
                yield decode_gossip(message[1:])[2]


@pytest.mark.parametrize(("room", "file"), FILES)
def test_messages_of_users_survive_re_encoding(room: str, file: str) -> None:
    checked = 0
    for stream in streams(json.loads((ROOT / room / file).read_text())):
        # IPAM's unicasts begin with a byte that says what they are; no gob message is that short.
        values = decode_all(stream[1:] if stream[0] < 3 else stream)
        encoder = gob.Encoder()
        for kind, value in values:
            encoder.add(kind, value)
        assert [shown(v) for _, v in decode_all(encoder.done())] == [shown(v) for _, v in values]
        checked += bool(values)
    assert checked > 5
