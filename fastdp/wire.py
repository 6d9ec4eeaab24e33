"""The fast data path on the wire: VXLAN header, heartbeat, private control messages. Source: data plane spec §4."""

import struct
from enum import IntEnum

from overlay.frames import ETHERNET_HEADER

SHORT_MASK = 0xFFF
VXLAN_HEADER = 8
# Outer IPv4 and UDP header.
OUTER = 20 + 8
OVERHEAD = OUTER + VXLAN_HEADER + ETHERNET_HEADER
# What an outer IPv6 header has more.
IPV6_MORE = 20
DEFAULT_MTU = 1376
_HEADER = struct.Struct(">II")
_VNI_FOLLOWS = 0x08000000
_BEAT = struct.Struct(">14xQH")


class Control(IntEnum):
    """Private control messages. HEALTH is ours: sent to none but peers that announce it."""

    HEARTBEAT_ACK = 0
    INIT_SA_REMOTE = 1
    HEALTH = 2


class Heard(IntEnum):
    """What a heartbeat says of the other way, in the octet behind its length."""

    YES = 1
    NO = 2


class Cause(IntEnum):
    """Why an end is not healthy, the second octet of HEALTH; none where it only hears nothing."""

    NOTHING = 0
    RELAYS = 1


def vni(source: int, destination: int) -> int:
    """The network identifier of a frame between two short ids."""
    return source | destination << 12


def ends(number: int) -> tuple[int, int]:
    """(source, destination) short ids."""
    return number & SHORT_MASK, number >> 12 & SHORT_MASK


def packet(source: int, destination: int, frame: bytes) -> bytes:
    """The UDP payload that carries a frame."""
    return _HEADER.pack(_VNI_FOLLOWS, vni(source, destination) << 8) + frame


def heartbeat(connection_uid: int, mtu: int, heard: bool | None = None) -> bytes:
    """The frame of a heartbeat: as long as the longest that the path has to take.

    `heard`: whether we receive the peer's, which is for our own nodes; 2.8 and None have a zero there.
    """
    length = ETHERNET_HEADER + mtu
    said = b"" if heard is None else bytes((Heard.YES if heard else Heard.NO,))
    return (_BEAT.pack(connection_uid, length) + said).ljust(length, b"\0")


def is_heartbeat(frame: bytes, connection_uid: int) -> bool:
    """Whether a frame with zeros for addresses is a whole heartbeat of this connection."""
    if len(frame) < _BEAT.size or any(frame[:ETHERNET_HEADER]):
        return False
    uid, length = _BEAT.unpack_from(frame)
    return bool(uid == connection_uid and length == len(frame))


def said_heard(frame: bytes) -> bool | None:
    """Whether the sender of a heartbeat receives ours; None where it does not say."""
    said = frame[_BEAT.size : _BEAT.size + 1]
    return None if said in (b"", b"\0") else said == bytes((Heard.YES,))
