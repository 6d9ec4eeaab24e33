"""The control API's paths of exposure: POST and DELETE /expose/{ip}/{prefixlen}. Source: CLI spec §5.2.

Weave Net hides on the client's side; ours keeps the rules in the router, which therefore must be told.
"""

from typing import Protocol

from aiohttp import web

from weave_py.exposure import ExposeError
from weave_py.http import HttpError, boolean, form_of

_PATH = "/expose/{ip}/{prefixlen}"


class Exposer(Protocol):
    """What exposes this host."""

    async def expose(self, cidr: str, *, masquerade: bool) -> None: ...

    async def hide(self, cidr: str) -> str: ...


def add_routes(application: web.Application, exposer: Exposer) -> None:
    """The paths, on a listener that may change the router."""

    async def expose(request: web.Request) -> web.Response:
        form = await form_of(request)
        plain = boolean("skipNAT", form.get("skipNAT", ["false"])[0])
        try:
            await exposer.expose(_cidr(request), masquerade=not plain)
        except ExposeError as error:
            raise HttpError(error.status, str(error)) from error
        return web.Response(status=204)

    async def hide(request: web.Request) -> web.Response:
        try:
            stays = await exposer.hide(_cidr(request))
        except ExposeError as error:
            raise HttpError(error.status, str(error)) from error
        return web.Response(text=f"{stays}\n") if stays else web.Response(status=204)

    application.router.add_post(_PATH, expose)
    application.router.add_delete(_PATH, hide)


def _cidr(request: web.Request) -> str:
    return f"{request.match_info['ip']}/{request.match_info['prefixlen']}"
