"""The control API's paths of names: /name, /domain, /dns-address. Source: CLI spec §5.2, DNS spec §9."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Protocol

from aiohttp import web

from dns.service import Listed
from weave_py.http import HttpError, boolean, form_of
from weave_py.report import to_json

_JSON = "application/json"


class Names(Protocol):
    """What keeps the names of this host (`dns.service.NameService`)."""

    @property
    def domain(self) -> str: ...
    @property
    def address(self) -> tuple[str, int] | None: ...
    def add(self, hostname: str, container: str, address: str) -> bool: ...
    def delete(
        self, *, hostname: str | None = None, container: str | None = None, address: str | None = None
    ) -> int: ...
    def entries(self) -> Sequence[Listed]: ...
    async def settled(self) -> str | None: ...


def add_routes(application: web.Application, names: Names) -> None:
    """The paths, on a listener that may change the router."""
    handlers = _Handlers(names)
    router = application.router
    router.add_get("/domain", handlers.domain, allow_head=False)
    router.add_get("/dns-address", handlers.address, allow_head=False)
    router.add_get("/dns-address-port", handlers.address_and_port, allow_head=False)
    router.add_get("/name", handlers.everything, allow_head=False)
    router.add_put("/name/{container}/{ip}", handlers.add)
    for path in ("/name/{container}/{ip}", "/name/{container}", "/name"):
        router.add_delete(path, handlers.delete)


class _Handlers:
    """One handler a path. What was registered or removed is kept when the client is told."""

    def __init__(self, names: Names) -> None:
        self._names = names

    async def domain(self, request: web.Request) -> web.Response:
        return web.Response(text=self._names.domain)

    async def address(self, request: web.Request) -> web.Response:
        return web.Response(text=self._address()[0])

    async def address_and_port(self, request: web.Request) -> web.Response:
        host, port = self._address()
        return web.Response(text=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    def _address(self) -> tuple[str, int]:
        if self._names.address is None:
            raise HttpError(503, "names are not served yet: the address for that waits for the ring of addresses")
        return self._names.address

    async def everything(self, request: web.Request) -> web.Response:
        if request.headers.get("Accept") != _JSON:
            return web.Response(status=405)
        rows = [
            {
                "ContainerID": entry.container,
                "Origin": entry.origin,
                "Addr": entry.address,
                "Hostname": entry.hostname,
                "Version": entry.version,
                "Tombstone": entry.tombstone,
            }
            for entry in self._names.entries()
        ]
        return web.Response(text=to_json(rows or None, indent=False) + "\n")

    async def add(self, request: web.Request) -> web.Response:
        _check(request.match_info["ip"])
        name = (await form_of(request)).get("fqdn", [""])[0]
        self._names.add(_qualified(name), request.match_info["container"], request.match_info["ip"])
        return await self._kept()

    async def delete(self, request: web.Request) -> web.Response:
        where = request.match_info
        if "ip" in where:
            _check(where["ip"])
        form = await form_of(request)
        name = form.get("fqdn", [""])[0]
        if not name and "container" not in where and not boolean("all", form.get("all", ["false"])[0]):
            raise HttpError(400, "which name? give fqdn=NAME, or all=true for every name that was registered here")
        hostname = _qualified(name) if name else None
        self._names.delete(hostname=hostname, container=where.get("container"), address=where.get("ip"))
        return await self._kept()

    async def _kept(self) -> web.Response:
        trouble = await self._names.settled()
        if trouble is not None:
            raise HttpError(500, f"done, but a restart will not know it: {trouble}")
        return web.Response(status=204)


def _check(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise HttpError(400, f"invalid IP Address: {text}") from None


def _qualified(name: str) -> str:
    return name if name.endswith(".") else f"{name}."
