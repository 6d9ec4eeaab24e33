"""The data path `fastdp`: one forwarder per connection, above the kernel's programs.

The kernel carries frames by the table; here are heartbeats, what comes up for a decision, and the few frames that do
not come from the bridge of this host. Source: data plane spec §4.
"""

import asyncio
import contextlib
import errno
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from fastdp import udp
from fastdp.esp import BodyError, overhead
from fastdp.ipsec import Ipsec, IpsecError, Pair, Security, Session
from fastdp.kernel import Kernel, KernelError
from fastdp.link import FastLink
from fastdp.maps import (
    MAX_HOPS,
    NO_SHORT,
    UPCALL,
    Kind,
    Reason,
    Route,
    Traffic,
    host,
    host_text,
    unpack_address,
    unpack_upcall,
)
from fastdp.table import KernelTable
from fastdp.wire import DEFAULT_MTU, Cause, Control, ends, heartbeat, packet, vni
from fastdp.wires import Transmitters, Wire, Wires
from mesh.names import PeerName, peer_label
from mesh.seams import AttrValue, ConnectionParams, OverlayError
from overlay.seams import Forwarder, ForwarderEvents, KernelSink, Topology

HEALTH_FEATURE = "FastdpHealth"
# A peer that announces this takes nothing from a neighbour but what that one captured for it.
DIRECT_FEATURE = "FastdpDirect"
_HEALTH = "1"
_LEARN_INTERVAL = 0.25
_BATCH = 64
_MAX_FRAME = 65536 + 64


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
        self._timer: asyncio.TimerHandle | None = None
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
        self._rearm()

    def control_message(self, tag: int, payload: bytes) -> None:
        if self._stopped:
            return
        if tag == Control.INIT_SA_REMOTE:
            self._accept_key(payload)
        else:
            self.link.control(tag, payload, self._path.now())
        self._rearm()

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
        self._rearm()
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
        self._rearm()
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

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.link.next_timer()
        if at is not None and not self._stopped:
            self._timer = self._path.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        # Timers of an event loop may fire a clock tick early: the link must see its time as come.
        self.link.tick(max(self._path.now(), self.link.next_timer() or 0.0))
        self._rearm()


def is_ours(params: ConnectionParams) -> bool:
    """Whether the peer is of our kind."""
    return params.features.get(HEALTH_FEATURE) == _HEALTH


def port_of(params: ConnectionParams, own: int) -> int:
    """The UDP port of a connection: the mesh port of whoever accepted it, and one; `own` is ours."""
    return (params.remote_address[1] if params.outbound else own) + 1


class FastDataPath:
    """All fast links (`overlay.seams.DataPath`). `port` is our mesh port; `mtu` of the bridge, in octets.

    `security` says which of them are to be encrypted, and whether the kernel can.
    """

    name = "fastdp"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        topology: Topology,
        kernel: Kernel,
        *,
        port: int,
        mtu: int = DEFAULT_MTU,
        security: Security,
        log: logging.Logger,
        transmitters: Transmitters,
    ) -> None:
        self.loop = loop
        self.ourself = topology.ourself
        self.kernel = kernel
        self.log = log
        self.mtu = mtu
        self._port = port
        self._links: dict[PeerName, FastForwarder] = {}
        self._sink: KernelSink | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lost = 0
        self.counts: Counter[str] = Counter()
        self.ipsec, self._no_ipsec = self._begin_ipsec(security)
        self.wires = Wires(loop, transmitters, kernel.seal, self._rewire, log)
        self.table = KernelTable(
            kernel.maps,
            topology,
            _neighbour,
            clock=loop.time,
            later=loop.call_later,
            keep=lambda hop: not security.wanted or self._may_serve(host_text(hop), security),
            wired=self._wired,
            wires=self.wires.indices,
        )
        self.table.start(kernel.sleeve, kernel.ctl_index, kernel.port)

    def _begin_ipsec(self, security: Security) -> tuple[Ipsec | None, str]:
        """What encrypts, or why nothing does."""
        if not security.wanted or security.problem:
            return None, security.problem
        try:
            served = [host_text(address) for address in self.kernel.maps["sources"].all_keys()]
            return Ipsec(served, self.loop.call_later, self.log), ""
        except IpsecError as error:
            self.log.warning("encrypted links are carried over sleeve only: %s", error)
            return None, str(error)

    def _may_serve(self, remote: str, security: Security) -> bool:
        """Whether the kernel may go on with what an earlier router did for this host."""
        return security.trusted(remote) or (self.ipsec is not None and self.ipsec.protects(remote))

    def _wired(self, forwarder: Forwarder, number: int) -> int:
        """The transmit device of a link, for a network identifier; 0 where it has none."""
        wire = forwarder.wire(number) if isinstance(forwarder, FastForwarder) else None
        return 0 if wire is None else self.wires.index(wire)

    def _rewire(self) -> None:
        self.table.rewire()

    def _follow_wires(self) -> None:
        """Every neighbour on a fast link in clear is to have a transmit device."""
        ourself = self.short(self.ourself)
        ends = ((ourself, self.short(link.peer), link) for link in self._links.values() if link.link.established)
        wanted = (link.wire(vni(one, other)) for one, other, link in ends if one is not None and other is not None)
        self.wires.follow([wire for wire in wanted if wire is not None], self.table.wires_used())

    def attach(self, sink: KernelSink) -> None:
        """Say who gets what comes up, and begin to listen."""
        self._sink = sink
        self.loop.add_reader(self.kernel.ctl, self._readable)
        self._lost = self.kernel.counts()["event-lost"]
        self._learn()

    def features(self) -> Mapping[str, str]:
        """What we announce of our own."""
        return {HEALTH_FEATURE: _HEALTH}

    def now(self) -> float:
        return self.loop.time()

    def short(self, name: PeerName) -> int | None:
        """The short id by which a peer is addressed; None where it has none of its own."""
        return self.table.short(name)

    def in_kernel(self, source: PeerName, hop: PeerName) -> bool:
        """Whether the kernel gives this neighbour the floods of a source."""
        return self.table.serves(source, hop)

    def port_of(self, params: ConnectionParams) -> int:
        return port_of(params, self._port)

    def carries(self, link: FastForwarder, source: PeerName, destination: PeerName) -> bool:
        return not link.route.direct or (source == self.ourself and destination == link.peer)

    def traffic(self, link: int) -> Traffic:
        return self.kernel.traffic(link)

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> FastForwarder:
        local, remote = params.local_address[0], params.remote_address[0]
        if ":" in remote and not is_ours(params):
            raise OverlayError("the underlay is IPv6")
        if params.session_key is not None and self.ipsec is None:
            raise OverlayError(f"encrypted without ESP: {self._no_ipsec}")
        if len(self._links) >= MAX_HOPS:
            raise OverlayError(f"{MAX_HOPS} links are carried by the kernel already")
        try:
            device = self.kernel.device(self.port_of(params))
            direct = params.features.get(DIRECT_FEATURE) == "1"
            route = Route(Kind.FAST, host(remote), host(local), device, direct=direct)
            return FastForwarder(self, params, events, route, self._session(params))
        except (KernelError, IpsecError, OSError, ValueError) as error:
            raise OverlayError(str(error)) from error

    def _session(self, params: ConnectionParams) -> Session | None:
        """What encrypts a connection; None where it is in clear. Raises IpsecError."""
        port = self.port_of(params)
        if self.ipsec is not None:
            self.ipsec.listen(port)
        if self.ipsec is None or params.session_key is None:
            return None
        pair = Pair(params.local_address[0], params.remote_address[0], port)
        return self.ipsec.session(pair, params.session_key, self.ourself, params.remote)

    def diagnostics(self) -> object:
        """Weave Net's report had its datapath's ports and flows here; the report's `Fastdp` has ours."""
        return None

    def links(self) -> Sequence[FastForwarder]:
        """For status: all confirmed links."""
        return list(self._links.values())

    def register(self, forwarder: FastForwarder) -> int:
        """A link begins; the number of its counters in the kernel."""
        self._links[forwarder.peer] = forwarder
        return self.table.admit(forwarder.route.hop)

    def unregister(self, forwarder: FastForwarder) -> None:
        if self._links.get(forwarder.peer) is forwarder:
            del self._links[forwarder.peer]
        self.table.leave(forwarder.route.hop)

    def close(self) -> None:
        """Leave the kernel forwarding."""
        if self._timer is not None:
            self._timer.cancel()
        self.loop.remove_reader(self.kernel.ctl)
        self.wires.close()
        self.kernel.close()

    # --- what comes up ---

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                data = os.read(self.kernel.ctl, _MAX_FRAME)
            except OSError:
                return
            if len(data) > UPCALL:
                self._came_up(data)

    def _came_up(self, data: bytes) -> None:
        assert self._sink is not None, "attach comes before the first packet"
        reason, vni, remote = unpack_upcall(data)
        frame = data[UPCALL:]
        source, destination = (self.table.owners.get(short) for short in ends(vni))
        if source is None:
            self.counts["unknown-peer"] += 1
        elif reason == Reason.HEARTBEAT:
            link = self._links.get(source)
            if link is None or link.route.hop != remote or not link.heard(frame):
                self.counts["foreign-heartbeat"] += 1
        elif reason == Reason.RELAY and destination is not None:
            self._sink.received(source, destination, frame)
        elif reason in (Reason.FLOOD_SLEEVE, Reason.FLOOD_ALL):
            self._sink.flooded(source, frame, served=reason == Reason.FLOOD_SLEEVE)

    def _learn(self) -> None:
        """Follow what the kernel learned; where it could not say all, look at everything."""
        self._timer = self.loop.call_later(_LEARN_INTERVAL, self._learn)
        for port in self.kernel.lost():
            self._renew(port)
        self._follow_wires()
        for mac, short in self.kernel.learned():
            self._learned(mac, short)
        lost = self.kernel.counts()["event-lost"]
        if lost != self._lost:
            self._lost = lost
            for name in ("locals", "remotes"):
                for key in self.kernel.maps[name].all_keys():
                    value = self.kernel.maps[name].get(key)
                    if value is not None:
                        self._learned(key[:6], unpack_address(value)[1])

    def _renew(self, port: int) -> None:
        """Make a device again that somebody removed."""
        try:
            device, index = self.kernel.renew(port)
        except KernelError as error:
            self.counts["device-error"] += 1
            if self.counts["device-error"] == 1:
                self.log.error("the VXLAN device of UDP port %d is gone, and cannot be made again: %s", port, error)
            return
        self.log.warning("the VXLAN device of UDP port %d was gone, and is made again", port)
        for link in self._links.values():
            if link.route.device == device:
                link.route = replace(link.route, device=index)
        self.table.start(self.kernel.sleeve, self.kernel.ctl_index, self.kernel.port)
        self.table.moved(device, index)

    def _learned(self, mac: bytes, short: int) -> None:
        assert self._sink is not None, "called after attach"
        peer = self.ourself if short == NO_SHORT else self.table.owners.get(short)
        if peer is not None:
            self._sink.learned(mac, peer)


def _neighbour(forwarder: Forwarder) -> tuple[PeerName, Route] | None:
    return (forwarder.peer, forwarder.route) if isinstance(forwarder, FastForwarder) else None
