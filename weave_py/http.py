"""The control API: status, report, and what changes the router, over HTTP on loopback or a unix socket.

Paths, texts and codes are those of Weave Net; beside them every status is there as JSON for `Accept:
application/json`. The read-only address serves no request that changes anything. Source: CLI spec §5.
"""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import Any, Protocol

from aiohttp import web

from weave_py import agreement, metrics, status_text
from weave_py.report import Document, to_json
from weave_py.template import TemplateError
from weave_py.template_fill import ExecutionError, render

_MAX_BODY = 1 << 20
_MAX_PORT = 65535
# Seconds that requests under way get when the router ends.
_LAST_WORDS = 1.0
_JSON = "application/json"
_NOT_FOUND = "404 page not found"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control(Protocol):
    """What the API does to the router."""

    def report(self) -> Document: ...

    async def connect(self, peers: list[str], replace: bool) -> list[str]:
        """Make peers direct targets; a line for each that could not be used."""

    def forget(self, peers: list[str]) -> None: ...

    def metrics(self) -> bytes:
        """What Prometheus reads."""


class HttpError(Exception):
    """An answer other than success: its status, and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _error(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers={"X-Content-Type-Options": "nosniff"})


async def _plain_headers(request: web.Request, response: web.StreamResponse) -> None:
    """No advertisement of the server, no type of an empty body."""
    response.headers.pop("Server", None)
    if isinstance(response, web.Response) and not response.body:
        response.headers.pop("Content-Type", None)


class Api:
    """The handlers; `application(control=...)` makes what a listener serves."""

    def __init__(self, control: Control, log: logging.Logger) -> None:
        self._control = control
        self._log = log

    def application(self, *, read_only: bool) -> web.Application:
        """All routes, or those that change nothing."""
        application = web.Application(middlewares=[self._middleware], client_max_size=_MAX_BODY)
        application.on_response_prepare.append(_plain_headers)
        views: dict[str, Callable[[Document], str]] = {
            "": status_text.overview,
            "/connections": status_text.connections,
            "/peers": status_text.peers,
            "/targets": status_text.targets,
            "/fastdp": status_text.fastdp,
            "/agree": lambda report: agreement.text(report["Agreement"]),
            # Nothing to show is no error, also where the service is off.
            "/dns": status_text.dns,
            "/ipam": status_text.ipam,
        }
        for path, view in views.items():
            application.router.add_get(f"/status{path}", self._status(path, view), allow_head=False)
        application.router.add_get("/report", self._report, allow_head=False)
        application.router.add_get("/metrics", self._metrics, allow_head=False)
        if not read_only:
            application.router.add_post("/connect", self._connect)
            application.router.add_post("/forget", self._forget)
        return application

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._log.debug("[http] %s %s", request.method, request.path)
        try:
            return await handler(request)
        except HttpError as error:
            return _error(error.status, str(error))
        except web.HTTPMethodNotAllowed:
            return web.Response(status=405)
        except web.HTTPException as error:
            return _error(error.status, _NOT_FOUND if error.status == 404 else error.reason)
        except Exception:
            # The outermost edge of a request: a fault of ours must not end the server.
            self._log.exception("unexpected error while answering %s %s", request.method, request.path)
            return _error(500, "internal error; the router's log has it")

    def _status(self, path: str, view: Callable[[Document], str]) -> Handler:
        part = {"/connections": "Connections", "/peers": "Peers", "/targets": "Targets", "/fastdp": "Fastdp"}.get(path)
        service = {"/ipam": "IPAM", "/dns": "DNS", "/agree": "Agreement"}.get(path)

        async def handle(request: web.Request) -> web.Response:
            report = self._control.report()
            if request.headers.get("Accept") != _JSON:
                return web.Response(status=200 if path or report["Ready"] else 503, text=view(report))
            document: Any = (report["Router"][part] or []) if part else report.get(service) if service else report
            return web.Response(text=to_json(document, indent=True), content_type=_JSON)

        return handle

    async def _report(self, request: web.Request) -> web.Response:
        report = self._control.report()
        if request.headers.get("Accept") == _JSON:
            return web.Response(text=to_json(report, indent=True), content_type=_JSON)
        formats = request.query.getall("format", [])
        if len(formats) != 1:
            raise HttpError(400, "error: must supply one format parameter")
        try:
            return web.Response(text=render(formats[0], report))
        except TemplateError as error:
            raise HttpError(400, str(error)) from error
        except ExecutionError as error:
            raise HttpError(500, "error during template execution") from error

    def metrics_only(self) -> web.Application:
        """What `--metrics-addr` serves."""
        application = web.Application(middlewares=[self._middleware])
        application.on_response_prepare.append(_plain_headers)
        application.router.add_get("/metrics", self._metrics, allow_head=False)
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._control.metrics(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _connect(self, request: web.Request) -> web.Response:
        form = await form_of(request)
        replace = boolean("replace", form.get("replace", ["false"])[0])
        errors = await self._control.connect(form.get("peer", []), replace)
        if errors:
            raise HttpError(400, "\n".join(errors))
        return web.Response()

    async def _forget(self, request: web.Request) -> web.Response:
        self._control.forget((await form_of(request)).get("peer", []))
        return web.Response()


async def form_of(request: web.Request) -> dict[str, list[str]]:
    """Values of the query and of a form in the body."""
    values: dict[str, list[str]] = {}
    body = await request.post()
    items: Iterable[tuple[str, Any]] = [*body.items(), *request.query.items()]
    for name, value in items:
        if isinstance(value, str):
            values.setdefault(name, []).append(value)
    return values


def boolean(name: str, text: str) -> bool:
    """A form's value as Go reads it. Raises HttpError."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False", ""):
        return False
    raise HttpError(400, f'unable to parse {name} option: strconv.ParseBool: parsing "{text}": invalid syntax')


def is_local(address: str) -> bool:
    """Whether only this host reaches an address."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return address.startswith("/") or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def runner_of(application: web.Application) -> web.AppRunner:
    """What serves an application, wherever its connections come from; `setup` comes next."""
    return web.AppRunner(
        # What waits for an address ends with its client.
        application,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_LAST_WORDS,
        handler_cancellation=True,
    )


async def listen(application: web.Application, address: str) -> web.AppRunner:
    """Serve on `host:port` or a unix socket's path. Raises OSError, ValueError on an address that is none."""
    runner = runner_of(application)
    await runner.setup()
    try:
        if address.startswith("/"):
            await _listen_unix(runner, address)
        else:
            host, colon, port = address.rpartition(":")
            if not colon or not port.isdecimal() or int(port) > _MAX_PORT:
                raise ValueError(f"address {address!r} is not host:port")
            await web.TCPSite(runner, host.strip("[]") or None, int(port), reuse_address=True).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


async def _listen_unix(runner: web.AppRunner, path: str) -> None:
    await web.SockSite(runner, unix_listener(path)).start()


def unix_listener(path: str) -> socket.socket:
    """A socket of which only root may be a client. Raises OSError where a router answers, or a file is no socket."""
    _remove_dead_socket(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The file is made that way, not changed afterwards.
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _remove_dead_socket(path: str) -> None:
    """What a killed router left. Raises OSError where a router answers, or where something else stands there."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(f"another router listens on {path}")
