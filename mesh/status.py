"""What the mesh says about itself: the rows behind `/status`, `/report` and `weave status`.

Plain records with the field's own names; texts and JSON are made of them in `weave_py/`.
Source: spec of the mesh layer, section 15.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.names import PeerName
from mesh.seams import AttrValue


@dataclass(frozen=True, slots=True)
class PeerLinkRow:
    """One connection in a peer's own list."""

    name: PeerName
    nickname: str
    address: str
    outbound: bool
    established: bool


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One peer of the topology, ourselves included."""

    name: PeerName
    nickname: str
    uid: int
    short_id: int
    version: int
    connections: tuple[PeerLinkRow, ...]


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """One connection of ours, or one target that is not connected.

    `state`: established, pending, connecting, retrying, failed, waiting. `attrs` and `peer` are None for targets.
    `bytes_in` and `bytes_out` are those of the TCP connection.
    """

    address: str
    outbound: bool
    state: str
    info: str
    attrs: Mapping[str, AttrValue] | None
    peer: PeerName | None = None
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The mesh's part of a report; all orders are stable (ourselves first, then by name or address)."""

    protocol_min_version: int
    protocol_max_version: int
    encryption: bool
    peer_discovery: bool
    name: PeerName
    nickname: str
    port: int
    peers: tuple[PeerRow, ...]
    unicast_routes: tuple[tuple[PeerName, PeerName], ...]
    broadcast_routes: tuple[tuple[PeerName, tuple[PeerName, ...]], ...]
    connections: tuple[ConnectionRow, ...]
    termination_count: int
    targets: tuple[str, ...]
    overlay_diagnostics: Mapping[str, object]
    trusted_subnets: tuple[str, ...]
