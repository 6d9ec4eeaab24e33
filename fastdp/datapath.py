"""The data path `fastdp`: one forwarder per connection, above the kernel's programs.

The kernel carries frames by the table; here are heartbeats, what comes up for a decision, and the few frames that do
not come from the bridge of this host. Source: data plane spec §4.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastdp.forwarder import DIRECT_FEATURE, HEALTH, HEALTH_FEATURE, FastForwarder, is_ours, port_of
from fastdp.ipsec import Ipsec, IpsecError, Pair, Security, Session
from fastdp.kernel import Kernel, KernelError
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
from fastdp.wire import DEFAULT_MTU, ends, vni
from fastdp.wires import Transmitters, Wires
from mesh.names import PeerName
from mesh.seams import ConnectionParams, OverlayError
from overlay.seams import Forwarder, ForwarderEvents, KernelSink, Topology

_LEARN_INTERVAL = 0.25
_BATCH = 64
_MAX_FRAME = 65536 + 64


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
        return {HEALTH_FEATURE: HEALTH}

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
