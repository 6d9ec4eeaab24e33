"""Peer names: what is accepted, what is not, and the canonical forms."""

from typing import Any

import pytest

from mesh import gob
from mesh.names import (
    InvalidPeerNameError,
    format_peer_name,
    parse_peer_name,
    peer_label,
    peer_name_from_bytes,
    peer_name_to_bytes,
)
from tests.vectors import vectors


@vectors("mesh", "names-mac.json")
def test_texts_are_accepted_and_refused_as_by_the_reference(vector: dict[str, Any]) -> None:
    if "input" not in vector:
        name = peer_name_from_bytes(bytes.fromhex(vector["input_hex"]))
        assert format_peer_name(name) == vector["canonical"]
        return
    if vector["error"]:
        with pytest.raises(InvalidPeerNameError, match="invalid peer name format"):
            parse_peer_name(vector["input"])
        return
    name = parse_peer_name(vector["input"])
    assert format_peer_name(name) == vector["canonical"]
    assert name == int(vector["uint"])
    assert peer_name_to_bytes(name).hex() == vector["hex"]
    assert peer_name_from_bytes(bytes.fromhex(vector["hex"])) == name
    assert gob.encode(gob.UINT, name).hex() == vector["gob"]


def test_label() -> None:
    assert peer_label(parse_peer_name("::a"), "host1") == "00:00:00:00:00:0a(host1)"
