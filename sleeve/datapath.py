"""The data path `sleeve`: one forwarder per connection, above the packet path.

Here is decided which send path a frame takes, what one that does not fit is answered, and where the link's state
machine meets the clock and the log; packing, sealing and sockets lie behind `sleeve.path.PacketPath`.
Source: data plane spec §3.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from mesh.names import PeerName, peer_label
from mesh.seams import AttrValue, ConnectionParams, OverlayError
from overlay.alarm import Alarm
from overlay.frames import ETHERNET_HEADER, frames_of, ipv4_header, is_ipv6, is_special
from overlay.icmp import frag_needed, packet_too_big
from overlay.seams import ForwarderEvents, FrameSink, Topology
from sleeve.datagram import FRAME_OVERHEAD, DatagramError
from sleeve.fragment import fragment
from sleeve.link import Address, SleeveLink
from sleeve.path import Channel, PacketPath
from sleeve.pmtu import PathMtu

_UDP_HEADER = 8
_IPV4_HEADER = 20
_IPV6_HEADER = 40


class SleeveForwarder:
    """Sleeve on one connection (`overlay.seams.Forwarder`, `LinkEffects`, `ChannelEvents`)."""

    def __init__(self, path: "SleeveDataPath", params: ConnectionParams, events: ForwarderEvents) -> None:
        self._path = path
        self._events = events
        self.peer = params.remote
        self._label = peer_label(params.remote, params.remote_nickname)
        self._channel = path.packets.channel(
            params.remote,
            params.session_key,
            outbound=params.outbound,
            local=params.local_address[0],
            events=self,
        )
        headers = (_IPV6_HEADER if ":" in params.remote_address[0] else _IPV4_HEADER) + _UDP_HEADER
        self.mtu = PathMtu(headers + self._channel.overhead + FRAME_OVERHEAD + ETHERNET_HEADER, headers)
        remote = params.remote_address if params.outbound else None
        self.link = SleeveLink(self, params.remote, params.connection_uid, self.mtu, remote)
        if remote is not None:
            self._channel.aim(remote)
        self._alarm = Alarm(path.loop, self.link, self._settle)
        self._stopped = False

    @property
    def channel(self) -> Channel:
        """The link's packets, for a table that leads to them."""
        return self._channel

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of this link's frames and datagrams, by name."""
        return self._channel.counts

    # --- the switch's side ---

    def confirm(self) -> None:
        if self._stopped:
            return
        self._channel.listen()
        self._path.register(self)
        self.link.confirm(self._path.now())
        self._alarm.arm()

    def control_message(self, tag: int, payload: bytes) -> None:
        if self._stopped:
            return
        self.link.control(tag, payload, self._path.now())
        self._settle()

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.link.stop()
        self._alarm.stop()
        self._path.unregister(self)
        self._channel.close()

    def accepts(self, source: PeerName, destination: PeerName) -> bool:
        return True

    @property
    def in_kernel(self) -> bool:
        return False

    @property
    def reason(self) -> str:
        return "" if self.link.established else "no answer to heartbeats yet"

    def attrs(self) -> Mapping[str, AttrValue]:
        attrs: dict[str, AttrValue] = {"name": "sleeve", "mtu": self.mtu.mtu}
        if self._channel.encrypted:
            attrs["encrypted"] = True
        return attrs

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        """Choose the send path of one frame (§3.8)."""
        channel = self._channel
        if self._stopped or self.link.remote is None:
            channel.note("awaiting-contact")
            return
        if is_special(frame):
            # The peer would take it for one of ours.
            channel.note("foreign-special")
            return
        header = ipv4_header(frame)
        mtu = self.mtu.mtu
        fitting = mtu + ETHERNET_HEADER
        fits = len(frame) <= fitting
        if header is None:
            if not fits and not broadcast and is_ipv6(frame):
                for each in frames_of(frame):
                    self._answer(source, destination, packet_too_big(each, mtu) if len(each) > fitting else None)
            channel.send(source, destination, frame, df=False)
        elif header.df:
            for each in (frame,) if fits else frames_of(frame):
                if len(each) <= fitting:
                    channel.send(source, destination, each, df=True)
                elif broadcast:
                    channel.note("too-big-broadcast")
                else:
                    self._answer(source, destination, frag_needed(each, mtu))
        elif self.link.fragments_pass:
            channel.send(source, destination, frame, df=False)
        elif fits:
            channel.send(source, destination, frame, df=True)
        else:
            for each in frames_of(frame):
                for piece in fragment(each, mtu) if len(each) > fitting else (each,):
                    channel.send(source, destination, piece, df=True)

    def _answer(self, source: PeerName, destination: PeerName, answer: bytes | None) -> None:
        """An ICMP error travels as if the frame's destination had sent it."""
        if answer is not None:
            self._channel.note("too-big")
            self._path.sink.received(destination, source, answer)

    # --- the link's effects ---

    def send_special(self, frame: bytes, df: bool) -> None:
        if self.link.remote is not None:
            self._channel.send_alone(self._path.ourself, self.peer, frame, df)

    def send_control(self, tag: int, payload: bytes) -> None:
        self._events.send_control(tag, payload)

    def established(self) -> None:
        self._events.established()

    def failed(self, error: Exception) -> None:
        self._events.failed(error)

    def mtu_verified(self, mtu: int) -> None:
        self._log("Effective MTU verified at %d", mtu)

    def moved(self, remote: Address) -> None:
        self._channel.aim(remote)

    # --- the channel's events ---

    def special(self, source: PeerName, destination: PeerName, frame: bytes, sender: Address) -> None:
        if source != self.peer or destination != self._path.ourself or self._stopped:
            self._channel.note("foreign-special")
            return
        self.link.special(frame, sender, self._path.now())
        self._settle()

    def too_big(self, path_mtu: int) -> None:
        if not self._stopped:
            self.link.too_big(path_mtu, self._path.now())
            self._settle()

    def malformed(self, error: DatagramError, sender: Address, number: int) -> None:
        self._log("%s from %s (%d so far)", error, _address_text(sender), number)

    def trouble(self, reason: str | None) -> None:
        if reason is None:
            self._log("sending works again")
        else:
            self._log("cannot send (%s); still trying", reason.replace("-", " "))

    def _log(self, text: str, *values: object) -> None:
        remote = "<awaiting contact>" if self.link.remote is None else _address_text(self.link.remote)
        self._path.log.info("sleeve ->[%s|%s]: " + text, remote, self._label, *values)

    # --- what follows every event ---

    def _settle(self) -> None:
        self._channel.limit(self.mtu.max_payload, self.mtu.mtu, self.link.fragments_pass)
        self._alarm.arm()


class SleeveDataPath:
    """All sleeve links (`overlay.seams.DataPath`)."""

    name = "sleeve"

    def __init__(
        self, loop: asyncio.AbstractEventLoop, topology: Topology, packets: PacketPath, *, log: logging.Logger
    ) -> None:
        self.loop = loop
        self.ourself = topology.ourself
        self.log = log
        self.packets = packets
        self._sink: FrameSink | None = None
        self._links: dict[PeerName, SleeveForwarder] = {}

    def attach(self, sink: FrameSink) -> None:
        """Say who gets frames that arrive."""
        self._sink = sink
        self.packets.attach(sink)

    @property
    def sink(self) -> FrameSink:
        assert self._sink is not None, "attach comes before the first connection"
        return self._sink

    @property
    def counts(self) -> Counter[str]:
        """What belongs to no link."""
        return self.packets.counts

    def now(self) -> float:
        return self.loop.time()

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> SleeveForwarder:
        address = params.remote_address[0]
        if not self.packets.reaches(address):
            raise OverlayError(f"no UDP socket of ours reaches {address}")
        return SleeveForwarder(self, params, events)

    def diagnostics(self) -> object:
        """Nothing that Weave Net's report had."""
        return None

    def links(self) -> Sequence[SleeveForwarder]:
        """For status: all confirmed links."""
        return list(self._links.values())

    def flush(self) -> None:
        """Send everything that waits: whoever reads frames calls this after each batch."""
        self.packets.flush()

    def close(self) -> None:
        """Close the sockets; links are stopped by their connections."""
        self.packets.close()

    def register(self, forwarder: SleeveForwarder) -> None:
        self._links[forwarder.peer] = forwarder

    def unregister(self, forwarder: SleeveForwarder) -> None:
        if self._links.get(forwarder.peer) is forwarder:
            del self._links[forwarder.peer]


def _address_text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
