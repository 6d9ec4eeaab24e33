"""The fast data path on one connection: heartbeats and their state machine, and frames that no bridge gave the kernel.

Source: data plane spec §4.3, §4.4.
"""

import asyncio
import contextlib
import errno
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Protocol

from fastdp import udp
from fastdp.esp import BodyError, overhead
from fastdp.ipsec import IpsecError, Session
from fastdp.kernel import KernelError
from fastdp.link import FastLink
from fastdp.maps import Route, Traffic, host_text
from fastdp.wire import Cause, Control, heartbeat, packet
from fastdp.wires import Wire
from mesh.names import PeerName, peer_label
from mesh.seams import AttrValue, ConnectionParams, OverlayError
from overlay.alarm import Alarm
from overlay.seams import ForwarderEvents

HEALTH_FEATURE = "FastdpHealth"
# A peer that announces this takes nothing from a neighbour but what that one captured for it.
DIRECT_FEATURE = "FastdpDirect"
HEALTH = "1"


class LinkPath(Protocol):
    """What a link needs of its data path."""

    ourself: PeerName
    loop: asyncio.AbstractEventLoop
    log: logging.Logger
    mtu: int

    def now(self) -> float: ...

    def short(self, name: PeerName) -> int | None: ...

    def port_of(self, params: ConnectionParams) -> int: ...

    def carries(self, link: "FastForwarder", source: PeerName, destination: PeerName) -> bool:
        """Whether what a peer captured may go over a link, towards another."""

    def register(self, forwarder: "FastForwarder") -> int:
        """A link begins; the number of its counters. Raises KernelError."""

    def unregister(self, forwarder: "FastForwarder") -> None: ...

    def traffic(self, link: int) -> Traffic:
        """What the kernel counted under a number."""


class FastForwarder:
    """The fast data path on one connection (`overlay.seams.Forwarder`, `LinkEffects`); `esp` where it is encrypted."""

    in_kernel = True

    def __init__(
        self,
        path: LinkPath,
        params: ConnectionParams,
        events: ForwarderEvents,
        route: Route,
        esp: Session | None = None,
    ) -> None:
        self._path = path
        self._events = events
        self.peer = params.remote
        self.route = route
        self.port = port = path.port_of(params)
        self._v6 = ":" in params.remote_address[0]
        self._target = f"[{params.remote_address[0]}]:{port}" if self._v6 else f"{params.remote_address[0]}:{port}"
        self._label = peer_label(params.remote, params.remote_nickname)
        self._uid = params.connection_uid
        self.esp = esp
        self._more = 0 if esp is None else overhead(path.mtu)
        added = None if esp is None else self._more
        self.link = FastLink(
            self, params.connection_uid, path.mtu, ours=is_ours(params), port=port, v6=self._v6, esp=added
        )
        self.counts: Counter[str] = Counter()
        self._before = Traffic()
        self._socket = udp.connected(params.local_address[0], params.remote_address[0], port)
        self._alarm = Alarm(path.loop, self.link)
        self._stopped = False

    # --- the switch's side ---

    def confirm(self) -> None:
        if self._stopped or self.link.confirmed:
            return
        try:
            key = None if self.esp is None else self.esp.open()
            self.route = replace(self.route, link=self._path.register(self))
        except (KernelError, IpsecError) as error:
            self._events.failed(OverlayError(str(error)))
            return
        self._before = self._path.traffic(self.route.link)
        self.link.confirm(self._path.now())
        if key is not None:
            self._events.send_control(Control.INIT_SA_REMOTE, key)
        self._alarm.arm()

    def control_message(self, tag: int, payload: bytes) -> None:
        if self._stopped:
            return
        if tag == Control.INIT_SA_REMOTE:
            self._accept_key(payload)
        else:
            self.link.control(tag, payload, self._path.now())
        self._alarm.arm()

    def _accept_key(self, payload: bytes) -> None:
        if self.esp is None:
            return
        try:
            self.esp.accept(payload)
        except (BodyError, IpsecError) as error:
            self._events.failed(OverlayError(str(error)))
        else:
            self.link.keyed(self._path.now())

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.link.stop()
        self._alarm.stop()
        self._socket.close()
        if self.link.confirmed:
            self._path.unregister(self)
        if self.esp is not None:
            self.esp.close()

    def accepts(self, source: PeerName, destination: PeerName) -> bool:
        known = self._path.short(source) is not None and self._path.short(destination) is not None
        return known and self._path.carries(self, source, destination)

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        """Carry a frame that did not come by way of the kernel."""
        origin, target = self._path.short(source), self._path.short(destination)
        if self._stopped or origin is None or target is None:
            self.counts["no-short-id"] += 1
        elif self._send(packet(origin, target, frame)) is None:
            self.counts["frames-out"] += 1
            self.counts["bytes-out"] += len(frame)
        else:
            self.counts["over-path-mtu"] += 1

    def wire(self, number: int) -> Wire | None:
        """What a transmit device for this link would be, for a network identifier; None where it cannot have one."""
        if self._v6 or self.esp is not None:
            return None
        return Wire(host_text(self.route.local), host_text(self.route.hop), self.port, number)

    def attrs(self) -> Mapping[str, AttrValue]:
        attrs: dict[str, AttrValue] = {"name": "fastdp", "mtu": self._path.mtu}
        return attrs if self.esp is None else {**attrs, "encrypted": True}

    @property
    def reason(self) -> str:
        return self.link.trouble

    def traffic(self) -> Counter[str]:
        """Frames and their bytes since the link began, and what went wrong. Links to one address count together."""
        carried = self._path.traffic(self.route.link).since(self._before)
        return self.counts + Counter({name.replace("_", "-"): number for name, number in asdict(carried).items()})

    def bar(self, cause: Cause) -> None:
        """It must not be used, or may be again."""
        self.link.bar(cause)

    # --- the link's effects ---

    def beat(self, heard: bool | None) -> int | None:
        ourself, peer = self._path.short(self._path.ourself), self._path.short(self.peer)
        if ourself is None or peer is None:
            self.counts["no-short-id"] += 1
            return None
        return self._send(packet(ourself, peer, heartbeat(self._uid, self._path.mtu, heard)))

    def send_control(self, tag: int, payload: bytes) -> None:
        self._events.send_control(tag, payload)

    def established(self) -> None:
        self._events.established()

    def healthy(self, health: bool) -> None:
        if health:
            self._log("works again")
        else:
            self._log("on hold: %s", self.link.trouble)
        self._events.healthy(health)

    def fits_again(self) -> None:
        """The kernel remembers a small path MTU for ten minutes, and would go on dropping large frames by it."""
        if self._path_mtu() < self.link.needs:
            with contextlib.suppress(OSError):
                udp.FLUSH[self._v6].write_text("1")

    def renew_key(self) -> None:
        if self.esp is None:
            return
        try:
            self._events.send_control(Control.INIT_SA_REMOTE, self.esp.renew())
        except IpsecError as error:
            self._log("%s", error)

    def heard(self, frame: bytes) -> bool:
        """A special frame of the peer; whether it was a heartbeat of ours."""
        valid = not self._stopped and self.link.heartbeat(frame, self._path.now())
        self._alarm.arm()
        return valid

    # --- the socket ---

    def _send(self, data: bytes) -> int | None:
        """The path MTU where it is too small for that, else None. What else went wrong is counted."""
        for attempt in range(2):
            try:
                self._socket.send(data)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return self._path_mtu()
                # The first error may be one that an earlier packet brought back.
                if attempt:
                    self.counts[errno.errorcode.get(error.errno or 0, "send-error")] += 1
            else:
                break
        return None

    def _path_mtu(self) -> int:
        """In octets of IP packet; what the kernel says leaves out what ESP adds."""
        return udp.path_mtu(self._socket) + self._more

    def _log(self, text: str, *values: object) -> None:
        self._path.log.info("fastdp ->[%s|%s]: " + text, self._target, self._label, *values)


def is_ours(params: ConnectionParams) -> bool:
    """Whether the peer is of our kind."""
    return params.features.get(HEALTH_FEATURE) == HEALTH


def port_of(params: ConnectionParams, own: int) -> int:
    """The UDP port of a connection: the mesh port of whoever accepted it, and one; `own` is ours."""
    return (params.remote_address[1] if params.outbound else own) + 1
