"""Requests to the API server, each with a time limit and a limit on what is read.

    async with Client(in_cluster()) as client:
        node = await client.get(NODES, "node-1")
        await client.patch(NODES, "node-1", {…}, subresource="status")

All calls raise `ApiError` (the server refuses: status, reason, message) or `KubeError` (it cannot be reached, or what
it says is no answer). Objects are plain dictionaries. A server that no longer knows our token is asked once more if the
file holds another one by now. Source: Kubernetes API concepts; spec kube-cni §4, npc §5.2.
"""

import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from kube.config import Config, Credentials
from kube.errors import ApiError, KubeError
from kube.lines import Lines
from kube.resource import Object, Resource

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
# Objects a page of a list has at most.
PAGE = 500

_JSON = "application/json"
_CONNECT = 10.0
_REQUEST = 30.0
_LARGEST_ANSWER = 256 << 20
_LARGEST_LINE = 16 << 20
_LARGEST_ERROR = 1 << 20
_CHUNK = 64 << 10
# Probes of a connection that says nothing: after so many seconds, so far apart, so many.
_PROBES = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Client:
    """One API server; an asynchronous context manager. `clock`: seconds, never going back."""

    def __init__(
        self, config: Config, *, agent: str = "weave-kube", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = config.url.rstrip("/")
        self._credentials = Credentials(config, clock)
        self._agent = agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": self._agent, "Accept": _JSON},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=_REQUEST, sock_connect=_CONNECT),
            read_bufsize=_CHUNK,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    # --- objects ---

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        return await self._object("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        query: Mapping[str, str] | None = None,
        limit: int = PAGE,
        token: str = "",
    ) -> Object:
        """One page: `items` (they have no kind) and `metadata` with `resourceVersion` and, if more follow, `continue`.

        `token`: the former page's `continue`; `query`: labelSelector, fieldSelector.
        """
        asked = {**(query or {}), "limit": str(limit)} | ({"continue": token} if token else {})
        page = await self._object("GET", resource.path(namespace), query=asked)
        if not isinstance(page.get("items", []), list | None) or not isinstance(page.get("metadata"), dict):
            raise KubeError(f"{resource.path(namespace)} answers with no list")
        return page

    async def list_all(
        self, resource: Resource, namespace: str = "", *, query: Mapping[str, str] | None = None
    ) -> Sequence[Object]:
        """All objects at one moment; for resources of which there are few."""
        items: list[Object] = []
        token = ""
        while True:
            page = await self.list(resource, namespace, query=query, token=token)
            items += page["items"] or []
            token = page["metadata"].get("continue") or ""
            if not token:
                return items

    async def create(self, resource: Resource, document: Object, namespace: str = "", *, manager: str = "") -> Object:
        """`manager`: in whose name fields are owned. ApiError 409, reason AlreadyExists, if it exists."""
        return await self._object("POST", resource.path(namespace), document, query=_managed(manager))

    async def update(self, resource: Resource, document: Object, *, manager: str = "") -> Object:
        """Replace; ApiError 409 if the object changed since the `resourceVersion` in the document."""
        meta = document["metadata"]
        path = resource.path(meta.get("namespace", ""), meta["name"])
        return await self._object("PUT", path, document, query=_managed(manager))

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        subresource: str = "",
        kind: str = STRATEGIC,
        manager: str = "",
    ) -> Object:
        path = resource.path(namespace, name, subresource)
        return await self._object("PATCH", path, patch, query=_managed(manager), kind=kind)

    async def delete(self, resource: Resource, name: str, namespace: str = "") -> Object:
        return await self._object("DELETE", resource.path(namespace, name))

    # --- streams ---

    async def stream(
        self, resource: Resource, namespace: str, query: Mapping[str, str], *, limit: float
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """Lines as they come, a few at a time, until the server ends it; KubeError if it has not after `limit` seconds.

        Close the iterator (`contextlib.aclosing`), or the connection stays until it is collected.
        """
        path = resource.path(namespace)
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=_CONNECT)
        cutter = Lines(_LARGEST_LINE)
        with _as_ours(path):
            async with self._answer("GET", path, None, query, timeout) as answer:
                _probe(answer)
                # That it is open is news, too.
                yield []
                async for chunk in answer.content.iter_any():
                    lines = cutter.feed(chunk)
                    if lines:
                        yield lines

    # --- inside ---

    async def _object(
        self, method: str, path: str, document: Any = None, *, query: Mapping[str, str] | None = None, kind: str = _JSON
    ) -> Object:
        body = None if document is None else json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        with _as_ours(path):
            async with self._answer(method, path, body, query or {}, None, kind) as answer:
                parsed = json.loads(await _read(answer, _LARGEST_ANSWER))
        if not isinstance(parsed, dict):
            raise KubeError(f"{path} answers with no object")
        return parsed

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout | None,
        kind: str = _JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer, its body unread. Raises ApiError."""
        assert self._session is not None, "the client is not open"
        for last in (False, True):
            headers = self._credentials.headers() | ({"Content-Type": kind} if body is not None else {})
            limits: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
            async with self._session.request(
                method,
                self._url + path,
                params=query,
                data=body,
                headers=headers,
                ssl=self._credentials.tls(),
                allow_redirects=False,
                **limits,
            ) as answer:
                if answer.status == 401 and not last and self._credentials.refused():
                    continue
                if not 200 <= answer.status < 300:
                    raise _refusal(answer, await _read(answer, _LARGEST_ERROR))
                yield answer
                return


@contextlib.contextmanager
def _as_ours(path: str) -> Iterator[None]:
    """Errors of the transport and of JSON, in a line of ours."""
    try:
        yield
    except KubeError:
        raise
    except TimeoutError as error:
        raise KubeError(f"{path}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise KubeError(f"{path}: {error or type(error).__name__}") from error
    except ValueError as error:
        raise KubeError(f"{path}: the answer is no JSON: {error}") from error


async def _read(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks: list[bytes] = []
    async for chunk in answer.content.iter_any():
        chunks.append(chunk)
        limit -= len(chunk)
        if limit < 0:
            raise KubeError("an answer is too large")
    return b"".join(chunks)


def _refusal(answer: aiohttp.ClientResponse, raw: bytes) -> ApiError:
    """What a Status says, or the body as it stands where a proxy answered."""
    try:
        status = json.loads(raw)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        status = {"message": raw[:200].decode("utf-8", "replace").strip()}
    after = answer.headers.get("Retry-After", "")
    message, reason = str(status.get("message") or ""), str(status.get("reason") or "")
    return ApiError(answer.status, reason, message, float(after) if after.isdecimal() else None)


def _managed(manager: str) -> dict[str, str]:
    return {"fieldManager": manager} if manager else {}


def _probe(answer: aiohttp.ClientResponse) -> None:
    """Have the kernel notice that the other side is gone: a stream may be silent for minutes."""
    connection = answer.connection
    sock = connection.transport.get_extra_info("socket") if connection and connection.transport else None
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
