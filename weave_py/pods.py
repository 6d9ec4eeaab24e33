"""Pods: the CNI plugin's side in the router, on the unix socket that the control API has as well.

Here it meets the rest: addresses come from the ring, and a pod's way out is this host's own address on the bridge,
which is exposed when the first pod asks for it. Source: Kubernetes and CNI spec §1.5, §2, §8.
"""

import asyncio
import contextlib
import logging
import os
import socket
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from aiohttp import web

from cni.errors import TRY_AGAIN_LATER, CniError
from cni.seams import Policy
from cni.server import CniServer
from cni.service import CniService
from cni.spool import DIRECTORY, Spool
from host.containers import EXPOSED
from host.expose import on_bridge
from ipam.seams import IpamError
from ipam.service import Ipam
from weave_py import http
from weave_py.exposure import ExposeError, Exposure

# Seconds that the host's own address may take.
_ADDRESS_LIMIT = 60.0


class Pods:
    """Serves `path`. State is kept beside the router's own, at `store`."""

    def __init__(
        self,
        path: str,
        store: str,
        bridge: str,
        ipam: Ipam | None,
        exposure: Exposure,
        log: logging.Logger,
        policy: Policy | None = None,
    ) -> None:
        self._path = path
        self._bridge = bridge
        self._ipam = ipam
        self._exposure = exposure
        self._log = log
        self._one = asyncio.Lock()
        spool = Spool(Path(os.path.abspath(store)).parent / DIRECTORY)
        self._service = CniService(bridge, ipam, self._gateway, spool, log, policy)
        self._server: CniServer | None = None
        self._runner: web.AppRunner | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self, application: web.Application) -> None:
        """Listen, for the plugin and for the control API. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._runner = http.runner_of(application)
        await self._runner.setup()
        listener = http.unix_listener(self._path)
        self._server = CniServer(listener, self._service.answer, self._hand_on, self._log)
        self._server.start()
        self._following = loop.create_task(self._service.follow())

    async def stop(self) -> None:
        """Take no more calls, and bring to an end what was answered already."""
        if self._following is not None:
            self._following.cancel()
        if self._server is not None:
            await self._server.stop()
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        await self._service.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    def report(self) -> dict[str, Any]:
        """The report's object `CNI`: where it is asked, and what, by verb and outcome."""
        calls: dict[str, dict[str, int]] = {}
        for (verb, outcome), count in self._service.calls.items():
            calls.setdefault(verb, {})[outcome] = count
        return {"Socket": self._path, "Calls": calls}

    async def _hand_on(self, connection: socket.socket) -> None:
        assert self._runner is not None and self._runner.server is not None, "set up before anybody is listened to"
        await asyncio.get_running_loop().connect_accepted_socket(self._runner.server, connection)

    async def _gateway(self, bridge: str, network: IPv4Network) -> IPv4Address:
        """Where this host is reached from a pod: an address in the pod's network before any other. Raises CniError."""
        if bridge != self._bridge:
            found = await asyncio.to_thread(on_bridge, bridge)
            return _nearest(found, network, bridge)
        async with self._one:
            exposed = tuple(IPv4Interface(row["Address"]) for row in self._exposure.report()["Addresses"])
            return _nearest(exposed or (await self._expose(),), network, bridge)

    async def _expose(self) -> IPv4Interface:
        assert self._ipam is not None, "without addresses there is no pod"
        try:
            cidrs = self._ipam.lookup(EXPOSED)
            cidr = cidrs[0] if cidrs else await self._ipam.allocate(EXPOSED, timeout=_ADDRESS_LIMIT)
            await self._exposure.expose(str(cidr), masquerade=True)
        except IpamError as error:
            raise CniError(f"unable to allocate IP address for bridge: {error}", TRY_AGAIN_LATER) from error
        except ExposeError as error:
            raise CniError(str(error)) from error
        return IPv4Interface(str(cidr))


def _nearest(addresses: tuple[IPv4Interface, ...], network: IPv4Network, bridge: str) -> IPv4Address:
    inside = [each.ip for each in addresses if each.ip in network]
    if not addresses:
        raise CniError(f'bridge "{bridge}" has no address to be the gateway: give it one, or set ipam.gateway')
    return inside[0] if inside else addresses[0].ip
