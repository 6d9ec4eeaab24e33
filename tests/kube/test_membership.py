"""Our node's part in its cluster, against the stand-in API server: who is dialled, who is removed, what is said."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from kube.client import Client
from kube.config import Config
from kube.errors import KubeError
from kube.membership import Membership
from kube.peers import CONDITION, condition_of
from kube.reclaim import Registry
from kube.registry import Listed
from tests.kube.api_server import ApiServer
from tests.kube.nodes import node

OWN, OTHER = Listed("00:00:00:00:00:01", "n1"), Listed("00:00:00:00:00:02", "n2")


@dataclass
class Router:
    """What the router was told, in order."""

    told: list[object] = field(default_factory=list)
    why: str = ""
    ring: bool = True
    refuses: int = 0

    async def connect(self, addresses: Sequence[str], replace: bool) -> None:
        self.told.append((tuple(addresses), replace))

    async def remove_peer(self, peer: str) -> None:
        if self.refuses:
            self.refuses -= 1
            raise KubeError("the router does not want to")
        self.told.append(peer)

    def trouble(self) -> str:
        return self.why

    def has_ring(self) -> bool:
        return self.ring


def put(server: ApiServer, number: int) -> None:
    server.objects.put("nodes", node(f"n{number}", ("InternalIP", f"10.0.0.{number}")))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def member(server: ApiServer, router: Router, *, fast: float = 200.0) -> AsyncIterator[None]:
    """Runs it; its clock and its waits go `fast` times as fast."""
    loop = asyncio.get_running_loop()

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / fast)

    async with Client(Config(server.url)) as client:
        registry = Registry(client, OWN, rng=Random(1), sleep=sleep)
        made = Membership(client, registry, router, (), rng=Random(2), sleep=sleep, clock=lambda: loop.time() * fast)
        running = asyncio.create_task(made.run())
        try:
            yield
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_nodes_come_and_go() -> None:
    async with ApiServer() as server:
        put(server, 1)
        put(server, 2)
        router = Router()
        async with member(server, router):
            async with Client(Config(server.url)) as client:
                await Registry(client, OTHER).add()
            await until(lambda: server.watching == 1 and router.told == [(("10.0.0.2",), False)])
            put(server, 3)
            await until(lambda: router.told[-1] == (("10.0.0.3",), False))
            server.objects.remove("nodes", "n2")
            await until(lambda: len(router.told) >= 4)
            assert router.told[2:] == [OTHER.peer, (("10.0.0.3",), True)]


async def test_a_node_that_went_while_nobody_watched() -> None:
    """Its deletion is no event: a new list shows it."""
    async with ApiServer() as server:
        for number in (1, 2, 3):
            put(server, number)
        router = Router()
        async with member(server, router):
            async with Client(Config(server.url)) as client:
                await Registry(client, OTHER).add()
            await until(lambda: server.watching == 1)
            server.fail(500, path="watch=", times=2)
            server.hang(path="nodes.limit=")
            server.reset_watches()
            server.objects.remove("nodes", "n2")
            server.objects.compact()
            await until(lambda: server.hanging == 1)
            server.release()
            await until(lambda: OTHER.peer in router.told and (("10.0.0.3",), True) in router.told)


async def test_an_address_that_changed_is_dialled_and_the_old_one_is_not() -> None:
    async with ApiServer() as server:
        put(server, 1)
        put(server, 2)
        router = Router()
        async with member(server, router):
            await until(lambda: bool(router.told) and server.watching == 1)
            server.objects.put("nodes", node("n2", ("InternalIP", "10.0.0.22")))
            await until(lambda: router.told[-1] == (("10.0.0.22",), True))


async def test_trouble_with_the_api_server_and_the_router_passes() -> None:
    """At the start everything fails a few times; in the end all is done."""
    async with ApiServer() as server:
        put(server, 1)
        async with Client(Config(server.url)) as client:
            await Registry(client, OTHER).add()
        server.fail(503, times=10)
        server.drop(times=6)
        server.fail(403, "Forbidden", method="PATCH", times=3)
        router = Router(refuses=2)
        async with member(server, router):
            await until(lambda: router.told == [OTHER.peer])
            await until(lambda: condition_of(server.objects.get("nodes", "n1"), CONDITION) is not None)


async def test_the_condition_follows_the_router() -> None:
    async with ApiServer() as server:
        put(server, 1)

        def status() -> str:
            return str((condition_of(server.objects.get("nodes", "n1"), CONDITION) or {}).get("status"))

        router = Router()
        async with member(server, router):
            await until(lambda: status() == "False")
            router.why = "no peer answers"
            await until(lambda: status() == "True")
            condition = condition_of(server.objects.get("nodes", "n1"), CONDITION)
            assert condition is not None and condition["message"] == "no peer answers"
            router.why = ""
            await until(lambda: status() == "False")
            # A node that registers anew has lost it.
            server.objects.remove("nodes", "n1")
            put(server, 1)
            await until(lambda: status() == "False")


async def test_a_ring_is_recorded_once_there_is_one() -> None:
    async with ApiServer() as server:
        put(server, 1)
        router = Router(ring=False)

        def recorded() -> str:
            held = server.objects.get("configmaps", "weave-net", "kube-system")
            return str(held["metadata"].get("annotations", {}).get("weave-py/ring", ""))

        async with member(server, router):
            await until(lambda: server.watching == 1 and bool(server.objects.all("configmaps")))
            assert "true" not in recorded()
            router.ring = True
            await until(lambda: '"Founded":true' in recorded())
