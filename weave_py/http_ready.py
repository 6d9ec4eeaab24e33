"""GET /ready, for probes: 200 when containers can be connected, else 503 and one line why."""

import time
from collections.abc import Callable

from aiohttp import web

from mesh.status import MeshStatus
from weave_py.readiness import Readiness

_OURSELF = "cannot connect to ourself"


def add_routes(
    application: web.Application, readiness: Readiness, status: Callable[[], MeshStatus], ring: Callable[[], bool]
) -> None:
    """`ring`: whether addresses are to be had, or none are wanted."""

    async def ready(request: web.Request) -> web.Response:
        mesh = status()
        others = [row for row in mesh.connections if _OURSELF not in row.info]
        established = sum(row.state == "established" for row in others)
        why = readiness.obstacle(len(others), established, addresses=ring(), now=time.monotonic())
        return web.Response(status=503 if why else 200, text=f"{why or 'ready'}\n")

    application.router.add_get("/ready", ready, allow_head=False)
