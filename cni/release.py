"""What ends: DEL, the releases that waited for a router, and GC.

A DEL is written down, answered, and then done: to take an interface away takes the kernel longer than all the rest, and
a router that is killed meanwhile goes on with what was written. The address is given back last, so that nobody else has
it while the interface is there. Source: Kubernetes and CNI spec §1.6, §8; CNI specification 1.1, "GC".
"""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv4Interface
from typing import Protocol, TypeVar

from cni import pod
from cni.config import Network, parse, version_of
from cni.errors import TRY_AGAIN_LATER, CniError
from cni.seams import Addresses
from cni.spool import Spool, name_of
from cni.turns import Turns
from cni.wire import Answer, Request, Role, WireError
from host.pod_port import FIRST_INTERFACE, owner
from ipam.seams import IpamError, Unavailable

# Seconds between two looks at what waits.
_DRAIN = 30.0
# What Weave Net's own configuration is called, and the runtimes' way to name a pod.
_OLD_NETWORK = "weave"
_SANDBOX = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


class Run(Protocol):
    """Something that blocks, in a thread."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


def idents(request: Request) -> tuple[str, ...]:
    """Under which names the addresses of an interface may be held; the first is the one for new ones.

    Weave Net knows a container's id alone; that is still what the first interface has.
    """
    container, interface = request.variable("CONTAINERID"), request.variable("IFNAME")
    own = owner(container, interface)
    if request.role is Role.IPAM:
        return (f"ipam:{own}", own)
    return (own,)


class Releases:
    """Ends what ADD began."""

    def __init__(
        self, bridge: str, addresses: Addresses, spool: Spool, run: Run, turns: Turns, log: logging.Logger
    ) -> None:
        self._bridge = bridge
        self._addresses = addresses
        self._spool = spool
        self._run = run
        self._turns = turns
        self._log = log
        self._under_way: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Bring to an end what was answered already."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    # --- DEL ---

    async def delete(self, request: Request) -> Answer:
        """The answer to DEL; what there is to do may come after it."""
        container, interface = request.variable("CONTAINERID"), request.variable("IFNAME")
        owned = self._addresses.owned()
        later = request.role is Role.NET and (owner(container, interface) in owned or container in owned)
        if later:
            try:
                await self._run(partial(self._spool.keep, request))
            except OSError as error:
                self._log.error("[cni] unable to write down a release, so it is waited for: %s", error)
                later = False
        if not later:
            async with self._turns.of(container):
                return Answer(notes=tuple(await self._release(request, request.namespace)))
        descriptor = None if request.namespace is None else os.dup(request.namespace)
        task = asyncio.get_running_loop().create_task(self._afterwards(request, descriptor))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return Answer(notes=_obstacle(request))

    async def _afterwards(self, request: Request, descriptor: int | None) -> None:
        try:
            async with self._turns.of(request.variable("CONTAINERID")):
                for note in await self._release(request, descriptor):
                    self._log.debug("[cni] %s", note)
        except CniError as error:
            self._log.warning("[cni] %s; it is tried again", error)
        except Exception:
            # The outermost edge of a release; its file waits for another attempt.
            self._log.exception("[cni] unexpected error during a release")
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _release(self, request: Request, descriptor: int | None) -> list[str]:
        """Take interface and address away; what was not there, a note each. Its file, if it has one, goes last.

        Raises CniError where the address cannot be given back now: the file stays for that, or the runtime asks again.
        """
        container, interface = request.variable("CONTAINERID"), request.variable("IFNAME")
        notes, had = list(_obstacle(request)), list[str]()
        if request.role is Role.NET:
            look = partial(pod.disconnect, descriptor, self._bridge_of(request), container, interface)
            had, odd = await self._run(look)
            notes += odd
        owned = self._addresses.owned()
        ident = next((each for each in idents(request) if each in owned), "")
        try:
            if ident:
                await self._addresses.delete(ident)
            elif container in owned:
                # Weave Net keeps the addresses of all interfaces under one name.
                for text in had:
                    await self._addresses.free(container, IPv4Interface(text).ip)
            else:
                notes.append(f"Delete: no addresses for {container}")
        except Unavailable as error:
            text = f"unable to give back the address of {owner(container, interface)}: {error}"
            raise CniError(text, TRY_AGAIN_LATER) from error
        except IpamError as error:
            notes.append(str(error))
        try:
            await self._run(partial(self._spool.remove, name_of(request)))
        except OSError as error:
            self._log.error("[cni] unable to strike out a release: %s", error)
        return notes

    def _bridge_of(self, request: Request) -> str:
        """The bridge by the configuration; a release is also done where that cannot be read."""
        with contextlib.suppress(CniError):
            version, document = version_of(request.configuration)
            return parse(version, document, request.variable("ARGS"), self._bridge).bridge
        return self._bridge

    # --- what waits ---

    async def follow(self) -> None:
        """Work off what waits, now and every half minute, until cancelled."""
        while True:
            await self.drain()
            await asyncio.sleep(_DRAIN)

    async def drain(self) -> None:
        """Do the releases that wait. What cannot be done now is tried again."""
        try:
            names = await self._run(self._spool.waiting)
        except OSError as error:
            self._log.error("[cni] unable to look for releases that wait: %s", error)
            return
        for name in names:
            request = await self._read(name)
            if request is None:
                continue
            try:
                async with self._turns.of(request.variable("CONTAINERID")):
                    await self.do_waiting(name)
            except CniError as error:
                # So it is with the others.
                self._log.warning("[cni] %d releases wait: %s", len(names), error)
                return

    async def do_waiting(self, name: str) -> None:
        """Do a release if it waits; the turn is the caller's. Raises CniError where that cannot be now."""
        request = await self._read(name)
        if request is not None:
            await self._release(request, None)
            self._log.info("[cni] %s was released afterwards", owner_of(request))

    async def _read(self, name: str) -> Request | None:
        try:
            return await self._run(partial(self._spool.read, name))
        except FileNotFoundError:
            return None
        except (OSError, WireError) as error:
            self._log.error("[cni] a release that waited is dropped: %s: %s", name, error)
            with contextlib.suppress(OSError):
                await self._run(partial(self._spool.remove, name))
            return None

    # --- GC ---

    async def collect(self, network: Network) -> None:
        """Release what belongs to this network and to no attachment that the runtime knows. Raises CniError."""
        if network.valid is None:
            raise CniError("cni.dev/valid-attachments is missing: nothing is released")
        ports = await self._run(partial(pod.pods, network.bridge))
        for _, who in ports:
            if who is not None and who.is_of(network.name) and (who.container, who.interface) not in network.valid:
                await self._forget(who.container, who.interface)
        # Those whose port does not say whose it is, and those without any, which no network has any more.
        alive = {container for container, _ in network.valid} | {who.container for _, who in ports if who is not None}
        silent = {link.name for link, who in ports if who is None}
        for ident, held in list(self._addresses.owned().items()):
            container, _, interface = ident.partition("@")
            if not _SANDBOX.fullmatch(container) or held.is_container or container in alive:
                continue
            foreign = pod.old_port(container) in silent and network.name != _OLD_NETWORK
            if not foreign and not self._turns.busy(container):
                await self._forget(container, interface or FIRST_INTERFACE)

    async def _forget(self, container: str, interface: str) -> None:
        variables = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container, "CNI_IFNAME": interface}
        async with self._turns.of(container):
            await self._release(Request(Role.NET, variables, b""), None)
        self._log.info("[cni] released %s of %s, which the runtime does not know", interface, container)


def owner_of(request: Request) -> str:
    """Whose interface a request is about, for people."""
    return owner(request.variable("CONTAINERID"), request.variable("IFNAME"))


def _obstacle(request: Request) -> tuple[str, ...]:
    if not request.obstacle or request.role is Role.IPAM:
        return ()
    return (f'error removing interface "{request.variable("IFNAME")}": {request.obstacle}',)
