"""Questions of this node, on a unix socket: a line of JSON each, a line of JSON for each answer.

    {"wait": ["10.32.0.5"], "namespace": "shop", "name": "db-0", "uid": "..."}   -> {"ok": true}
    {"release": true, "namespace": "shop", "name": "db-0", "uid": "..."}         -> {"ok": true}
    {"ask": "status"}                                                            -> {"answer": {...}}
    {"follow": "drops"}                                                          -> {"answer": {...}} again and again

The router asks the first two before it lets a pod start and after it ended, `weave npc` the others.
Source: NPC spec §4.1, §4.5.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

Request = Mapping[str, Any]
Answer = Mapping[str, object]
_LINE = 1 << 20
_MODE = 0o600


class AskError(Exception):
    """A question that makes no sense, or about what is not there; the text says it."""


class Server:
    """`answer` takes a question, `follow` one that is answered again and again until the asker leaves."""

    def __init__(
        self,
        path: str,
        answer: Callable[[Request], Awaitable[Answer]],
        follow: Callable[[Request], AsyncIterator[Answer]],
        log: logging.Logger,
    ) -> None:
        self._path = Path(path)
        self._answer = answer
        self._follow = follow
        self._log = log
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; a socket that another run left is taken over. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LINE)
        os.chmod(self._path, _MODE)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                async for answer in self._answers(line):
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        except (ConnectionError, ValueError):
            # The asker left, or sends lines without end.
            pass
        finally:
            writer.close()

    async def _answers(self, line: bytes) -> AsyncIterator[Answer]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise AskError("a question is a JSON object")
            if "follow" in request:
                async for answer in self._follow(request):
                    yield answer
            else:
                yield await self._answer(request)
        except (AskError, json.JSONDecodeError, UnicodeDecodeError) as error:
            yield {"error": str(error)}
        except Exception as error:
            self._log.exception("unable to answer %.200r", line)
            yield {"error": f"{type(error).__name__}: {error}"}
