"""Our node's part in its cluster for as long as the router runs: who is dialled, who is gone, what is said of us.

    await Membership(client, Registry(client, own, reachable=…), router, own_addresses).run()      until cancelled

A node that comes is dialled. When one goes, its peer's addresses are taken over after a random moment, for one of us
does it and all try; then the router dials nobody but those there are. Trouble with the API server costs time, nothing
else. Source: Kubernetes and CNI spec §4.3-§4.5, §8.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from random import Random
from typing import Protocol, TypeVar

from kube import node_status
from kube.backoff import delay
from kube.client import Client
from kube.errors import ApiError, KubeError
from kube.follower import Follower
from kube.node_status import NodeStatus
from kube.peers import Targets, trim_node
from kube.reclaim import Registry
from kube.resource import NODES, Object
from kube.watch import Deleted, watch

_T = TypeVar("_T")
_LOG = logging.getLogger("weave.kube")
# Seconds: at most so long before what a gone node had is taken; between two tries for what was left; between two looks
# at the router's health.
_HASTE = 5.0
_LEFT = 60.0
_LOOK = 5.0


class Router(Protocol):
    """What is asked of the router here."""

    async def connect(self, addresses: Sequence[str], replace: bool) -> None:
        """Dial these, and with `replace` nobody else."""

    async def remove_peer(self, peer: str) -> None:
        """Take over what that peer owned. Raises KubeError where it cannot: it is tried again."""

    def trouble(self) -> str:
        """Why pods here have no connectivity; blank where they have."""

    def has_ring(self) -> bool:
        """Whether addresses have owners."""


class Membership:
    """`own_addresses`: this host's, as texts. `follow_nodes`: whether nodes are dialled, or only watched."""

    def __init__(
        self,
        client: Client,
        registry: Registry,
        router: Router,
        own_addresses: Collection[str],
        *,
        follow_nodes: bool = True,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        log: logging.Logger = _LOG,
    ) -> None:
        self._client = client
        self._registry = registry
        self._router = router
        self._follow_nodes = follow_nodes
        self._rng = rng or Random()
        self._clock = clock
        self._sleep = sleep
        self._log = log
        self._targets = Targets(registry.own.node, own_addresses)
        self._status = NodeStatus()
        self.nodes = Follower(trim_node, self._rng)
        self._departed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; nothing the API server does ends it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._reclaim())
            tasks.create_task(self._tell())
            tasks.create_task(self._record())

    async def _watch(self) -> None:
        """Nodes that come are dialled at once; those that go wait for `_reclaim`."""
        events = watch(self._client, NODES, trim_node, follower=self.nodes, clock=self._clock, sleep=self._sleep)
        async with contextlib.aclosing(events) as told:
            async for event in told:
                if isinstance(event, Deleted):
                    self._departed.set()
                elif self.nodes.synced:
                    await self._dial(dropping=not self._departed.is_set())

    async def _dial(self, *, dropping: bool) -> None:
        if not self._follow_nodes:
            return
        change = self._targets.update(list(self.nodes.objects.values()), dropping=dropping)
        if change is not None:
            addresses, replace = change
            await self._router.connect(addresses, replace)

    async def _reclaim(self) -> None:
        """At the start, and whenever a node went; again after a while where that left something."""
        await self._insist("listing this node's peer", self._registry.add)
        while True:
            self._departed.clear()
            left = not await self._insist("removing peers of nodes that are gone", self._reclaim_once)
            if self.nodes.synced:
                # Nobody who went meanwhile: what that one had comes first.
                await self._dial(dropping=not self._departed.is_set())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._departed.wait(), _LEFT * (1 + self._rng.random()) if left else None)
                await self._sleep(_HASTE * self._rng.random())

    async def _reclaim_once(self) -> bool:
        return await self._registry.reclaim(self._router.remove_peer)

    async def _tell(self) -> None:
        """The node's condition."""
        failures = 0
        own = self._registry.own.node
        while True:
            self._status.health(self._clock(), self._router.trouble())
            condition = self._status.due(self._clock(), self._own_node())
            wait = _LOOK
            if condition is not None:
                try:
                    await node_status.patch(self._client, own, condition, time.time)
                except KubeError as error:
                    failures += 1
                    wait = delay(failures, self._rng, error.retry_after if isinstance(error, ApiError) else None)
                    self._complain("setting the condition of this node", error, failures)
                else:
                    failures = 0
                    self._status.said(self._clock(), condition)
                    self._log.info("[kube] node %s: %s", own, condition.reason)
            await self._sleep(wait)

    def _own_node(self) -> Object | None:
        return self.nodes.objects.get(("", self._registry.own.node)) if self.nodes.synced else None

    async def _record(self) -> None:
        """Once there is a ring, the cluster is to know."""
        while not self._router.has_ring():
            await self._sleep(_LOOK)
        await self._insist("recording that there is a ring", self._registry.founded)

    async def _insist(self, what: str, act: Callable[[], Awaitable[_T]]) -> _T:
        """Until the API server, and the router, let us."""
        failures = 0
        while True:
            try:
                return await act()
            except KubeError as error:
                failures += 1
                self._complain(what, error, failures)
                await self._sleep(
                    delay(failures, self._rng, error.retry_after if isinstance(error, ApiError) else None)
                )

    def _complain(self, what: str, error: Exception, failures: int) -> None:
        self._log.log(logging.WARNING if failures == 1 else logging.DEBUG, "[kube] %s: %s", what, error)
