"""What the router does when a runtime calls the plugin: VERSION is the courier's, all other verbs are answered here.

One container at a time: what comes for it waits for what is under way. An ADD that fails leaves nothing, nor does one
whose caller is gone. Source: Kubernetes and CNI spec §1, §8; CNI specification 1.1.
"""

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TypeVar

from cni import pod
from cni.check import check_addresses, check_interface
from cni.config import Network, RouteWish, cni_arguments, parse, version_of
from cni.errors import NOT_AVAILABLE, TRY_AGAIN_LATER, CniError
from cni.release import Releases, idents
from cni.result import Result, render, render_error
from cni.seams import Addresses, Gateway, Policy
from cni.spool import Spool, name_of
from cni.turns import Turns
from cni.wire import Answer, Request, Role
from host.pod_port import PodPort
from host.routes import Route
from ipam.seams import Cidr, IpamError, Unavailable

_THREADS = 8
# Seconds that an address may take; the courier waits for longer.
_ADDRESS_LIMIT = 90.0
_EVERYWHERE = IPv4Network("0.0.0.0/0")
_REQUIRED = {"ADD": ("NETNS", "IFNAME", "PATH"), "DEL": ("IFNAME", "PATH"), "CHECK": ("NETNS", "IFNAME", "PATH")}
_VERBS = frozenset(("ADD", "DEL", "CHECK", "STATUS", "GC"))
_INTERFACE = re.compile(r"[^\s/:%@]{1,15}")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NO_ADDRESSES = "addresses are not allocated: the router was started without --ipalloc-range"
T = TypeVar("T")


class CniService:
    """The answers. `addresses` is None where none are given out; `policy` is waited for where there is one.

    `calls` counts by verb and outcome (`ok`, `failed`).
    """

    def __init__(
        self,
        bridge: str,
        addresses: Addresses | None,
        gateway: Gateway,
        spool: Spool,
        log: logging.Logger,
        policy: Policy | None = None,
    ) -> None:
        self._bridge = bridge
        self._addresses = addresses
        self._gateway = gateway
        self._spool = spool
        self._log = log
        self._policy = policy
        self._workers = ThreadPoolExecutor(_THREADS, "cni")
        self._turns = Turns()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._releases = None if addresses is None else Releases(bridge, addresses, spool, self._run, self._turns, log)

    # --- life ---

    async def follow(self) -> None:
        """Work off the releases that wait, until cancelled."""
        if self._releases is not None:
            await self._releases.follow()

    async def stop(self) -> None:
        """Bring to an end what was answered already."""
        if self._releases is not None:
            await self._releases.stop()
        self._workers.shutdown(wait=False)

    # --- calls ---

    async def answer(self, request: Request) -> Answer:
        """The answer to one call; the descriptor stays the caller's. Nothing is raised."""
        answer = await self._answer(request)
        command = request.variable("COMMAND")
        self.calls[command if command in _VERBS else "other", "failed" if answer.status else "ok"] += 1
        return answer

    async def _answer(self, request: Request) -> Answer:
        version, notes = "", _missing(request)
        try:
            if notes:
                raise CniError("required env variables missing")
            _check_names(request)
            version, document = version_of(request.configuration)
            network = parse(version, document, request.variable("ARGS"), self._bridge)
            return await self._do(request, network)
        except CniError as error:
            return Answer(render_error(version, error), notes, 1)
        except Exception:
            # The outermost edge of a call: a fault of ours must not end the router.
            self._log.exception("[cni] unexpected error during %s", request.variable("COMMAND"))
            return Answer(render_error(version, CniError("internal error; the router's log has it")), (), 1)

    async def _do(self, request: Request, network: Network) -> Answer:
        command = request.variable("COMMAND")
        if command == "ADD":
            async with self._turns.of(request.variable("CONTAINERID")):
                return Answer(render(network.version, await self._add(request, network)))
        if command == "STATUS":
            self._status()
            return Answer()
        if self._releases is None:
            raise CniError(_NO_ADDRESSES)
        if command == "DEL":
            answer = await self._releases.delete(request)
            if self._policy is not None:
                await self._policy.gone(_pod(request))
            return answer
        if command == "CHECK":
            await self._check(request, network)
        elif command == "GC" and request.role is Role.NET:
            await self._releases.collect(network)
        elif command != "GC":
            raise CniError(f"unknown CNI_COMMAND: {command}")
        return Answer()

    # --- ADD ---

    async def _add(self, request: Request, network: Network) -> Result:
        if not request.variable("CONTAINERID"):
            raise CniError("unable to allocate IP address: Weave CNI Allocate: blank container name")
        if self._addresses is None or self._releases is None:
            raise CniError(_NO_ADDRESSES)
        addresses = self._addresses
        if request.role is Role.NET:
            if network.delegate:
                text = f'ipam type "{network.delegate}" is not supported: the router gives addresses itself; '
                raise CniError(f'{text}leave ipam.type out, or say "weave-ipam"')
            await self._run(partial(pod.check_place, _namespace(request), network.bridge))
        # The release of the very same interface comes first.
        await self._releases.do_waiting(name_of(request))
        before = addresses.owned()
        ident = next((each for each in idents(request) if each in before), idents(request)[0])
        had = before[ident].cidrs if ident in before else ()
        cidr = await self._address(addresses, ident, network)
        try:
            return await self._finish(request, network, cidr)
        except BaseException:
            if cidr.addr not in {held.addr for held in had}:
                with contextlib.suppress(IpamError):
                    await addresses.free(ident, cidr.addr)
            raise

    async def _address(self, addresses: Addresses, ident: str, network: Network) -> Cidr:
        """A new address, the one that it has, or the one that was asked for. Raises CniError."""
        try:
            subnet = addresses.subnet(network.subnet) if network.subnet else addresses.default_subnet
            if not network.static:
                return await addresses.allocate(ident, subnet, timeout=_ADDRESS_LIMIT)
            text = network.static if "/" in network.static else f"{network.static}/{subnet.prefix_len}"
            cidr = addresses.cidr(text)
            await addresses.claim(ident, cidr, timeout=_ADDRESS_LIMIT)
            return cidr
        except Unavailable as error:
            raise CniError(f"unable to allocate IP address: {error}", TRY_AGAIN_LATER) from error
        except IpamError as error:
            raise CniError(f"unable to allocate IP address: {error}") from error

    async def _finish(self, request: Request, network: Network, cidr: Cidr) -> Result:
        """The result for an address, with all that belongs to it done. One that is not wanted any more is undone."""
        address, gateway = IPv4Interface(str(cidr)), network.gateway
        if request.role is Role.IPAM:
            return Result(address, gateway, _given_routes(network.routes, None), {})
        if gateway is None and not network.routes:
            gateway = await self._gateway(network.bridge, address.network)
        routes = routes_for(network.routes, address.network, gateway)
        port = PodPort(network.name, request.variable("CONTAINERID"), request.variable("IFNAME"), str(cidr))
        place = pod.Place(network.bridge, network.mtu, network.hairpin)
        sandbox = request.variable("NETNS")
        connecting = asyncio.ensure_future(
            self._run(partial(pod.connect, _namespace(request), sandbox, port, place, routes))
        )
        try:
            # A thread cannot be stopped: who gives up waits for it all the same, and takes away what it made.
            interfaces, _ = await asyncio.shield(connecting)
            if self._policy is not None:
                await self._policy.ready([str(address.ip)], _pod(request))
        except BaseException:
            await asyncio.wait([connecting])
            if connecting.exception() is None and connecting.result()[1]:
                undo = partial(pod.disconnect, request.namespace, network.bridge, port.container, port.interface)
                await self._run(undo)
            raise
        shown = _given_routes(network.routes, None) if network.routes else routes
        return Result(address, gateway, shown, network.dns, interfaces)

    # --- CHECK and STATUS ---

    async def _check(self, request: Request, network: Network) -> None:
        assert self._addresses is not None, "looked at before"
        owned = self._addresses.owned()
        names = (*idents(request), request.variable("CONTAINERID"))
        held = {str(cidr.addr) for ident in names if ident in owned for cidr in owned[ident].cidrs}
        check_addresses(request.variable("CONTAINERID"), held, network.previous)
        if request.role is Role.NET:
            interface = request.variable("IFNAME")
            found = await self._run(partial(pod.inspect, _namespace(request), network.bridge, interface))
            check_interface(interface, network, held, found)

    def _status(self) -> None:
        if self._addresses is None:
            raise CniError(_NO_ADDRESSES, NOT_AVAILABLE)
        if not self._addresses.ready:
            text = "no address can be given yet: the peers have not agreed on who owns what; see 'weave status ipam'"
            raise CniError(text, NOT_AVAILABLE)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def routes_for(wishes: tuple[RouteWish, ...], network: IPv4Network, gateway: IPv4Address | None) -> list[Route]:
    """What leads out of a pod: the routes of the configuration, or everything by the gateway, which must be reached."""
    if wishes:
        return _given_routes(wishes, gateway)
    if gateway is None:
        return []
    reach = [] if gateway in network else [Route(IPv4Network(gateway))]
    return [*reach, Route(_EVERYWHERE, gateway)]


def _given_routes(wishes: tuple[RouteWish, ...], gateway: IPv4Address | None) -> list[Route]:
    return [Route(wish.destination, wish.gateway or gateway) for wish in wishes]


def _missing(request: Request) -> tuple[str, ...]:
    required = _REQUIRED.get(request.variable("COMMAND"), ())
    return tuple(f"CNI_{name} env variable missing" for name in required if not request.variable(name))


def _check_names(request: Request) -> None:
    container, interface = request.variable("CONTAINERID"), request.variable("IFNAME")
    if container and not _CONTAINER.fullmatch(container):
        raise CniError(f"invalid CNI_CONTAINERID: {container!r}")
    if interface and (not _INTERFACE.fullmatch(interface) or interface in (".", "..")):
        raise CniError(f"invalid CNI_IFNAME: {interface!r}")


def _namespace(request: Request) -> int:
    if request.namespace is None:
        path, reason = request.variable("NETNS"), request.obstacle or "it did not come along"
        raise CniError(f'error accessing namespace "{path}": {reason}')
    return request.namespace


def _pod(request: Request) -> dict[str, str]:
    """What CNI_ARGS say of a pod, and which of its interfaces this is, of which sandbox."""
    interface = f"{request.variable('CONTAINERID')}/{request.variable('IFNAME')}"
    return {**cni_arguments(request.variable("ARGS")), "interface": interface}
