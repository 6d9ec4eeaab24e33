"""The router process: what is made in which order, and how it ends.

Bridge and TAP first (they need no event loop), then sleeve's sockets, the mesh, and the control API last: its first
answer means "ready". Nothing that a killed router leaves behind stops the next start. Source: CLI spec §4.
"""

import asyncio
import contextlib
import errno
import faulthandler
import logging
import os
import random
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop
from aiohttp import web

from fastdp.datapath import FastDataPath
from fastdp.direct import DirectDataPath
from host.errors import HostError
from host.tap import TAP_NAME
from ipam.seams import IpamError
from ipam.service import CHANNEL as IPAM_CHANNEL
from mesh.config import MeshConfig
from mesh.names import PeerName, peer_label
from mesh.tcp import MeshService, split_peer
from overlay.forwarding import FrameRouter
from overlay.seams import DataPath, ForwardingTable
from overlay.switch import OverlaySwitch
from overlay.table import TableWriter, TwoTables
from sleeve.choice import packet_path
from sleeve.datapath import SleeveDataPath
from sleeve.path import Port
from weave_py import (
    __version__,
    http,
    http_addresses,
    http_expose,
    http_names,
    http_ready,
    metrics,
    report,
    router_report,
    systemd,
    takeover,
)
from weave_py.agreement import Digest
from weave_py.agreement_gossip import AgreementGossip
from weave_py.begin import choose_name, choose_peers, leave_former_range, open_store
from weave_py.exposure import Exposure, find_docker, plan_of
from weave_py.log import options_line
from weave_py.pods import Pods
from weave_py.policy_controller import PolicyController
from weave_py.ports import Ports, prepare
from weave_py.readiness import Readiness
from weave_py.services import ServiceError, Services
from weave_py.settings import Settings
from weave_py.store import Store, StoreError

_EXPIRY_INTERVAL = 60.0
_RESOLVE_AGAIN, _RESOLVE_AT_LEAST = 5.0, 60.0


class StartError(Exception):
    """The router cannot start: one line for a person."""


@dataclass(slots=True)
class _Parts:
    """What runs, for the control API and for the end."""

    service: MeshService
    sleeve: SleeveDataPath
    fast: FastDataPath | DirectDataPath | None
    frames: FrameRouter
    tap: Port
    agreement: AgreementGossip
    services: Services


class Daemon:
    """The assembled router (`weave_py.http.Control`)."""

    def __init__(
        self,
        settings: Settings,
        log: logging.Logger,
        peers: Sequence[str],
        store: Store,
        beside: "Beside | None" = None,
    ) -> None:
        self._store = store
        self._beside = beside
        self._settings = settings
        self._log = log
        self._parts: _Parts | None = None
        self._runners: list[web.AppRunner] = []
        self._pods: Pods | None = None
        self.exposure = Exposure(plan_of(settings), store, log, lambda: find_docker(settings))
        self._stop = asyncio.Event()
        self._unresolved: list[str] = list(peers)

    @property
    def parts(self) -> _Parts:
        assert self._parts is not None, "the daemon was not started"
        return self._parts

    # --- life ---

    async def run(self, name: PeerName, ports: Ports) -> None:
        """Start, say so, and go on until told to stop. Raises StartError."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGQUIT, _dump_tasks, loop)
        # This one also speaks while the loop is stuck, and hands on to the one above.
        faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)
        tasks: list[asyncio.Task[None]] = []
        try:
            self._assemble(loop, name, ports)
            await self._start()
            self._mark(running=True)
            # Names are resolved once the router answers: a slow resolver delays nobody.
            work = (self._expire_addresses(), self._connect_given(), self.exposure.watch(), systemd.show_life(),
                    takeover.follow(self._settings, self._log))  # fmt: skip
            tasks = [loop.create_task(one) for one in (*work, self.parts.services.follow())]
            if self._beside is not None:
                tasks.append(asyncio.ensure_future(self._beside(self)))
            systemd.notify(systemd.READY)
            await self._stop.wait()
            self._log.info("=== received SIGINT/SIGTERM ===\n*** exiting")
            systemd.notify(systemd.STOPPING)
            self._mark(running=False)
        finally:
            for task in tasks:
                task.cancel()
            await self._close()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The outermost edge of a callback: a fault of ours must not end the router."""
        self._log.error("unexpected error: %s", context.get("message"), exc_info=context.get("exception"))

    def _assemble(self, loop: asyncio.AbstractEventLoop, name: PeerName, ports: Ports) -> None:
        settings, log = self._settings, self._log
        config = MeshConfig(
            name=name,
            nickname=settings.nickname,
            passwords=settings.passwords,
            host=settings.host,
            port=settings.port,
            conn_limit=settings.conn_limit,
            min_protocol_version=settings.min_protocol_version,
            discovery=settings.discovery,
            trusted_subnets=settings.trusted_subnets,
            mesh_degree=settings.mesh_degree,
        )
        uid = secrets.randbits(64) or 1
        rng = random.Random(secrets.randbits(256))
        service = MeshService(config, uid=uid, rng=rng, log=log, short_id=ports.former)
        try:
            packets = packet_path(loop, name, settings.host, settings.port, log)
        except OSError as error:
            raise _address_error("udp", settings, error) from error
        except ValueError as error:
            raise StartError(str(error)) from error
        sleeve = SleeveDataPath(loop, service.router, packets, log=log)
        fast = ports.fast_path(loop, service.router, settings.port, log)
        frames, port = self._frames(loop, service, sleeve, fast, ports, packets.port(ports.tap))
        services = self._services(service, name, uid)
        readers = {"topology": ("topology", self._theirs), IPAM_CHANNEL: ("ring", services.neighbour_ring)}
        agreement = AgreementGossip(hold=self._holding, peers=self._others, uid=uid, readers=readers)
        self.ready = http_ready.Ready(Readiness(settings.ready_patience), service.status, self._has_ring)
        self._parts = _Parts(service, sleeve, fast, frames, port, agreement, services)

    def _frames(
        self,
        loop: asyncio.AbstractEventLoop,
        service: MeshService,
        sleeve: SleeveDataPath,
        fast: FastDataPath | DirectDataPath | None,
        ports: Ports,
        port: Port,
    ) -> tuple[FrameRouter, Port]:
        """What carries frames, put together: the switch, the tables that it writes, the frame router."""
        settings, log = self._settings, self._log
        paths: list[DataPath] = [sleeve] if fast is None else [fast, sleeve]
        extra = {} if fast is None else fast.features()
        switch = OverlaySwitch(
            paths, log=log, peer_gone=self._peer_gone, extra_features=extra, lacks="" if fast else ports.lacks
        )
        # To show every packet is to see it here, but for those that the kernel carries.
        table: ForwardingTable | None = None if settings.packet_debug else sleeve.packets.table
        if fast is not None:
            table = fast.table if table is None else TwoTables(fast.table, table, service.router.ourself)
        writer = None
        if table is not None:
            writer = TableWriter(service.router, switch.link, table, loop.call_soon)
            switch.changed = writer.request
        frames = FrameRouter(
            service.router,
            port,
            switch.link,
            clock=loop.time,
            log=log,
            packet_debug=settings.packet_debug,
            writer=writer,
            in_kernel=(lambda source, hop: False) if fast is None else fast.in_kernel,
        )
        sleeve.attach(frames)
        service.attach_overlay(switch)
        if fast is not None and writer is not None:
            fast.attach(frames)
            writer.flooded(service.router.ourself)
            writer.request()
        port.start(frames.captured, sleeve.flush)
        return frames, port

    def _services(self, service: MeshService, name: PeerName, uid: int) -> Services:
        try:
            return Services(
                self._settings,
                self._store,
                self.exposure,
                service,
                name,
                uid=uid,
                unresolved=lambda: len(self._unresolved),
                log=self._log,
            )
        except IpamError as error:
            raise StartError(str(error)) from error

    def _peer_gone(self, name: PeerName) -> None:
        self.parts.frames.macs.forget_peer(name)
        self.parts.services.peer_gone(name)

    def _has_ring(self) -> bool:
        ipam = self.parts.services.ipam
        return ipam is None or ipam.ready

    async def _start(self) -> None:
        settings, parts = self._settings, self.parts
        await self.exposure.start()
        try:
            await parts.services.start()
        except ServiceError as error:
            raise StartError(str(error)) from error
        try:
            await parts.service.start()
        except OSError as error:
            raise _address_error("tcp", settings, error) from error
        parts.service.router.listen(parts.agreement.neighbour_said)
        parts.agreement.start(parts.service.channel(AgreementGossip.CHANNEL, parts.agreement))
        self._log.info("Sniffing traffic on %s (via tap)", TAP_NAME)
        api = http.Api(self, self._log)
        address = settings.http_address
        await self._listen(address, self._control_application(api), "HTTP control messages")
        if address and not http.is_local(address):
            self._log.warning("whoever reaches %s controls this router: it asks for no password", address)
        if settings.socket_path:
            await self._listen_for_pods(settings.socket_path, self._control_application(api))
        await self._listen(settings.status_address, api.application(read_only=True), "status+metrics requests")
        await self._listen(settings.metrics_address, api.metrics_only(), "metrics requests")

    def _control_application(self, api: http.Api) -> web.Application:
        application = api.application(read_only=False)
        http_expose.add_routes(application, self.exposure)
        services = self.parts.services
        if services.ipam is not None:
            tracker = "no-masq-local" if self._settings.no_masq_local else ""
            http_addresses.add_routes(application, services.ipam, tracker, services.rejoin)
        else:
            http_addresses.add_routes_without_allocation(application)
        if services.names is not None:
            http_names.add_routes(application, services.names)
        http_ready.add_routes(application, self.ready)
        return application

    async def _listen(self, address: str, application: web.Application, what: str) -> None:
        """Serve, where an address is given. Raises StartError."""
        if not address:
            return
        try:
            self._runners.append(await http.listen(application, address))
        except (OSError, ValueError) as error:
            raise StartError(f"unable to listen for {what} on {address}: {error}") from error
        self._log.info("Listening for %s on %s", what, address)

    async def _listen_for_pods(self, path: str, application: web.Application) -> None:
        """The CNI plugin's socket, which has the control API as well. Raises StartError."""
        ipam, bridge = self.parts.services.ipam, self._settings.bridge
        policy = PolicyController() if self._settings.expect_npc else None
        self._pods = Pods(path, self._store.path, bridge, ipam, self.exposure, self._log, policy)
        try:
            await self._pods.start(application)
        except OSError as error:
            raise StartError(f"unable to listen for HTTP control messages on {path}: {error}") from error
        self._log.info("Listening for HTTP control messages and CNI on %s", path)

    async def _connect_given(self) -> None:
        """Make the given peers targets; a name that cannot be resolved yet (the host just booted) is tried again."""
        self._remember()
        delay = _RESOLVE_AGAIN
        while self._unresolved:
            tried = list(self._unresolved)
            results = await asyncio.gather(*(self.parts.service.connect([peer]) for peer in tried))
            for peer, errors in zip(tried, results, strict=True):
                for line in errors:
                    self._log.error("%s; trying again in %.0f s", line, delay)
                if not errors and peer in self._unresolved:
                    self._unresolved.remove(peer)
            await asyncio.sleep(delay if self._unresolved else 0)
            delay = min(2 * delay, _RESOLVE_AT_LEAST)

    async def _expire_addresses(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_INTERVAL)
            self.parts.frames.macs.expire(asyncio.get_running_loop().time())

    async def _close(self) -> None:
        if self._pods is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pods.stop(), 5)
        for runner in self._runners:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(runner.cleanup(), 2)
        if self._parts is not None:
            self._parts.agreement.stop()
            await self._parts.services.stop()
            await self._parts.service.stop()
            self._parts.sleeve.close()
            if self._parts.fast is not None:
                self._parts.fast.close()
            self._parts.tap.close()

    # --- control ---

    def report(self) -> report.Document:
        """Everything the router knows of itself."""
        parts = self.parts
        status = parts.service.status()
        fields = router_report.fields(parts.service, parts.frames, parts.sleeve, parts.fast)
        document = report.build(status, fields, __version__)
        router_report.add_counters(document["Router"]["Connections"], status, parts.sleeve, parts.fast)
        more = {"Exposure": self.exposure.report(), "Agreement": parts.agreement.document(), "State": self._state()}
        pods = {} if self._pods is None else {"CNI": self._pods.report()}
        return {**document, **parts.services.report(), **more, **pods}

    def metrics(self) -> bytes:
        return metrics.text(self.report, *self.parts.services.figures())

    def _state(self) -> dict[str, Any]:
        """What became of what was stored."""
        store = self._store
        return {
            "Path": os.path.abspath(store.path),
            "Imported": store.imported,
            "Lost": store.lost,
            "WeaveNetWrote": store.weave_net_wrote,
        }

    def _holding(self) -> dict[str, Digest]:
        """What all peers should hold alike."""
        topology = self.parts.service.topology
        return {"topology": Digest(topology.digest, len(topology)), **self.parts.services.holding()}

    def _theirs(self, message: bytes) -> Digest | None:
        """What a neighbour holds that tells us of everybody."""
        topology = self.parts.service.topology
        matches = topology.matches(message)
        value = topology.digest if matches else ~topology.digest & 0xFFFFFFFFFFFFFFFF
        return None if matches is None else Digest(value, len(topology))

    def _others(self) -> list[tuple[PeerName, str]]:
        topology = self.parts.service.topology
        return [(name, topology.nickname(name)) for name in topology.names() if name != topology.ourself.name]

    async def connect(self, peers: list[str], replace: bool) -> list[str]:
        if replace:
            self._unresolved.clear()
        errors = await self.parts.service.connect(peers, replace)
        self._remember()
        return errors

    def forget(self, peers: list[str]) -> None:
        self._unresolved = [peer for peer in self._unresolved if peer not in peers]
        self.parts.service.forget(peers)
        self._remember()

    def _mark(self, *, running: bool) -> None:
        """Set the restart marker, or take it away: only a router that was killed goes on with its stored list."""
        try:
            self._store.set_running(running)
        except StoreError as error:
            self._log.error("%s; the restart marker is as it was", error)

    def _remember(self) -> None:
        """Store the list for `--resume`; that it cannot be stored is said, and costs nothing else."""
        peers = dict.fromkeys([*self.parts.service.router.maker.targets, *self._unresolved])
        try:
            self._store.set_direct_peers(list(peers))
        except StoreError as error:
            self._log.error("%s; this list of peers is not stored", error)


# What somebody else does with a router that runs, until it is cancelled at the end.
Beside = Callable[[Daemon], Awaitable[None]]


def _address_error(protocol: str, settings: Settings, error: OSError) -> StartError:
    reason = (error.strerror or str(error)).lower()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host or "0.0.0.0"
    if error.errno == errno.EADDRINUSE:
        reason += "; is another router running here? Stop it, or choose another --port"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason += "; --host is an address of this host"
    return StartError(f"listen {protocol} {host}:{settings.port}: bind: {reason}")


def _dump_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """What every task waits for, on stderr; the threads' stacks stand before it."""
    for task in asyncio.all_tasks(loop):
        task.print_stack(file=sys.stderr)


def run(settings: Settings, log: logging.Logger, beside: Beside | None = None, store: Store | None = None) -> int:
    """The whole life of a router, with what is to go on beside it; returns its exit code.

    `store`: its state, if somebody opened that already. The outermost edge: nothing is raised.
    """
    log.info("%s", options_line(dict(settings.given)))
    log.info("weave  %s", __version__)
    for peer in settings.peers:
        problem = split_peer(peer)
        if isinstance(problem, str):
            log.critical("%s", problem)
            return 1
    try:
        store = store or open_store(settings, log)
        name = choose_name(settings, store, log)
        leave_former_range(settings, store, log)
        ports = _prepare_host(settings, name, log)
        log.info("Our name is %s", peer_label(name, settings.nickname))
        if settings.missing:
            log.warning("not available in this version, going on without: %s", ", ".join(settings.missing))
        peers = choose_peers(settings, store, log)
    except (HostError, StoreError) as error:
        log.critical("%s", error)
        return 1
    try:
        uvloop.run(_main(Daemon(settings, log, peers, store, beside), name, ports))
    except StartError as error:
        log.critical("%s", error)
        return 1
    except Exception:
        log.critical("unexpected error", exc_info=True)
        return 1
    return 0


async def _main(daemon: Daemon, name: PeerName, ports: Ports) -> None:
    await daemon.run(name, ports)
    # Everything is closed. A name look-up may be under way in a thread that cannot be cancelled: to leave in order
    # would be to wait for it, for as long as the resolver is silent.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


def _prepare_host(settings: Settings, name: PeerName, log: logging.Logger) -> Ports:
    ports = prepare(settings, name, log)
    log.info("Bridge type is bridge")
    if settings.passwords:
        log.info("Communication between peers via untrusted networks is encrypted.")
    else:
        log.info("Communication between peers is unencrypted.")
    return ports
