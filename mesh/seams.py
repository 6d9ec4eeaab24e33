"""Where the mesh meets its neighbours: what carries frames, and who uses gossip.

The mesh knows none of them. An overlay (the room `overlay/`) is told about connections and says when one
works; a gossip user (addresses, names) is handed a channel to speak on and is called with what arrives.
All calls are synchronous, made on the event loop's thread, and must not block.
Source: spec of the mesh layer, sections 6, 7 and 11.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mesh.names import PeerName

AttrValue = str | int | bool


class OverlayError(Exception):
    """An overlay cannot serve a connection; the text becomes the connection's error."""


@dataclass(frozen=True, slots=True)
class ConnectionParams:
    """One mesh connection, as an overlay needs to know it.

    `connection_uid` is ConnID XOR ConnID (64 bit, equal on both ends). `session_key` is 32 bytes, or None
    where frames travel in clear (no password, or both ends trust each other). Addresses are (ip text, port)
    of the TCP connection; IPv6 without brackets or scope. `features` is the peer's feature map, unfiltered.
    """

    remote: PeerName
    remote_nickname: str
    connection_uid: int
    session_key: bytes | None
    local_address: tuple[str, int]
    remote_address: tuple[str, int]
    outbound: bool
    features: Mapping[str, str]


class ConnectionEvents(Protocol):
    """What an overlay tells the mesh about one connection. Safe to call at any time, also after stop."""

    def established(self) -> None:
        """The overlay carries frames to this peer. Later calls change nothing."""

    def failed(self, error: Exception) -> None:
        """The overlay is lost for good: the mesh closes the connection with this error."""

    def send_control(self, tag: int, payload: bytes) -> None:
        """Send mesh message `tag` (1, 2, 3 or 7) with `payload` on the TCP connection."""


class OverlayConnection(Protocol):
    """One overlay connection. Order of calls: confirm once, then control messages, then stop once.

    stop may also come without confirm (the connection was refused as a duplicate, for example).
    """

    def confirm(self) -> None:
        """The connection was added to the mesh: start sending."""

    def control_message(self, tag: int, payload: bytes) -> None:
        """Mesh message 1, 2, 3 or 7 arrived; payload is everything behind the tag, unchecked."""

    def stop(self) -> None:
        """The connection is over: release everything."""

    def attrs(self) -> Mapping[str, AttrValue]:
        """For status: `name` of the chosen overlay (or `none`), `mtu`, `encrypted` only when True."""


class Overlay(Protocol):
    """Whatever carries frames between peers."""

    def features(self) -> Mapping[str, str]:
        """Feature keys to announce: `Overlays`, and extensions of our own."""

    def prepare_connection(self, params: ConnectionParams, events: ConnectionEvents) -> OverlayConnection:
        """Make ready for a connection, send nothing yet. Raises OverlayError."""

    def routes_changed(self) -> None:
        """Routes, or the set of known peers, changed; the overlay asks the topology for what it needs."""

    def peer_gone(self, name: PeerName) -> None:
        """A peer was collected: forget what is known about it (its MACs)."""

    def diagnostics(self) -> Mapping[str, object]:
        """The `OverlayDiagnostics` object of the report."""


class Gossiper(Protocol):
    """A user of one gossip channel. An exception derived from GossipError closes the connection at fault."""

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        """A message for us alone, from the peer `sender`."""

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes | None:
        """Merge a broadcast of `source`; return what travels on along its tree, None for nothing."""

    def on_gossip(self, message: bytes) -> bytes | None:
        """Merge periodic or neighbour gossip; return the part that was new to us, None if none was."""

    def gossip(self) -> bytes | None:
        """The whole state, encoded now: for periodic gossip and new neighbours. None if there is none."""


class GossipError(Exception):
    """A gossip message that its channel cannot accept: the connection it came on is closed."""


class Gossip(Protocol):
    """One channel, as its user speaks on it."""

    def unicast(self, destination: PeerName, message: bytes) -> None:
        """Send to one peer, over relays if need be. Raises GossipError where there is no route."""

    def broadcast(self, message: bytes) -> None:
        """Send to every peer along our broadcast tree."""

    def neighbours(self, message: bytes) -> None:
        """Send to a random subset of neighbours, who pass on what is new to them."""
