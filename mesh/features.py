"""The feature map: what two peers tell each other before anything else.

Unknown keys are kept and ignored, which makes the map the protocol's extension point. Source: mesh spec §3.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mesh import gob
from mesh.errors import ProtocolError
from mesh.names import InvalidPeerNameError, PeerName, format_peer_name, parse_peer_name

FLAVOUR = "mac"
MAX_SHORT_ID = 4095
FEATURE_MAP = gob.MapOf(gob.STRING, gob.STRING)
# All that version 1 peers exchange.
V1_KEYS = ("ConnID", "Name", "NickName", "PeerNameFlavour", "UID")
_REQUIRED = ("PeerNameFlavour", "Name", "NickName", "UID", "ConnID")
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Features:
    """A peer's features, checked. `short_id` is None where the peer has none; `raw` is the whole map."""

    name: PeerName
    nickname: str
    uid: int
    conn_id: int
    short_id: int | None
    trusted: bool
    raw: Mapping[str, str]


def build_features(
    *,
    name: PeerName,
    nickname: str,
    uid: int,
    conn_id: int,
    short_id: int | None,
    trusted: bool,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Our own map."""
    features = {
        "PeerNameFlavour": FLAVOUR,
        "Name": format_peer_name(name),
        "NickName": nickname,
        "UID": str(uid),
        "ConnID": str(conn_id),
        "Trusted": "true" if trusted else "false",
        **extra,
    }
    if short_id is not None:
        features["ShortID"] = str(short_id)
    return features


def parse_features(raw: Mapping[str, str]) -> Features:
    """Check a peer's map. Raises ProtocolError with the text that operators search for."""
    for key in _REQUIRED:
        if key not in raw:
            raise ProtocolError(f"field {key} is missing")
    if raw["PeerNameFlavour"] != FLAVOUR:
        theirs = raw["PeerNameFlavour"]
        raise ProtocolError(f"Peer name flavour mismatch (ours: '{FLAVOUR}', theirs: '{theirs}')")
    try:
        name = parse_peer_name(raw["Name"])
    except InvalidPeerNameError as error:
        raise ProtocolError(str(error)) from error
    return Features(
        name=name,
        nickname=raw["NickName"],
        uid=_unsigned(raw["UID"], 64),
        conn_id=_unsigned(raw["ConnID"], 64),
        short_id=_short_id(raw.get("ShortID")),
        trusted=_boolean(raw.get("Trusted", "false")),
        raw=dict(raw),
    )


def _unsigned(text: str, bits: int) -> int:
    if not _DIGITS.fullmatch(text):
        raise ProtocolError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    # The length is looked at first: a number of a million digits is not worth converting.
    value = int(text) if len(text) <= 40 else 1 << bits
    if value >= 1 << bits:
        raise ProtocolError(f'strconv.ParseUint: parsing "{text[:80]}": value out of range')
    return value


def _short_id(text: str | None) -> int | None:
    if text is None:
        return None
    return _unsigned(text, 12)


def _boolean(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ProtocolError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in _TRUE
