"""Keys of encrypted links, against Weave Net's own."""

import json
import re
from typing import Any

import pytest

from fastdp import esp
from fastdp.esp import BodyError
from fastdp.wire import DEFAULT_MTU
from mesh.names import parse_peer_name
from tests.vectors import ROOT

VECTORS: dict[str, Any] = json.loads((ROOT / "overlay/fastdp-ipsec.json").read_text())
SESSION: dict[str, Any] = json.loads((ROOT / "overlay/fastdp-esp-session.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: vector["receiving_peer"])
def test_keys(vector: dict[str, str]) -> None:
    session_key, nonce = bytes.fromhex(vector["session_key"]), bytes.fromhex(vector["nonce_as_hkdf_salt"])
    assert esp.key(session_key, nonce, parse_peer_name(vector["receiving_peer"])).hex() == vector["okm_36"]


@pytest.mark.parametrize("vector", VECTORS["init_sa_remote"], ids=lambda vector: vector["spi"])
def test_bodies(vector: dict[str, str]) -> None:
    nonce, spi = bytes.fromhex(vector["nonce"]), int(vector["spi"], 16)
    assert esp.body(nonce, spi).hex() == vector["body"]
    assert esp.unpack_body(bytes.fromhex(vector["body"])) == (nonce, spi)


@pytest.mark.parametrize("vector", VECTORS["init_sa_remote_rejected"], ids=lambda vector: str(vector["len"]))
def test_bodies_of_another_length(vector: dict[str, int]) -> None:
    with pytest.raises(BodyError):
        esp.unpack_body(bytes(vector["len"]))


@pytest.mark.parametrize("association", SESSION["security_associations"], ids=lambda one: one["spi"])
def test_a_captured_session(association: dict[str, str]) -> None:
    made = esp.key(
        bytes.fromhex(SESSION["session_key"]),
        bytes.fromhex(association["nonce"]),
        parse_peer_name(association["sent_by"]),
    )
    assert made.hex() == association["okm_36"]


def test_overhead() -> None:
    assert esp.overhead(DEFAULT_MTU) == 34
    captured = set(map(int, re.findall(r'"esp_overhead": (\d+)', json.dumps(SESSION))))
    assert {esp.overhead(mtu) for mtu in range(1370, 1374)} == captured == {34, 35, 36, 37}
    assert max(captured) == esp.MOST
