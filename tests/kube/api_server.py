"""A stand-in for the Kubernetes API server, for tests of whatever talks to one.

    async with ApiServer() as server:                 in the event loop of an asynchronous test
    with serving() as server:                         in a thread of its own, for the rest and for other processes
    python -m tests.kube.api_server --bind 0.0.0.0:6443 [--load objects.json]      a process; prints its URL

    server.url                                        http://127.0.0.1:PORT (https with `tls`)
    server.objects.put("pods", {"metadata": …})       and get, remove, all, compact: `tests/kube/objects.py`
    server.allow("token", "user", rules)              from then on a token is needed, and its rules (None: all) hold
    server.fail(503, path="/nodes", times=2)          Status answers; also drop, delay, hang (until `release`)
    server.end_watches(), stall_watches(), reset_watches(), spoil_watches(b"{"), expire_watches(), bookmark()
    server.requests, server.refused                   what was asked: method, path, verb, resource, body, …; the 403s

What it does is checked against recordings of a real server (`tests/kube/test_api_server.py`) and with kubectl.
"""

import argparse
import asyncio
import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.kube import patches, resources
from tests.kube.objects import Objects
from tests.kube.patches import Selector
from tests.kube.resources import Object, Resource, StatusError
from tests.kube.watches import Watch, Watches

_GROUPED = re.compile(r"/api(?:s/(?P<group>[^/]+))?/(?P<version>v[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
                      r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>status))?$")  # fmt: skip
_NAMESPACES = re.compile(r"/api/v1/namespaces(?:/(?P<name>[^/]+))?(?:/(?P<part>status))?$")
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_VERSION: Object = {"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `verb` and `resource` as RBAC names them (`nodes/status`); blank where it was no resource."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    verb: str = ""
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""


@dataclass(slots=True)
class _Fault:
    """What happens instead to requests whose method and path (a regular expression, searched) fit, `times` times."""

    act: str
    method: str
    path: str
    times: int
    failure: StatusError | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    rules: Sequence[Object] | None


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path names."""

    resource: Resource
    namespace: str
    name: str
    part: str


@dataclass(slots=True)
class ApiServer:
    """The server; an asynchronous context manager. `sock`: a bound or unbound socket to listen on, else loopback."""

    objects: Objects = field(default_factory=Objects)
    sock: socket.socket | None = None
    bind: tuple[str, int] = ("127.0.0.1", 0)
    tls: ssl.SSLContext | None = None
    initial_events: bool = True
    requests: list[Asked] = field(default_factory=list)
    url: str = ""
    # What was answered with 403: `list pods`, `patch nodes/status`, …
    refused: list[str] = field(default_factory=list)
    # Requests that wait for `release`.
    hanging: int = 0
    _users: dict[str, _User] = field(default_factory=dict)
    _faults: list[_Fault] = field(default_factory=list)
    _watches: Watches = field(default_factory=Watches)
    _runner: web.AppRunner | None = None
    _held: asyncio.Event = field(default_factory=asyncio.Event)

    # --- what a test says ---

    def allow(self, token: str, user: str = "admin", rules: Sequence[Object] | None = None) -> None:
        """`rules`: those of a Role or ClusterRole, with a key `namespace` where they hold in one alone."""
        self._users[token] = _User(user, rules)

    def disallow(self, token: str) -> None:
        """That token is no longer good (it was rotated)."""
        del self._users[token]

    def fail(
        self, code: int, reason: str = "", *, method: str = "", path: str = "", times: int = 1, retry: int | None = None
    ) -> None:
        """Answer with that Status; `retry`: the header Retry-After, seconds."""
        failure = StatusError(code, reason, f"injected {code}", retry_after=retry)
        self._faults.append(_Fault("fail", method, path, times, failure))

    def drop(self, *, method: str = "", path: str = "", times: int = 1) -> None:
        """End the connection without an answer."""
        self._faults.append(_Fault("drop", method, path, times))

    def hang(self, *, method: str = "", path: str = "", times: int = 1) -> None:
        """Never answer."""
        self._faults.append(_Fault("hang", method, path, times))

    def delay(self, seconds: float, *, method: str = "", path: str = "", times: int = 1) -> None:
        self._faults.append(_Fault("delay", method, path, times, seconds=seconds))

    def release(self) -> None:
        """End what hangs, as a lost connection."""
        self._held.set()
        self._held = asyncio.Event()

    @property
    def watching(self) -> int:
        """How many watches are under way."""
        return len(self._watches)

    def end_watches(self) -> None:
        """All watches end as at their timeout."""
        self._watches.order(lambda watch: watch.end())

    def stall_watches(self) -> None:
        """All watches under way stay open and say nothing more."""
        self._watches.order(lambda watch: watch.stall())

    def reset_watches(self) -> None:
        """All watches break off in the middle of the stream."""
        self._watches.order(lambda watch: watch.reset())

    def spoil_watches(self, line: bytes) -> None:
        """All watches say that, which need be no event."""
        self._watches.order(lambda watch: watch.say(line))

    def expire_watches(self) -> None:
        """All watches end with an event of type ERROR, code 410."""
        self._watches.order(lambda watch: watch.fail(resources.expired()))

    def bookmark(self) -> None:
        """Watches that allow bookmarks get one."""
        self._watches.order(lambda watch: watch.bookmark())

    # --- life ---

    async def __aenter__(self) -> Self:
        self._watches.begin(asyncio.get_running_loop())
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        sock = self.sock or socket.create_server(self.bind)
        if sock.getsockname()[1] == 0:
            sock.bind(self.bind)
        await web.SockSite(self._runner, sock, ssl_context=self.tls).start()
        host, port = sock.getsockname()[:2]
        self.url = f"{'https' if self.tls else 'http'}://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        self._held.set()
        self._watches.order(lambda watch: watch.end())
        await self._runner.cleanup()

    # --- requests ---

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = raw.decode("utf-8", "replace")
        try:
            target = self._target(request.path)
            verb = self._verb(request, target)
            self._note(request, target, verb, body)
            await self._faulty(request)
            user = self._authenticated(request)
            if target is None:
                return self._unowned(request.path)
            self._authorised(user, verb, target)
            if verb in ("create", "update") and not isinstance(body, dict):
                raise _unreadable()
            if verb == "watch":
                return await self._watch(request, target)
            code, document = self._answer(request, target, verb, body)
            return web.json_response(document, status=code)
        except StatusError as failure:
            headers = {"Retry-After": str(failure.retry_after)} if failure.retry_after is not None else {}
            return web.json_response(failure.status(), status=failure.code, headers=headers)

    def _target(self, path: str) -> _Target | None:
        if match := _NAMESPACES.match(path):
            name, part = match["name"] or "", match["part"] or ""
            return _Target(self.objects.resource("namespaces"), "", name, part)
        if match := _GROUPED.match(path):
            resource = self.objects.resources.get((match["group"] or "", match["version"], match["plural"]))
            if resource is not None:
                return _Target(resource, match["namespace"] or "", match["name"] or "", match["part"] or "")
        return None

    @staticmethod
    def _verb(request: web.Request, target: _Target | None) -> str:
        if target is None:
            return ""
        if request.method != "GET":
            return _VERBS.get(request.method, "")
        if request.query.get("watch") in ("1", "true"):
            return "watch"
        return "get" if target.name else "list"

    def _note(self, request: web.Request, target: _Target | None, verb: str, body: Any) -> None:
        asked: dict[str, str] = {}
        if target is not None:
            whole = f"{target.resource.plural}/{target.part}" if target.part else target.resource.plural
            asked = {"group": target.resource.group, "resource": whole, "name": target.name}
            asked["namespace"] = target.namespace
        query, headers = dict(request.query), dict(request.headers)
        self.requests.append(Asked(request.method, request.path, query, headers, body, verb, **asked))

    async def _faulty(self, request: web.Request) -> None:
        for fault in self._faults:
            if fault.method in ("", request.method) and re.search(fault.path, request.path_qs):
                break
        else:
            return
        fault.times -= 1
        if fault.times == 0:
            self._faults.remove(fault)
        if fault.failure is not None:
            raise fault.failure
        if fault.act == "delay":
            await asyncio.sleep(fault.seconds)
            return
        if fault.act == "hang":
            self.hanging += 1
            await self._held.wait()
            self.hanging -= 1
        assert request.transport is not None
        request.transport.abort()
        # The end of the connection cancels this.
        await asyncio.Event().wait()

    def _authenticated(self, request: web.Request) -> _User:
        if not self._users:
            return _User("admin", None)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return _User("system:anonymous", [])
        if token not in self._users:
            raise resources.unauthorized()
        return self._users[token]

    def _authorised(self, user: _User, verb: str, target: _Target) -> None:
        if user.rules is None:
            return
        whole = f"{target.resource.plural}/{target.part}" if target.part else target.resource.plural
        for rule in user.rules:
            fits = (
                _in(target.resource.group, rule.get("apiGroups"))
                and _in(whole, rule.get("resources"))
                and _in(verb, rule.get("verbs"))
                and (not rule.get("resourceNames") or target.name in rule["resourceNames"])
                and rule.get("namespace", target.namespace) == target.namespace
            )
            if fits:
                return
        self.refused.append(f"{verb} {whole}")
        raise resources.forbidden(user.name, verb, target.resource, target.part, target.name, target.namespace)

    def _answer(self, request: web.Request, target: _Target, verb: str, body: Any) -> tuple[int, Object]:
        resource, namespace, name = target.resource, target.namespace, target.name
        match verb:
            case "list":
                self._known_version(request)
                limit, token = int(request.query.get("limit", 0)), request.query.get("continue", "")
                return 200, self.objects.page(resource, namespace, _selector(request), limit, token)
            case "get":
                return 200, self.objects.read(resource, namespace, name)
            case "create":
                return 201, self.objects.create(resource, namespace, body)
            case "update":
                return 200, self.objects.update(resource, namespace, name, body, target.part)
            case "patch":
                if request.content_type not in (patches.MERGE, patches.STRATEGIC, patches.JSON):
                    raise _unreadable()
                patched = self.objects.patch(resource, namespace, name, body, request.content_type, target.part)
                return 200, patched
            case "delete":
                grace = request.query.get("gracePeriodSeconds", (body or {}).get("gracePeriodSeconds"))
                return 200, self.objects.delete(resource, namespace, name, None if grace is None else int(grace))
        raise StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _known_version(self, request: web.Request) -> int | None:
        """The version a request begins at, if it names one. Raises StatusError 500, 504."""
        text = request.query.get("resourceVersion", "")
        if not text.isdecimal() and text:
            raise resources.bad_version(text)
        asked, current = int(text or 0), self.objects.version
        if asked > current:
            raise resources.future_version(asked, current)
        return asked or None

    async def _watch(self, request: web.Request, target: _Target) -> web.StreamResponse:
        version = self._known_version(request)
        selects = _selector(request)
        if target.name:
            selects = patches.field_selector(f"metadata.name={target.name}")
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        initial = request.query.get("sendInitialEvents") in ("1", "true")
        if initial and request.query.get("resourceVersionMatch") != "NotOlderThan":
            raise StatusError(422, "Invalid", "sendInitialEvents requires resourceVersionMatch NotOlderThan")
        seconds = float(request.query.get("timeoutSeconds", 1800))
        watch = Watch(self.objects, target.resource, target.namespace, selects, bookmarks=bookmarks)
        if initial and not self.initial_events:
            watch.fail(StatusError(500, "InternalError", "a watch stream was requested by the client but the required "
                                  "storage feature RequestWatchProgress is disabled"))  # fmt: skip
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        with self._watches.holding(watch):
            if not watch.ending:
                watch.start(version, marked=initial)
            if not await watch.run(response.write, seconds):
                assert request.transport is not None
                request.transport.abort()
        return response

    def _unowned(self, path: str) -> web.Response:
        """What is no resource: versions, health, and discovery for kubectl."""
        known = self.objects.resources.values()
        match path.strip("/").split("/"):
            case ["version"]:
                return web.json_response(_VERSION)
            case ["healthz" | "readyz" | "livez"]:
                return web.Response(text="ok")
            case ["api"]:
                addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.url.partition("://")[2]}]
                document = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}
                return web.json_response(document)
            case ["apis"]:
                groups = []
                for group in sorted({r.group for r in known} - {""}):
                    version = next(r.version for r in known if r.group == group)
                    said = {"groupVersion": f"{group}/{version}", "version": version}
                    groups.append({"name": group, "versions": [said], "preferredVersion": said})
                return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            case ["api", "v1"] | ["apis", _, _]:
                served = [r for r in known if r.root == path.rstrip("/")]
                if served:
                    return web.json_response(_discovery(served))
        raise StatusError(404, "NotFound", "the server could not find the requested resource", {})


def _discovery(served: Sequence[Resource]) -> Object:
    listed: list[Object] = []
    for resource in sorted(served, key=lambda r: r.plural):
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        common = {"namespaced": resource.namespaced, "kind": resource.kind}
        short = {"shortNames": [resource.short]} if resource.short else {}
        listed.append(
            {"name": resource.plural, "singularName": resource.kind.lower(), **common, "verbs": verbs} | short
        )
        if resource.status:
            name = f"{resource.plural}/status"
            listed.append({"name": name, "singularName": "", **common, "verbs": ["get", "patch", "update"]})
    head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": served[0].api_version}
    return head | {"resources": listed}


def _unreadable() -> StatusError:
    return StatusError(415, "UnsupportedMediaType", "the body of the request was in an unknown format")


def _in(value: str, allowed: Iterable[str] | None) -> bool:
    return allowed is not None and (value in allowed or "*" in allowed)


def _selector(request: web.Request) -> Selector:
    labels = patches.label_selector(request.query.get("labelSelector", ""))
    fields = patches.field_selector(request.query.get("fieldSelector", ""))
    return lambda found: labels(found) and fields(found)


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[ApiServer]:
    """An ApiServer in a thread with an event loop of its own. Its methods may be called from any thread."""
    ready: threading.Event = threading.Event()
    made: list[ApiServer] = []
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        done = asyncio.Event()
        async with ApiServer(**settings) as server:
            loop = asyncio.get_running_loop()
            made.append(server)
            stop.append(lambda: loop.call_soon_threadsafe(done.set))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    if not ready.wait(20):
        raise RuntimeError("the stand-in API server does not start")
    try:
        yield made[0]
    finally:
        stop[0]()
        thread.join(20)


async def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kube.api_server")
    parser.add_argument("--bind", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--load", type=Path, help='a file of {"pods": [object, …], …}')
    arguments = parser.parse_args()
    host, _, port = arguments.bind.rpartition(":")
    async with ApiServer(bind=(host, int(port))) as server:
        if arguments.load:
            for plural, documents in json.loads(arguments.load.read_text()).items():
                for document in documents:
                    server.objects.put(plural, document)
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
