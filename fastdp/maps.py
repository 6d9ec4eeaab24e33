"""What the kernel's maps hold, as bytes: the other side of the structures in fastdp.bpf.c, in the same order.

Numbers are in the machine's order. Addresses of hosts are 16 octets: IPv6's, or those of an IPv4
number and zeros.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

NO_SHORT = 0xFFFF
MAX_HOPS = 256
# Links whose traffic is counted apart; that of all others is counted as of link 0.
MAX_LINKS = 512
KEY = struct.Struct("=I")
COUNT = struct.Struct("=Q")
_CONFIG = struct.Struct("=5I12x")
_PEER = struct.Struct("=16s16sIIIBBBxH2x")
_HOST_V4 = struct.Struct("=I12x")
# <linux/bpf.h>: BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, BPF_F_DONT_FRAGMENT.
_IPV6, _NO_CHECKSUM, _NO_FRAGMENTS = 1, 2, 4
_TREE = struct.Struct("=HH")
_ADDRESS = struct.Struct("=QH6x")
_LEARNED = struct.Struct("=6sH")
_TRAFFIC = struct.Struct("=4Q")
_UPCALL = struct.Struct(">B3xI16s")
UPCALL = _UPCALL.size
TRAFFIC_SIZE = _TRAFFIC.size
TREE_SIZE = _TREE.size + 2 * MAX_HOPS

# What is counted, in the order of `enum count`.
COUNTS = (
    "out-unicast", "out-flood", "out-to-sleeve", "in-unicast", "in-flood", "relayed", "flooded-on", "to-daemon",
    "heartbeats", "moved", "new-remote", "new-local", "local", "stp", "malformed", "reflected", "no-route",
    "bad-source", "unknown-peer", "from-ourself", "hairpin", "local-full", "event-lost", "no-key",
    "refused",
)  # fmt: skip
# Those of them that say that a frame was dropped for a reason worth a look.
DROPS = (
    "malformed", "reflected", "no-route", "bad-source", "unknown-peer", "from-ourself", "hairpin", "no-key", "refused",
)  # fmt: skip


class Kind(IntEnum):
    """What carries frames to a peer."""

    NONE = 0
    FAST = 1
    SLEEVE = 2


class Reason(IntEnum):
    """Why a frame came up."""

    HEARTBEAT = 1
    RELAY = 2
    FLOOD_SLEEVE = 3
    FLOOD_ALL = 4


@dataclass(frozen=True, slots=True)
class Config:
    """Our short id, the one of before, and interfaces by index."""

    ourself: int
    former: int
    sleeve: int
    ctl: int
    port: int

    def pack(self) -> bytes:
        return _CONFIG.pack(self.ourself, self.former, self.sleeve, self.ctl, self.port)

    @classmethod
    def unpack(cls, value: bytes) -> "Config":
        return cls(*_CONFIG.unpack(value))


@dataclass(frozen=True, slots=True)
class Route:
    """How a peer is reached: addresses of the next hop and of ours, the VXLAN device's index, its link's counters.

    `direct`: the next hop takes nothing but what we captured for it. `wired`: the index of the transmit device for
    what we captured for this peer, or 0.
    """

    kind: Kind
    hop: bytes = bytes(16)
    local: bytes = bytes(16)
    device: int = 0
    link: int = 0
    direct: bool = False
    wired: int = 0

    def pack(self, *, leaf: bool = False) -> bytes:
        """`leaf`: nobody gets the floods of this peer from us."""
        flags = _NO_FRAGMENTS | (_NO_CHECKSUM if _is_v4(self.hop) else _IPV6)
        return _PEER.pack(self.hop, self.local, self.device, flags, self.wired, self.kind, self.direct, leaf, self.link)

    @classmethod
    def unpack(cls, value: bytes) -> "Route":
        hop, local, device, _, wired, kind, direct, _, link = _PEER.unpack(value)
        return cls(Kind(kind), hop, local, device, link, bool(direct), wired)


NO_ROUTE = Route(Kind.NONE)


@dataclass(frozen=True, slots=True)
class Tree:
    """Next hops of one source's floods, as short ids; `sleeve`: there are others, which the kernel does not serve."""

    hops: tuple[int, ...]
    sleeve: bool

    def pack(self) -> bytes:
        count = len(self.hops)
        return _TREE.pack(count, self.sleeve) + struct.pack(f"={count}H", *self.hops).ljust(2 * MAX_HOPS, b"\0")

    @classmethod
    def unpack(cls, value: bytes) -> "Tree":
        count, sleeve = _TREE.unpack_from(value)
        return cls(struct.unpack_from(f"={count}H", value, _TREE.size), bool(sleeve))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Frames and bytes that went over a link each way."""

    frames_out: int = 0
    bytes_out: int = 0
    frames_in: int = 0
    bytes_in: int = 0

    @classmethod
    def unpack(cls, values: bytes, link: int) -> "Traffic":
        """The sum of what all CPUs counted for a link; `values` holds every CPU's counters of all links."""
        every = range(link * _TRAFFIC.size, len(values), MAX_LINKS * _TRAFFIC.size)
        return cls(*map(sum, zip(*(_TRAFFIC.unpack_from(values, at) for at in every), strict=True)))

    def since(self, before: "Traffic") -> "Traffic":
        return Traffic(
            self.frames_out - before.frames_out,
            self.bytes_out - before.bytes_out,
            self.frames_in - before.frames_in,
            self.bytes_in - before.bytes_in,
        )


def mac_key(mac: bytes) -> bytes:
    return mac + b"\0\0"


def pack_address(seen: float, short: int) -> bytes:
    """`seen` in seconds of the monotonic clock."""
    return _ADDRESS.pack(int(seen * 1e9), short)


def unpack_address(value: bytes) -> tuple[float, int]:
    seen, short = _ADDRESS.unpack(value)
    return seen / 1e9, short


def unpack_learned(value: bytes) -> tuple[bytes, int]:
    """(address, short id of the peer behind it; NO_SHORT for ourself)."""
    mac, short = _LEARNED.unpack(value)
    return mac, short


def host(text: str) -> bytes:
    """A host's address, from text without scope. Raises ValueError."""
    address = ip_address(text)
    return _HOST_V4.pack(int(address)) if isinstance(address, IPv4Address) else address.packed


def host_text(address: bytes) -> str:
    """A host's address for people."""
    return str(IPv4Address(_HOST_V4.unpack(address)[0]) if _is_v4(address) else IPv6Address(address))


def _is_v4(address: bytes) -> bool:
    return not any(address[4:])


def unpack_upcall(data: bytes) -> tuple[int, int, bytes]:
    """(reason, VNI, sender's address) in front of a frame that came up."""
    reason, vni, remote = _UPCALL.unpack_from(data)
    return reason, vni, remote
