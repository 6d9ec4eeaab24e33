"""Where frames go: the decision for every frame from the local bridge and from a link.

One MAC table decides for all overlay ports, so no frame is delivered twice. Floods follow the broadcast tree of
the peer where the frame was captured; the topology is the same everywhere, so every peer gets one copy.
Source: data plane spec §6.2, §6.3.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from mesh.names import PeerName, format_peer_name, peer_label
from overlay.frames import ETHERNET_HEADER, frames_of, is_special
from overlay.mac import Learned, MacTable
from overlay.seams import Bridge, Topology
from overlay.table import TableWriter

_STP = b"\x01\x80\xc2\x00\x00\x00"
_GROUP = 0x01


class LinkSender(Protocol):
    """A working link to a neighbour."""

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None: ...


class _LineBudget:
    """How many lines one kind of event may log: a burst, then a trickle. Forged addresses fill no disk."""

    def __init__(self, burst: float = 100.0, per_second: float = 1.0) -> None:
        self._burst = self._left = burst
        self._per_second = per_second
        self._since = 0.0

    def take(self, now: float) -> bool:
        """Whether one more line may be written at `now`."""
        self._left = min(self._burst, self._left + (now - self._since) * self._per_second)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class FrameRouter:
    """The frame router of one node (`overlay.seams.FrameSink`). `clock` gives monotonic seconds; frames may be runs.

    `writer` keeps a table in step by which most frames are forwarded without coming here. `in_kernel` says of a
    source and a neighbour whether the kernel itself gives one the other's floods.
    """

    def __init__(
        self,
        topology: Topology,
        bridge: Bridge,
        link: Callable[[PeerName], LinkSender | None],
        *,
        clock: Callable[[], float],
        log: logging.Logger,
        packet_debug: bool = False,
        writer: TableWriter | None = None,
        in_kernel: Callable[[PeerName, PeerName], bool] = lambda source, hop: False,
    ) -> None:
        self._topology = topology
        self._ourself = topology.ourself
        self._bridge = bridge
        self._link = link
        self._clock = clock
        self._log = log
        self._packet_debug = packet_debug
        self._writer = writer
        self._in_kernel = in_kernel
        if writer is None:
            self.macs = MacTable(self._ourself)
        else:
            self.macs = MacTable(self._ourself, changed=writer.table.address, seen=writer.table.seen)
        self.counts: Counter[str] = Counter()
        self._discoveries = _LineBudget()
        self._refusals = _LineBudget(burst=10.0, per_second=0.1)

    def captured(self, frame: bytes) -> None:
        """A frame from the local bridge."""
        if len(frame) < ETHERNET_HEADER or is_special(frame):
            self.counts["malformed"] += 1
            return
        source, destination = frame[6:12], frame[:6]
        if not source[0] & _GROUP:
            now = self._clock()
            learned = self.macs.learn_local(source, now)
            if learned is Learned.REFUSED:
                self._refuse(source, destination, now)
                return
            if learned is not Learned.KNOWN:
                self._discovered(learned)
                if self._discoveries.take(now):
                    self._log.debug("Discovered local MAC %s", source.hex(":"))
        if destination[0] & _GROUP:
            if destination == _STP:
                self.counts["stp"] += 1
                return
            self._flood(self._ourself, frame, served=True)
            return
        owner = self.macs.owner(destination)
        if owner is None:
            self._flood(self._ourself, frame, served=True)
        elif owner == self._ourself:
            self.counts["local"] += 1
        else:
            self._relay(self._ourself, owner, frame)

    def received(self, source: PeerName, destination: PeerName, frame: bytes) -> None:
        """A frame from a link, captured at `source`, on its way to `destination`."""
        if len(frame) < ETHERNET_HEADER or is_special(frame):
            self.counts["malformed"] += 1
            return
        if not self._topology.knows(source) or not self._topology.knows(destination):
            self.counts["unknown-peer"] += 1
            return
        if source == self._ourself:
            self.counts["from-ourself"] += 1
            if self.counts["from-ourself"] == 1:
                self._log.warning("frames that we captured come back to us; a peer relays them wrongly")
        if destination != self._ourself:
            self._relay(source, destination, frame)
            return
        self._learn_remote(frame[6:12], source)
        self._bridge.inject(frame)
        self.counts["injected"] += len(frames_of(frame))
        target = frame[:6]
        if target[0] & _GROUP or self.macs.owner(target) != self._ourself:
            self._flood(source, frame)

    def learned(self, mac: bytes, peer: PeerName) -> None:
        """The kernel met an address at a peer, ourself included."""
        if peer != self._ourself:
            self._learn_remote(mac, peer)
        elif not mac[0] & _GROUP:
            learned = self.macs.learn_local(mac, self._clock())
            if learned in (Learned.NEW, Learned.MOVED):
                self._discovered(learned)

    def forget(self, peer: PeerName) -> None:
        """Addresses behind a peer are known elsewhere from now on."""
        self.macs.forget_peer(peer)

    def flooded(self, source: PeerName, frame: bytes, *, served: bool) -> None:
        """A frame that the kernel put on the bridge goes on to next hops, but not to those that it served."""
        if not self._topology.knows(source):
            self.counts["unknown-peer"] += 1
        else:
            self._flood(source, frame, served=served)

    def _learn_remote(self, mac: bytes, peer: PeerName) -> None:
        if mac[0] & _GROUP or peer == self._ourself:
            return
        now = self._clock()
        learned = self.macs.learn_remote(mac, peer, now)
        if learned is not Learned.KNOWN:
            self._discovered(learned)
            if self._discoveries.take(now):
                label = peer_label(peer, self._topology.nickname(peer))
                self._log.info("Discovered remote MAC %s at %s", mac.hex(":"), label)

    def _discovered(self, learned: Learned) -> None:
        self.counts["mac-moved" if learned is Learned.MOVED else "mac-new"] += 1
        if self.macs.evicted:
            self.counts["mac-evicted"] = self.macs.evicted

    def _refuse(self, source: bytes, destination: bytes, now: float) -> None:
        self.counts["reflected"] += 1
        if self._refusals.take(now):
            owner = self.macs.owner(source)
            self._log.error(
                "Captured frame from MAC (%s) to (%s) associated with another peer %s",
                source.hex(":"),
                destination.hex(":"),
                "" if owner is None else format_peer_name(owner),
            )

    def _relay(self, source: PeerName, destination: PeerName, frame: bytes) -> None:
        hop = self._topology.unicast(destination)
        link = self._link(hop) if hop is not None else None
        if link is None:
            self.counts["no-route"] += 1
            return
        self._debug("relay", source, destination, frame)
        link.send(source, destination, frame, broadcast=False)

    def _flood(self, source: PeerName, frame: bytes, *, served: bool = False) -> None:
        if self._writer is not None:
            self._writer.flooded(source)
        for hop in self._topology.broadcast(source):
            if served and self._in_kernel(source, hop):
                continue
            link = self._link(hop)
            if link is None:
                self.counts["no-route"] += 1
            else:
                self._debug("flood", source, hop, frame)
                link.send(source, hop, frame, broadcast=True)

    def _debug(self, what: str, source: PeerName, destination: PeerName, frame: bytes) -> None:
        if self._packet_debug:
            ends = f"{format_peer_name(source)} -> {format_peer_name(destination)}"
            macs = f"{frame[6:12].hex(':')} -> {frame[:6].hex(':')}"
            self._log.debug("%s %s: %s, %d bytes", what, ends, macs, len(frame))
