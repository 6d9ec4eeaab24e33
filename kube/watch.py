"""A resource followed over the network, for as long as somebody listens.

    async for event in watch(client, PODS, trim):
        match event:
            case Applied(pod): …          new, or changed in what `trim` keeps
            case Deleted(pod): …          as last kept
            case Synced(): …              everything there is has been told; again after each new list

`trim` takes an object as the server sends it and gives what is to be kept of it, or None for an object of no interest;
objects of lists have no `kind`. Events never end: whatever fails is tried again (`kube/follower.py`), and a list
that had to be made anew tells differences. Close the iterator with `contextlib.aclosing`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from random import Random

from kube.client import Client
from kube.errors import KubeError
from kube.follower import Applied, AskPage, AskWatch, Deleted, Event, Follower, Pause, Synced, Trim
from kube.resource import Resource

__all__ = ["Applied", "Deleted", "Event", "Follower", "Synced", "Trim", "watch"]

_LOG = logging.getLogger("weave.kube")


async def watch(
    client: Client,
    resource: Resource,
    trim: Trim,
    *,
    namespace: str = "",
    query: Mapping[str, str] | None = None,
    follower: Follower | None = None,
    rng: Random | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    log: logging.Logger = _LOG,
) -> AsyncGenerator[Event, None]:
    """`query`: labelSelector, fieldSelector. `follower`: one of your own, to look at how it goes (made with `trim`)."""
    follower = follower or Follower(trim, rng or Random())
    while True:
        step = follower.next()
        if isinstance(step, Pause):
            await sleep(step.seconds)
            continue
        try:
            if isinstance(step, AskPage):
                page = await client.list(resource, namespace, query=query, limit=step.limit, token=step.token)
                for event in follower.page(page):
                    yield event
            else:
                async with contextlib.aclosing(
                    _events(client, resource, namespace, query, step, follower, clock)
                ) as told:
                    async for event in told:
                        yield event
        except KubeError as error:
            follower.failed(error)
            level = logging.WARNING if follower.failures == 1 else logging.DEBUG
            log.log(level, "[kube] following %s: %s", resource.plural, error)


async def _events(
    client: Client,
    resource: Resource,
    namespace: str,
    query: Mapping[str, str] | None,
    step: AskWatch,
    follower: Follower,
    clock: Callable[[], float],
) -> AsyncGenerator[Event, None]:
    """One watch."""
    lines = client.stream(resource, namespace, {**(query or {}), **step.query}, limit=step.limit)
    async with contextlib.aclosing(lines) as chunks:
        opened = False
        while (chunk := await _next(chunks, follower.silence, resource.path(namespace))) is not None:
            if not opened:
                follower.opened(clock())
                opened = True
            for line in chunk:
                for event in follower.line(line):
                    yield event
    follower.ended(clock())


async def _next(
    chunks: AsyncGenerator[Sequence[bytes], None], silence: float | None, path: str
) -> Sequence[bytes] | None:
    """What comes next, None at the end. Raises KubeError where nothing has come for so many seconds."""
    try:
        async with asyncio.timeout(silence):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise KubeError(f"{path}: no more bookmarks, nor anything else") from error
