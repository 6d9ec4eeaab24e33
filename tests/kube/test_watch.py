"""A resource followed against the stand-in API server: whatever happens to streams, nobody misses a change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from kube.client import Client
from kube.config import Config
from kube.errors import KubeError
from kube.follower import Follower
from kube.resource import NODES, Object
from kube.watch import Applied, Deleted, watch
from tests.kube.api_server import ApiServer


def trim(node: Object) -> Object:
    return {"name": node["metadata"]["name"], "labels": node["metadata"].get("labels", {})}


@dataclass
class Model:
    """What somebody who listens knows, and what was wrong about what was told."""

    follower: Follower = field(default_factory=lambda: Follower(trim, Random(3)))
    known: dict[str, Object] = field(default_factory=dict)
    clears: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, client: Client) -> None:
        async def soon(seconds: float) -> None:
            await asyncio.sleep(seconds / 100)

        events = watch(client, NODES, trim, follower=self.follower, sleep=soon)
        async with contextlib.aclosing(events) as told:
            async for event in told:
                match event:
                    case Applied(node):
                        assert self.known.get(node["name"]) != node, "told twice"
                        self.known[node["name"]] = node
                    case Deleted(node):
                        assert self.known.pop(node["name"]) == node
                        self.clears += not self.known
                self.news.set()

    async def until(self, holds: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), 0.05)


@contextlib.asynccontextmanager
async def followed() -> AsyncIterator[tuple[ApiServer, Model]]:
    async with ApiServer() as server, Client(Config(server.url)) as client:
        for name in "abc":
            server.objects.put("nodes", {"metadata": {"name": name}})
        model = Model()
        listening = asyncio.create_task(model.listen(client))
        try:
            await model.until(lambda: model.follower.synced and server.watching == 1)
            yield server, model
            assert not listening.done(), listening.exception()
        finally:
            listening.cancel()
            await asyncio.wait([listening])


def put(server: ApiServer, name: str, label: str = "") -> None:
    server.objects.put("nodes", {"metadata": {"name": name, "labels": {"l": label}}})


async def test_changes_arrive() -> None:
    async with followed() as (server, model):
        assert set(model.known) == {"a", "b", "c"}
        put(server, "d")
        server.objects.remove("nodes", "a")
        put(server, "b", "new")
        await model.until(lambda: set(model.known) == {"b", "c", "d"} and model.known["b"]["labels"] == {"l": "new"})
        assert model.follower.lists == 1


Trouble = tuple[Callable[[ApiServer], None], ...]
INTERRUPTIONS: dict[str, Trouble] = {
    "end of the stream": (ApiServer.end_watches,),
    "reset": (ApiServer.reset_watches,),
    "no JSON": (lambda server: server.spoil_watches(b"<html>\n"),),
    "half a line": (lambda server: server.spoil_watches(b'{"type":'), ApiServer.end_watches),
    "a line without end": (lambda server: server.spoil_watches(b"x" * (17 << 20)),),
    "overload": (lambda server: server.fail(429, path="watch=", times=5), ApiServer.end_watches),
    "refused for a while": (lambda server: server.fail(403, path="watch=", times=5), ApiServer.end_watches),
    "dropped": (lambda server: server.drop(path="watch="), ApiServer.end_watches),
}


def befall(server: ApiServer, trouble: Trouble) -> None:
    for order in trouble:
        order(server)


@pytest.mark.parametrize("name", INTERRUPTIONS)
async def test_a_watch_goes_on_where_it_was(name: str) -> None:
    """No new list, nothing missed, nothing told twice."""
    async with followed() as (server, model):
        begun = model.follower.watches
        befall(server, INTERRUPTIONS[name])
        put(server, "d")
        server.objects.remove("nodes", "a")
        await model.until(lambda: set(model.known) == {"b", "c", "d"} and model.follower.watches > begun)
        assert model.follower.lists == 1
        asked = [asked for asked in server.requests if asked.verb == "watch"]
        assert all(asked.query["allowWatchBookmarks"] == "true" for asked in asked)


EXPIRIES: dict[str, Trouble] = {
    "an ERROR event": (ApiServer.expire_watches,),
    "history that is gone": (ApiServer.reset_watches,),
    "410 as an answer": (lambda server: server.fail(410, "Expired", path="watch="), ApiServer.end_watches),
    "500 that does not pass": (lambda server: server.fail(500, path="watch=", times=3), ApiServer.end_watches),
    "a list that fails too": (
        ApiServer.expire_watches,
        lambda server: server.fail(503, path="limit=", times=2),
        lambda server: server.drop(path="limit="),
    ),
}


@pytest.mark.parametrize("name", EXPIRIES)
async def test_a_new_list_tells_differences(name: str) -> None:
    async with followed() as (server, model):
        server.hang(path="watch=", times=1)
        befall(server, EXPIRIES[name])
        await model.until(lambda: server.hanging == 1)
        put(server, "d")
        server.objects.remove("nodes", "a")
        put(server, "b", "new")
        server.objects.compact()
        server.release()
        await model.until(lambda: set(model.known) == {"b", "c", "d"} and server.watching == 1)
        assert model.known["b"]["labels"] == {"l": "new"}
        assert model.follower.lists >= 2 and model.clears == 0


async def test_a_silent_watch_is_noticed() -> None:
    """A server that neither speaks nor ends the stream in time: nothing else tells us that it is gone."""
    async with ApiServer() as server, Client(Config(server.url)) as client:
        begun = asyncio.get_running_loop().time()
        lines = client.stream(NODES, "", {"watch": "true"}, limit=0.3)
        assert await anext(lines) == []
        server.stall_watches()
        put(server, "a")
        with pytest.raises(KubeError, match="no answer in time"):
            await anext(lines)
        assert asyncio.get_running_loop().time() - begun < 10


async def test_bookmarks_that_end_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is connected and mute, long before the watch should be over."""
    monkeypatch.setattr("kube.follower._SILENCE", 0.5)
    async with followed() as (server, model):
        await asyncio.sleep(1)
        assert model.follower.watches == 1, "without bookmarks it may be silent"
        server.bookmark()
        await model.until(lambda: model.follower.silence is not None)
        server.stall_watches()
        put(server, "d")
        await model.until(lambda: "d" in model.known)
        assert (model.follower.lists, model.follower.watches, model.follower.silence) == (1, 2, None)


async def test_random_trouble_ends_in_agreement() -> None:
    """Two hundred changes between faults of all kinds; in the end both know the same."""
    rng = Random(11)
    async with followed() as (server, model):
        for _ in range(200):
            name = rng.choice("abcdefgh")
            if rng.random() < 0.7:
                put(server, name, str(rng.random()))
            elif any(node["metadata"]["name"] == name for node in server.objects.all("nodes")):
                server.objects.remove("nodes", name)
            if rng.random() < 0.15:
                befall(server, rng.choice([*INTERRUPTIONS.values(), *EXPIRIES.values()]))
            if rng.random() < 0.1:
                server.objects.compact()
            if rng.random() < 0.3:
                await asyncio.sleep(0.005)
        put(server, "a", "last")
        names = {node["metadata"]["name"]: trim(node) for node in server.objects.all("nodes")}
        await model.until(lambda: model.known == names)


async def test_pages_of_a_long_list() -> None:
    async with ApiServer() as server, Client(Config(server.url)) as client:
        for number in range(1203):
            server.objects.put("nodes", {"metadata": {"name": f"n{number}"}})
        assert len(await client.list_all(NODES)) == 1203
        assert [asked.query["limit"] for asked in server.requests] == ["500"] * 3
