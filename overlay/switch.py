"""The switch: for every connection, which of the common data paths carries its frames.

All common data paths run in parallel for the life of a connection; the most preferred one that works is used, and
the choice is made again whenever one of them says something. Their numbers in control messages are positions in
the list of common ones, in our own order of preference: `fastdp` before `sleeve`, always, because that is what
2.8 assumes. Source: data plane spec §2.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mesh.names import PeerName, peer_label
from mesh.seams import AttrValue, ConnectionEvents, ConnectionParams, OverlayError
from overlay.seams import DataPath, Forwarder

OVERLAYS_FEATURE = "Overlays"
CONTROL_TAG = 7
LEGACY_TAGS = (1, 2, 3)
_MAX_FORWARDERS = 256


@dataclass(slots=True)
class Slot:
    """One data path's state on one connection."""

    name: str
    forwarder: Forwarder | None
    established: bool = False
    on_hold: bool = False
    # Why it was given up, for a person.
    problem: str = ""

    @property
    def usable(self) -> bool:
        return self.forwarder is not None and not self.on_hold


def common_overlays(ours: Sequence[str], feature: str) -> list[str]:
    """Names that both have, in our order. Raises OverlayError if there is none."""
    theirs = set(feature.split(" ")) - {""}
    common = [name for name in ours if name in theirs][:_MAX_FORWARDERS]
    if not common:
        raise OverlayError("no overlays in common with peer")
    return common


def choose_best(slots: Sequence[Slot]) -> int | None:
    """The slot to use: the first that is established, else the first that is alive; None if none is left."""
    for index, slot in enumerate(slots):
        if slot.usable and slot.established:
            return index
    for index, slot in enumerate(slots):
        if slot.usable:
            return index
    return None


class _SlotEvents:
    """One slot, as its forwarder reports on it (`overlay.seams.ForwarderEvents`)."""

    __slots__ = ("_connection", "_index")

    def __init__(self, connection: "SwitchConnection", index: int) -> None:
        self._connection = connection
        self._index = index

    def established(self) -> None:
        self._connection.slot_established(self._index)

    def failed(self, error: Exception) -> None:
        self._connection.slot_failed(self._index, error)

    def healthy(self, health: bool) -> None:
        self._connection.slot_healthy(self._index, health)

    def send_control(self, tag: int, payload: bytes) -> None:
        self._connection.send_control(self._index, tag, payload)


class SwitchConnection:
    """One connection's data paths (`mesh.seams.OverlayConnection`)."""

    def __init__(self, switch: "OverlaySwitch", params: ConnectionParams, events: ConnectionEvents) -> None:
        self._switch = switch
        self._events = events
        self.remote = params.remote
        self.label = peer_label(params.remote, params.remote_nickname)
        self._legacy = OVERLAYS_FEATURE not in params.features
        self._stopped = False
        self._confirmed = False
        self._best: int | None = None
        self._said: str | None = None
        names = ["sleeve"] if self._legacy else common_overlays(switch.names, params.features[OVERLAYS_FEATURE])
        self.slots: list[Slot] = [Slot(name, None) for name in names]
        for index, name in enumerate(names):
            try:
                self.slots[index].forwarder = switch.path(name).prepare(params, _SlotEvents(self, index))
            except OverlayError as error:
                self.slots[index].problem = str(error)
                switch.log.info("overlay_switch ->[%s] %s %s", self.label, name, error)
        if all(slot.forwarder is None for slot in self.slots):
            raise OverlayError(f"no working forwarders to {self.label}")
        self._best = choose_best(self.slots)

    @property
    def forwarder(self) -> Forwarder | None:
        """What carries its frames now, if anything; it may still decline some."""
        return None if self._best is None else self.slots[self._best].forwarder

    # --- the mesh's side ---

    def confirm(self) -> None:
        if self._stopped:
            return
        self._confirmed = True
        self._switch.register(self)
        for slot in self.slots:
            if slot.forwarder is not None:
                slot.forwarder.confirm()

    def control_message(self, tag: int, payload: bytes) -> None:
        if self._stopped or not self._confirmed:
            return
        if self._legacy:
            if tag in LEGACY_TAGS and self.slots[0].forwarder is not None:
                self.slots[0].forwarder.control_message(tag, payload)
            return
        # Anything malformed is ignored: a peer's mistake costs nobody anything here.
        if tag != CONTROL_TAG or len(payload) < 2 or payload[0] >= len(self.slots):
            return
        forwarder = self.slots[payload[0]].forwarder
        if forwarder is not None:
            forwarder.control_message(payload[1], payload[2:])

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._switch.unregister(self)
        for slot in self.slots:
            if slot.forwarder is not None:
                slot.forwarder.stop()
                slot.forwarder = None

    def attrs(self) -> Mapping[str, AttrValue]:
        forwarder = self.forwarder
        attrs = {"name": "none"} if forwarder is None else dict(forwarder.attrs())
        reason = self._reason()
        return {**attrs, "reason": reason} if reason else attrs

    def _reason(self) -> str:
        """Why the most preferred of our data paths does not carry this connection's frames; empty if it does."""
        if self._switch.lacks:
            return self._switch.lacks
        wanted = self._switch.names[0]
        slot = next((slot for slot in self.slots if slot.name == wanted), None)
        if slot is None:
            return f"the peer does not speak {wanted}"
        if slot.forwarder is self.forwarder and slot.forwarder is not None:
            return ""
        reason = slot.problem if slot.forwarder is None else slot.forwarder.reason
        return f"no {wanted}: {reason}" if reason else ""

    # --- the forwarders' side ---

    def slot_established(self, index: int) -> None:
        slot = self.slots[index]
        if self._stopped or slot.forwarder is None:
            return
        slot.established = True
        self._choose()
        self._events.established()

    def slot_failed(self, index: int, error: Exception) -> None:
        slot = self.slots[index]
        if self._stopped or slot.forwarder is None:
            return
        self._switch.log.info("overlay_switch ->[%s] %s %s", self.label, slot.name, error)
        forwarder, slot.forwarder = slot.forwarder, None
        slot.problem = str(error)
        forwarder.stop()
        self._choose()

    def slot_healthy(self, index: int, health: bool) -> None:
        if not self._stopped and self.slots[index].on_hold == health:
            self.slots[index].on_hold = not health
            self._choose()

    def send_control(self, index: int, tag: int, payload: bytes) -> None:
        """A private control message, in the envelope that this peer understands."""
        if self._stopped:
            return
        if self._legacy:
            self._events.send_control(tag, payload)
        else:
            self._events.send_control(CONTROL_TAG, bytes((index, tag)) + payload)

    def _choose(self) -> None:
        best = choose_best(self.slots)
        if best is None:
            self._best = None
            self._switch.changed()
            self._events.failed(OverlayError(f"no working forwarders to {self.label}"))
            return
        if best != self._best:
            self._best = best
            self._switch.changed()
        slot = self.slots[best]
        if slot.established and slot.name != self._said:
            self._said = slot.name
            self._switch.log.info("overlay_switch ->[%s] using %s", self.label, slot.name)

    # --- the frame router's side ---

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        """Carry a frame on the chosen data path, or the next less preferred one that can take it."""
        if self._best is None:
            return
        for slot in self.slots[self._best :]:
            if slot.forwarder is not None and slot.forwarder.accepts(source, destination):
                slot.forwarder.send(source, destination, frame, broadcast)
                return


class OverlaySwitch:
    """All connections' data paths (`mesh.seams.Overlay`); `paths` in order of preference.

    `lacks` says which other one there should be, and why it is not there; empty if nothing is amiss.
    """

    def __init__(
        self,
        paths: Sequence[DataPath],
        *,
        log: logging.Logger,
        peer_gone: Callable[[PeerName], None],
        extra_features: Mapping[str, str] | None = None,
        lacks: str = "",
    ) -> None:
        self.log = log
        self._paths = {path.name: path for path in paths}
        self._peer_gone = peer_gone
        self.lacks = lacks
        self._extra_features = dict(extra_features or {})
        self._connections: dict[PeerName, SwitchConnection] = {}
        # Called whenever a frame may have to go another way than before.
        self.changed: Callable[[], None] = lambda: None

    @property
    def names(self) -> list[str]:
        return list(self._paths)

    def path(self, name: str) -> DataPath:
        """A data path by name. Raises OverlayError where we have none of that name."""
        if name not in self._paths:
            raise OverlayError(f"this node carries no frames over {name}")
        return self._paths[name]

    def features(self) -> Mapping[str, str]:
        return {OVERLAYS_FEATURE: " ".join(self._paths), **self._extra_features}

    def prepare_connection(self, params: ConnectionParams, events: ConnectionEvents) -> SwitchConnection:
        return SwitchConnection(self, params, events)

    def routes_changed(self) -> None:
        self.changed()

    def peer_gone(self, name: PeerName) -> None:
        self._peer_gone(name)

    def diagnostics(self) -> Mapping[str, object]:
        return {name: path.diagnostics() for name, path in self._paths.items()}

    def register(self, connection: SwitchConnection) -> None:
        """A confirmed connection takes its peer's place; an older one to the same peer is on its way out."""
        self._connections[connection.remote] = connection
        self.changed()

    def unregister(self, connection: SwitchConnection) -> None:
        if self._connections.get(connection.remote) is connection:
            del self._connections[connection.remote]
            self.changed()

    def link(self, hop: PeerName) -> SwitchConnection | None:
        """The connection to a neighbour."""
        return self._connections.get(hop)
