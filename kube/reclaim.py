"""The registry of peers over the network: to be in it, and to remove those whose nodes are gone.

    registry = Registry(client, Listed("7a:…", "node-1"))
    await registry.lacks_us()                         whether somebody removed us while we were away
    await registry.consensus(nodes)                   for a router without a ring: N of `consensus=N`
    await registry.add()                              list us
    await registry.reclaim(remove_peer)               what is left of nodes that are gone; True: nothing is left to do
    await registry.founded()                          there is a ring

Whoever removes a peer holds a lock while it does, an annotation which nodes of 2.8 honour too. Every change is a PUT of
what was read with one thing changed; who comes too late (409) reads again. The object is made if need be.
All raise KubeError. Source: Kubernetes and CNI spec §3.1, §4.2-§4.4.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from kube import registry
from kube.client import Client
from kube.errors import ApiError
from kube.peers import name_of
from kube.registry import Listed, Ring
from kube.resource import CONFIG_MAPS, NODES, Object

_LOG = logging.getLogger("weave.kube")
# Seconds after which who came too late tries again: from the first to twice it.
_AGAIN = 2.0
_PASSES = 3

Change = Callable[[Object], Object | None]


class Registry:
    """`own`: our peer name and our node's name. `reachable`: whether a peer is connected to us, directly or not."""

    def __init__(
        self,
        client: Client,
        own: Listed,
        *,
        reachable: Callable[[str], bool] = lambda peer: False,
        rng: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        log: logging.Logger = _LOG,
    ) -> None:
        self.own = own
        self._client = client
        self._reachable = reachable
        self._rng = rng or Random()
        self._sleep = sleep
        self._log = log

    async def lacks_us(self) -> bool:
        """Whether others are listed and we are not: they have what we owned, and our state counts no more.

        A list without anybody says nothing: whoever removes peers is in it.
        """
        peers = registry.listed(await self._read())
        return bool(peers) and all(entry.peer != self.own.peer for entry in peers)

    async def consensus(self, nodes: Sequence[Object]) -> int:
        """N of `--ipalloc-init consensus=N`, ours included; recorded by the first who asks. Before `add`."""

        def record(document: Object) -> Object | None:
            if not registry.begins_ring(document, self.own):
                return None
            return registry.with_ring(document, Ring(registry.router_count(nodes), founded=False))

        return registry.consensus(await self._change(record), nodes)

    async def founded(self) -> None:
        """There is a ring: nobody is to begin another one."""

        def record(document: Object) -> Object | None:
            said = registry.ring(document) or Ring(0, founded=False)
            return None if said.founded else registry.with_ring(document, Ring(said.nodes, founded=True))

        await self._change(record)

    async def add(self) -> None:
        """List us, unless we are."""
        await self._change(lambda document: registry.with_peer(document, self.own))

    async def reclaim(self, remove_peer: Callable[[str], Awaitable[None]]) -> bool:
        """Have the router take over what departed peers owned, and take them off the list.

        False: some are left, because somebody else is at it or because they are still connected; ask again later.
        """
        for _ in range(_PASSES):
            document = await self._read()
            nodes = {name_of(node) for node in await self._client.list_all(NODES)}
            if self.own.node not in nodes:
                self._log.warning("[kube] no node is called %r: whose nodes are gone is not to be told", self.own.node)
                return False
            gone = registry.departed(document, self.own, nodes)
            if not gone:
                if registry.holds_locks(document, self.own.peer):
                    # We ended between two changes, once.
                    await self._change(lambda found: registry.without_locks_of(found, self.own.peer))
                return True
            done = [await self._remove(entry, remove_peer) for entry in gone]
            if not any(done):
                return False
        return False

    # --- inside ---

    async def _remove(self, gone: Listed, remove_peer: Callable[[str], Awaitable[None]]) -> bool:
        """Whether it was for us to do."""
        if self._reachable(gone.peer):
            self._log.info("[kube] %s of node %s, which is gone, is still connected", gone.peer, gone.node)
            return False
        if not await self._locked(gone):
            return False
        if any(entry.peer == gone.peer for entry in registry.listed(await self._read())):
            await remove_peer(gone.peer)
            self._log.info("[kube] what %s of node %s owned is ours", gone.peer, gone.node)
        document = await self._change(lambda found: registry.without_locks_of(found, gone.peer))
        document = await self._change(lambda found: registry.without_peer(found, gone.peer), document)
        await self._change(lambda found: registry.without_lock(found, gone.peer), document)
        return True

    async def _locked(self, gone: Listed) -> bool:
        """Whether the lock is ours."""
        document = await self._read()
        holder = registry.lock_holder(document, gone.peer)
        if holder == self.own.peer:
            return True
        if holder and any(entry.peer == holder for entry in registry.listed(document)):
            return False
        try:
            await self._write(registry.with_lock(document, gone.peer, self.own.peer))
        except ApiError as error:
            if not error.conflict:
                raise
            return False
        return True

    async def _change(self, change: Change, document: Object | None = None) -> Object:
        """The object with that change, once it is written; None of it: as it was read. `document`: as read before."""
        while True:
            if document is None:
                document = await self._read()
            changed = change(document)
            if changed is None:
                return document
            try:
                return await self._write(changed)
            except ApiError as error:
                if not error.conflict:
                    raise
            document = None
            await self._sleep(_AGAIN * (1 + self._rng.random()))

    async def _write(self, document: Object) -> Object:
        return await self._client.update(CONFIG_MAPS, document, manager=registry.MANAGER)

    async def _read(self) -> Object:
        """The object, made if it is not there."""
        while True:
            try:
                return await self._client.get(CONFIG_MAPS, registry.NAME, registry.NAMESPACE)
            except ApiError as error:
                if error.status != 404:
                    raise
            meta = {"name": registry.NAME, "namespace": registry.NAMESPACE}
            document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
            try:
                return await self._client.create(CONFIG_MAPS, document, registry.NAMESPACE, manager=registry.MANAGER)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
