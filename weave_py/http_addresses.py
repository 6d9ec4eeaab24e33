"""The control API's paths of address allocation: /ip, /ring, /peer, /ipinfo. Source: CLI spec §5.2, IPAM spec §16.

A request that waits for an address ends with its client: who hung up gets none. One with `timeout` (seconds, ours)
ends by itself, with the reason for which it waited in vain.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Protocol, TypeVar

from aiohttp import web

from ipam.ranges import Subnet
from ipam.seams import Cidr, IpamError, Unavailable
from ipam.users import Addresses
from weave_py.http import HttpError, boolean, form_of
from weave_py.report import to_json

ANONYMOUS = "_"
_ALIVE, _LENIENT = "check-alive", "noErrorOnUnknown"
T = TypeVar("T")
Rejoin = Callable[[], Awaitable[None]]


class Allocation(Addresses, Protocol):
    """What gives addresses out, and what administrators ask of it (`ipam.service.Ipam`)."""

    def lookup(self, ident: str, subnet: Subnet | None = None) -> Sequence[Cidr]: ...
    async def prime(self, *, timeout: float | None = None) -> None: ...
    async def shut_down(self) -> None: ...
    async def take_over(self, peer: str, *, force: bool = False) -> int: ...


def add_routes(application: web.Application, ipam: Allocation, tracker: str, rejoin: Rejoin) -> None:
    """The paths, on a listener that may change the router. `tracker`: who follows the ranges, if anybody does.

    `rejoin` drops the ring and waits for that of others.
    """
    handlers = _Handlers(ipam, tracker, rejoin)
    router = application.router
    router.add_get("/ip", handlers.everybody, allow_head=False)
    for path in ("/ip/{ident}", "/ip/{ident}/{ip}/{prefixlen}"):
        router.add_get(path, handlers.lookup, allow_head=False)
        router.add_post(path, handlers.allocate)
    router.add_put("/ip/{ident}/{ip}/{prefixlen}", handlers.claim)
    router.add_delete("/ip/{ident}", handlers.delete)
    router.add_delete("/ip/{ident}/{ip}", handlers.free)
    router.add_get("/ring", handlers.ring, allow_head=False)
    router.add_delete("/ring", handlers.rejoin)
    router.add_get("/ipinfo/defaultsubnet", handlers.default_subnet, allow_head=False)
    router.add_get("/ipinfo/tracker", handlers.tracker, allow_head=False)
    router.add_delete("/peer", handlers.leave)
    router.add_delete("/peer/{peer}", handlers.take_over)


def add_routes_without_allocation(application: web.Application) -> None:
    """Where addresses are not allocated nobody's space can be taken over: an empty answer, as the reference gives."""

    async def nothing(request: web.Request) -> web.Response:
        return web.Response()

    application.router.add_delete("/peer/{peer}", nothing)


class _Handlers:
    """One handler a path; refusals become 400, what may work later 503."""

    def __init__(self, ipam: Allocation, tracker: str, rejoin: Rejoin) -> None:
        self._ipam = ipam
        self._rejoin = rejoin
        self._tracker = tracker

    async def everybody(self, request: web.Request) -> web.Response:
        rows = [
            {"containerid": ident, "addrs": [str(cidr) for cidr in held.cidrs]}
            for ident, held in self._ipam.owned().items()
        ]
        document = to_json({"owned": rows or None}, indent=False)
        return web.Response(body=f"{document}\n".encode(), headers={"Content-Type": "application/json"})

    async def lookup(self, request: web.Request) -> web.Response:
        subnet = await _answer(self._subnet(request))
        return web.Response(text=" ".join(map(str, self._ipam.lookup(request.match_info["ident"], subnet))))

    async def allocate(self, request: web.Request) -> web.Response:
        form = await form_of(request)
        alive, limit = _flag(form, _ALIVE), _limit(form)
        subnet = await _answer(self._subnet(request))
        ident = request.match_info["ident"]
        given = self._ipam.allocate(ident, subnet, is_container=alive, timeout=limit)
        return web.Response(text=str(await _answer(given)))

    async def claim(self, request: web.Request) -> web.Response:
        form = await form_of(request)
        alive, lenient, limit = _flag(form, _ALIVE), _flag(form, _LENIENT), _limit(form)
        try:
            cidr = self._ipam.cidr(_cidr(request))
        except IpamError as error:
            raise HttpError(400, str(error)) from error
        ident = request.match_info["ident"]
        claim = self._ipam.claim(ident, cidr, is_container=alive, no_error_on_unknown=lenient, timeout=limit)
        await _answer(claim, "Unable to claim: ")
        return web.Response(status=204)

    async def delete(self, request: web.Request) -> web.Response:
        await _answer(self._ipam.delete(request.match_info["ident"]))
        return web.Response(status=204)

    async def free(self, request: web.Request) -> web.Response:
        text = request.match_info["ip"]
        try:
            address = ip_address(text)
        except ValueError:
            raise HttpError(400, f"invalid IP Address: {text}") from None
        await _answer(self._ipam.free(request.match_info["ident"], address), "Unable to free: ")
        return web.Response(status=204)

    async def ring(self, request: web.Request) -> web.Response:
        await _answer(self._ipam.prime(timeout=_limit(await form_of(request))))
        return web.Response()

    async def rejoin(self, request: web.Request) -> web.Response:
        await _answer(self._rejoin())
        return web.Response(status=204)

    async def default_subnet(self, request: web.Request) -> web.Response:
        return web.Response(text=str(self._ipam.default_subnet))

    async def tracker(self, request: web.Request) -> web.Response:
        return web.Response(text=f"{self._tracker}\n")

    async def leave(self, request: web.Request) -> web.Response:
        await _answer(self._ipam.shut_down())
        return web.Response(status=204)

    async def take_over(self, request: web.Request) -> web.Response:
        peer = request.match_info["peer"]
        # Of one that can be reached it is refused, since it goes on giving out the same addresses.
        force = _flag(await form_of(request), "force")
        count = await _answer(self._ipam.take_over(peer, force=force))
        return web.Response(text=f"{count} IPs taken over from {peer}\n")

    async def _subnet(self, request: web.Request) -> Subnet | None:
        return self._ipam.subnet(_cidr(request)) if "ip" in request.match_info else None


def _cidr(request: web.Request) -> str:
    return f"{request.match_info['ip']}/{request.match_info['prefixlen']}"


Form = Mapping[str, Sequence[str]]


def _flag(form: Form, name: str) -> bool:
    return boolean(name, form.get(name, ["false"])[0])


def _limit(form: Form) -> float | None:
    text = form.get("timeout", [""])[0]
    if not text:
        return None
    try:
        seconds = float(text)
        if not 0 < seconds < math.inf:
            raise ValueError
    except ValueError:
        raise HttpError(400, f"unable to parse timeout option: {text!r} is no number of seconds above 0") from None
    return seconds


async def _answer(work: Awaitable[T], prefix: str = "") -> T:
    """What an operation came to. Raises HttpError."""
    try:
        return await work
    except Unavailable as error:
        raise HttpError(503, str(error)) from error
    except IpamError as error:
        raise HttpError(400, f"{prefix}{error}") from error
