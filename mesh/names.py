"""Peer names: 48-bit numbers that look like MAC addresses.

On the wire six bytes or an unsigned integer, in text `02:00:00:00:00:0a`. Order is numeric, which is also the
order of the canonical texts; routes and short ids depend on it. Source: mesh spec §1.1.
"""

import re
from functools import lru_cache
from typing import NewType

PeerName = NewType("PeerName", int)

UNKNOWN = PeerName(0)
NAME_SIZE = 6
_MASK = (1 << 48) - 1
_GROUP = re.compile(r"[ \t]*([0-9a-fA-F]{1,2})")


class InvalidPeerNameError(ValueError):
    """A text that is no peer name."""

    def __init__(self, text: str) -> None:
        super().__init__(f'invalid peer name format: "{text}"')


def parse_peer_name(text: str) -> PeerName:
    """Six groups of one or two hex digits, or at most four with one `::` for the missing zeros.

    Raises InvalidPeerNameError.
    """
    head, gap, tail = text.partition("::")
    if gap:
        left, right = _groups(head, text), _groups(tail, text)
        if not 0 < len(left) + len(right) <= 4 or "::" in tail:
            raise InvalidPeerNameError(text)
        groups = left + [0] * (6 - len(left) - len(right)) + right
    else:
        groups = _groups(text, text)
        if len(groups) != 6:
            raise InvalidPeerNameError(text)
    return PeerName(int.from_bytes(bytes(groups), "big"))


def _groups(part: str, whole: str) -> list[int]:
    if not part:
        return []
    matches = [_GROUP.fullmatch(group) for group in part.split(":")]
    if None in matches:
        raise InvalidPeerNameError(whole)
    return [int(match[1], 16) for match in matches if match is not None]


@lru_cache(maxsize=8192)
def format_peer_name(name: PeerName) -> str:
    """Canonical text: six lower-case groups of two digits (the low 48 bits of a larger number)."""
    return (name & _MASK).to_bytes(NAME_SIZE, "big").hex(":")


def peer_name_from_bytes(raw: bytes) -> PeerName:
    """Big-endian, whatever the length."""
    return PeerName(int.from_bytes(raw, "big"))


def peer_name_to_bytes(name: PeerName) -> bytes:
    """Six bytes."""
    return (name & _MASK).to_bytes(NAME_SIZE, "big")


def peer_label(name: PeerName, nickname: str) -> str:
    """`NAME(NICK)`, as people see a peer."""
    return f"{format_peer_name(name)}({nickname})"
