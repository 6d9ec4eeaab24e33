"""Everything about the mesh that can be set, and every interval and bound it works with, in one place.

`MeshConfig` is what an operator chooses; `Timing` and `Limits` are the protocol's and our own constants, with the
reason beside each. All times are seconds, all sizes bytes. Source: mesh spec §14, §16, §18.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from mesh.names import PeerName

MIN_PROTOCOL_VERSION = 1
MAX_PROTOCOL_VERSION = 2
DEFAULT_PORT = 6783
DEFAULT_CONNECTION_LIMIT = 200


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """One node's choices. `passwords`: the first seals, all are accepted; never shown in a repr."""

    name: PeerName
    nickname: str
    passwords: tuple[bytes, ...] = field(default=(), repr=False)
    host: str = ""
    port: int = DEFAULT_PORT
    conn_limit: int = DEFAULT_CONNECTION_LIMIT
    min_protocol_version: int = MIN_PROTOCOL_VERSION
    discovery: bool = True
    trusted_subnets: tuple[IPv4Network | IPv6Network, ...] = ()
    mesh_degree: int | None = None

    @property
    def encrypted(self) -> bool:
        """Whether control connections are sealed."""
        return bool(self.passwords)


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals in seconds."""

    heartbeat: float = 30.0
    read_timeout: float = 60.0
    # Each node says once per interval what it knows; from process start, so that a cluster's nodes spread out.
    periodic_gossip: float = 30.0
    # A burst of link changes (a node joining) becomes one announcement.
    announce_delay: float = 1.0
    # Every announcement in the last window beyond the first few adds to the delay: a flapping link costs the
    # whole mesh one update per delay, not one per flap.
    flap_window: float = 60.0
    flap_free: int = 8
    flap_step: float = 0.5
    announce_delay_max: float = 4.0
    # Relays wait this long for company: a starting mesh then sends one message with many entries.
    relay_delay: float = 0.025
    route_delay: float = 0.1
    collect_delay: float = 1.0
    maker_delay: float = 0.1
    # Targets that are due within this time are dialled together.
    maker_pause: float = 0.25
    # An entry asked of one neighbour is not asked of another before this.
    want_timeout: float = 2.0
    # A collected peer's last entry is not learned again from a neighbour that has not collected it yet.
    collected_memory: float = 10.0
    surrogate_memory: float = 30.0
    retry_initial: float = 2.0
    retry_factor: float = 1.5
    retry_max: float = 360.0
    # A connection that lasted this long past its scheduled try counts as good: retry at once when it ends.
    retry_reset: float = 60.0
    # An address that does not answer is asked this often on average, however long it has not: to ask is one small
    # packet, and a peer is to be back within 15 s of whatever cut it off. All of them together are asked once
    # per `retry_spacing` at most. The back-off above decides how often the log speaks of it.
    retry_silent: float = 5.0
    retry_spacing: float = 0.05
    # A refused introduction is reset this much later: the peer must read our last words before the reset.
    parting: float = 0.1
    # A newer version of a known entry is asked for this much later: of a burst only the last one is fetched.
    want_delay: float = 0.15
    # The kernel asks at 0, 1 and 3 s and then not before 7 s: a new attempt asks sooner.
    dial_timeout: float = 5.0
    resolve_timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a peer can make us hold."""

    # Waiting gossip of one channel on one slow connection; beyond it the channel's full state replaces it.
    pending_messages: int = 256
    pending_bytes: int = 8 << 20
    # Unsent bytes of one connection; beyond it the peer counts as lost.
    unsent_bytes: int = 32 << 20
    # A node within a bounded-degree mesh accepts this multiple of its own degree from nodes it already reaches.
    degree_slack: int = 2
    channels: int = 64
    surrogate_messages: int = 4096
    surrogate_bytes: int = 16 << 20
    # Connections that have not said who they are.
    unidentified: int = 256
    # Topologies up to this size are sent whole in periodic gossip; larger ones by changes and a rotating slice.
    whole_topology: int = 32
    rotation: int = 8


TIMING = Timing()
LIMITS = Limits()
