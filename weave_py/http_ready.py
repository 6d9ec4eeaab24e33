"""GET /ready, for probes: 200 when containers can be connected, else 503 and one line why."""

import time
from collections.abc import Callable

from aiohttp import web

from mesh.status import MeshStatus
from weave_py.readiness import Readiness

_OURSELF = "cannot connect to ourself"


class Ready:
    """Whether this router is ready now. `ring`: whether addresses are to be had, or none are wanted."""

    def __init__(self, readiness: Readiness, status: Callable[[], MeshStatus], ring: Callable[[], bool]) -> None:
        self._readiness = readiness
        self._status = status
        self._ring = ring

    def obstacle(self) -> str:
        """Why it is not; blank if it is."""
        others = [row for row in self._status().connections if _OURSELF not in row.info]
        established = sum(row.state == "established" for row in others)
        return self._readiness.obstacle(len(others), established, addresses=self._ring(), now=time.monotonic())


def add_routes(application: web.Application, ready: Ready) -> None:
    """The path, on a listener that may change the router."""

    async def answer(request: web.Request) -> web.Response:
        why = ready.obstacle()
        return web.Response(status=503 if why else 200, text=f"{why or 'ready'}\n")

    application.router.add_get("/ready", answer, allow_head=False)
