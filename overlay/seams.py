"""Where the overlay meets its data paths (sleeve, fastdp), the mesh's routes and the local bridge.

Three directions: the switch asks a data path for a forwarder per connection; a data path hands frames to the
frame router; the frame router asks the topology where they go and forwarders to carry them.
Source: spec of the data plane, sections 2 and 6.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from mesh.names import PeerName
from mesh.seams import AttrValue, ConnectionParams


class Topology(Protocol):
    """What forwarding needs to know of the mesh. Answers are dictionary look-ups, cheap enough per frame."""

    @property
    def ourself(self) -> PeerName: ...

    def knows(self, name: PeerName) -> bool:
        """Whether the peer is in the topology (frames of unknown peers are dropped)."""

    def unicast(self, destination: PeerName) -> PeerName | None:
        """Next hop to a peer over links established on both sides; None if there is no route."""

    def names(self) -> Iterable[PeerName]:
        """All known peers, ourself included."""

    def broadcast(self, source: PeerName) -> Sequence[PeerName]:
        """Our next hops in the broadcast tree of `source`."""

    def nickname(self, name: PeerName) -> str:
        """For log lines and status; empty if unknown."""

    def short_id(self, name: PeerName) -> int | None:
        """The peer's short id, None if it has none."""


class ForwarderEvents(Protocol):
    """What a forwarder tells the switch. Safe to call at any time, also after stop."""

    def established(self) -> None: ...

    def failed(self, error: Exception) -> None:
        """Dead for good on this connection."""

    def healthy(self, health: bool) -> None:
        """False puts the forwarder on hold, True takes it off (fastdp only)."""

    def send_control(self, tag: int, payload: bytes) -> None:
        """Send the private control message `tag` to the same forwarder of the peer."""


class Forwarder(Protocol):
    """One data path's side of one connection."""

    def confirm(self) -> None: ...

    def control_message(self, tag: int, payload: bytes) -> None:
        """A private control message of the peer's forwarder; unchecked bytes, unknown tags are ignored."""

    def stop(self) -> None: ...

    def accepts(self, source: PeerName, destination: PeerName) -> bool:
        """Whether a frame between these two peers can be carried (fastdp needs short ids)."""

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        """Carry a frame captured at `source`, or a `Run`, on its way to `destination` over this link. Never raises."""

    def attrs(self) -> Mapping[str, AttrValue]:
        """`name`, `mtu`, `encrypted` only when True; further keys may follow."""

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel serves this link what it floods, from the local bridge and from its own links."""

    @property
    def reason(self) -> str:
        """Why it carries nothing now, for a person; empty if it may."""


class DataPath(Protocol):
    """A way of carrying frames: `sleeve` or `fastdp`."""

    @property
    def name(self) -> str:
        """As announced in the feature `Overlays`."""

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> Forwarder:
        """A forwarder for a connection; sends nothing before confirm. Raises mesh.seams.OverlayError."""

    def diagnostics(self) -> object:
        """For the report; None if there is nothing to say."""


class FrameSink(Protocol):
    """The frame router, as data paths and the capture device call it."""

    def captured(self, frame: bytes) -> None:
        """A frame, or a `Run` of them, came from the local bridge."""

    def received(self, source: PeerName, destination: PeerName, frame: bytes) -> None:
        """A frame, or a `Run`, came from a link: captured at `source`, on its way to `destination`."""


class KernelSink(FrameSink, Protocol):
    """The frame router, as the kernel's data path calls it."""

    def learned(self, mac: bytes, peer: PeerName) -> None:
        """The kernel saw a frame with this source, which it had not known there: at a peer, ourself included."""

    def forget(self, peer: PeerName) -> None:
        """The kernel carries a peer's frames by itself from now on, and says nothing of addresses behind it."""

    def flooded(self, source: PeerName, frame: bytes, *, served: bool) -> None:
        """A frame of `source` is on the bridge and goes on to next hops; `served`: the kernel's own have got it."""


class Bridge(Protocol):
    """The local bridge, as the frame router sees it: the TAP port."""

    def inject(self, frame: bytes) -> None:
        """Put a frame, or a `Run`, on the bridge. Never raises, never blocks: a full queue drops and counts."""


class ForwardingTable(Protocol):
    """Decisions of ours, written where frames are forwarded without us. What it does not hold comes up to us."""

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        """Behind which peer an address is, ourself included; None: forgotten."""

    def seen(self, mac: bytes) -> float:
        """When a frame from this address was last forwarded, in the clock's seconds; 0 for never."""

    def routes(self, hops: Sequence[tuple[PeerName, Forwarder | None]]) -> None:
        """All known peers and what carries frames to each, None where we must be asked. Replaces everything."""

    def flood(self, source: PeerName, hops: Sequence[Forwarder] | None) -> None:
        """What carries on the floods of `source`; None where we must be asked. Lost with the next `routes`."""
