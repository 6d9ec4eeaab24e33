"""What this node does with its cluster: at the start, and beside the router for as long as that runs.

At the start: is our state still worth anything, who else is there, how many are we. Where the API server does not
answer, a node that has a ring goes on with the peers that it knew; one that has none waits, for it would begin a ring
of its own. Source: Kubernetes and CNI spec §3.1, §4.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from host.containers import EXPOSED
from host.links import own_addresses
from ipam.seams import IpamError
from kube.backoff import delay
from kube.client import Client
from kube.config import Config
from kube.errors import KubeError
from kube.membership import Membership
from kube.peers import is_heard, name_of, peer_addresses, trim_node
from kube.reclaim import Registry
from kube.registry import Listed
from kube.resource import NODES, Object
from mesh.names import InvalidPeerNameError, PeerName, format_peer_name, parse_peer_name
from weave_py.exposure import ExposeError
from weave_py.kube_environment import KubeEnvironment
from weave_py.kube_names import follow_pods
from weave_py.store import Store

if TYPE_CHECKING:
    from weave_py.daemon import Daemon

_AGAIN = 5.0
# Seconds for which the API server is asked at the start: with a ring, and without.
_PATIENCE_WITH, _PATIENCE_WITHOUT = 20.0, 120.0
# Set once we were listed: from then on not to be in the list means that somebody removed us.
_FLAG, _LISTED = "peer-reclaim", "ok"


class Node:
    """This node, as the peer `name`. `config`: where the API server is, None where nobody needs to know."""

    def __init__(self, told: KubeEnvironment, config: Config | None, name: PeerName, log: logging.Logger) -> None:
        self._told = told
        self._config = config
        self._own = Listed(format_peer_name(name), told.node)
        self._log = log
        self._rng = Random()

    # --- at the start ---

    async def join(self, store: Store) -> tuple[list[str], int]:
        """Who is to be dialled, and of how many nodes the first ring is. Raises KubeError, StoreError."""
        # Whoever is there now is told by the cluster, not by the last run.
        store.set_running(False)
        here = await asyncio.to_thread(own_addresses)
        if self._config is None:
            given = list(self._told.peers or ())
            return given, len(set(given) - here) + 1
        has_ring = store.ring() is not None
        try:
            async with asyncio.timeout(_PATIENCE_WITH if has_ring else _PATIENCE_WITHOUT), Client(self._config) as api:
                return await self._ask(Registry(api, self._own, log=self._log), api, store, here)
        except TimeoutError:
            if not has_ring:
                raise KubeError("Failed to get peers: the API server does not answer") from None
        known = self._told.peers if self._told.peers is not None else store.direct_peers()
        self._log.error("The API server does not answer: going on with the peers that were known: %s", " ".join(known))
        return list(known), 1

    async def _ask(self, registry: Registry, api: Client, store: Store, here: frozenset[str]) -> tuple[list[str], int]:
        failures = 0
        while True:
            try:
                if store.flag(_FLAG) == _LISTED and await registry.lacks_us():
                    self._forget(store)
                nodes = [trim_node(node) for node in await api.list_all(NODES)]
                peers = self._told.peers
                if peers is None:
                    peers = tuple(peer_addresses(nodes, self._told.node, here))
                count = await registry.consensus(nodes) if store.ring() is None else len(peers) + 1
                store.set_flag(_FLAG, _LISTED)
                return list(peers), count
            except KubeError as error:
                failures += 1
                if failures == 1:
                    self._log.error("Failed to get peers: %s; trying again", error)
                await asyncio.sleep(delay(failures, self._rng))

    def _forget(self, store: Store) -> None:
        """Somebody took over what we owned while we were away: addresses that we gave out are others' to give now."""
        copy = store.forget_addresses("removed")
        self._log.warning("Peer not in list; removing persisted data; a copy of the state is %s", copy)

    # --- beside the router ---

    async def follow(self, daemon: "Daemon") -> None:
        """Until cancelled: the outermost edge of it, which nothing ends."""
        steps = [self._expose]
        if self._config is not None:
            steps.append(self._be_member)
            if self._told.names:
                steps.append(self._name_pods)
        await asyncio.gather(*(self._go_on(step, daemon) for step in steps))

    async def _go_on(self, step: Callable[["Daemon"], Awaitable[None]], daemon: "Daemon") -> None:
        while True:
            try:
                await step(daemon)
                return
            except Exception:
                self._log.exception("unexpected error beside the router; trying again")
            await asyncio.sleep(_AGAIN)

    async def _be_member(self, daemon: "Daemon") -> None:
        assert self._config is not None, "asked only with an API server"
        async with Client(self._config) as api:
            router = MemberRouter(daemon, self._log)
            registry = Registry(api, self._own, reachable=router.reachable, log=self._log)
            here = await asyncio.to_thread(own_addresses)
            member = Membership(api, registry, router, here, follow_nodes=self._told.peers is None, log=self._log)
            router.others = lambda: [node for node in member.nodes.objects.values() if _other(node, self._told.node)]
            await member.run()

    async def _name_pods(self, daemon: "Daemon") -> None:
        assert self._config is not None, "asked only with an API server"
        service, ipam = daemon.parts.services.names, daemon.parts.services.ipam
        assert service is not None and ipam is not None, "the environment asks for both"
        await follow_pods(self._config, self._told.node, service, str(ipam.universe), self._log)

    async def _expose(self, daemon: "Daemon") -> None:
        """This host needs an address of the overlay: its pods' way out. Waits until there is a ring."""
        ipam = daemon.parts.services.ipam
        assert ipam is not None, "IPALLOC_RANGE has a default"
        while True:
            try:
                for wish in self._told.expose:
                    if wish.address is not None:
                        cidr = ipam.cidr(str(wish.address))
                        await ipam.claim(EXPOSED, cidr, no_error_on_unknown=True)
                    else:
                        cidr = await ipam.allocate(EXPOSED, ipam.subnet(wish.subnet) if wish.subnet else None)
                    await daemon.exposure.expose(str(cidr), masquerade=True)
                    self._log.info("This host is %s in the overlay", cidr)
                return
            except (IpamError, ExposeError) as error:
                self._log.error("unable to expose this host: %s; trying again", error)
            await asyncio.sleep(_AGAIN)


class MemberRouter:
    """The router as the cluster's business sees it (`kube.membership.Router`). `others`: other nodes that live."""

    def __init__(self, daemon: "Daemon", log: logging.Logger) -> None:
        self._daemon = daemon
        self._log = log
        self.others: Callable[[], Sequence[Object]] = lambda: ()

    async def connect(self, addresses: Sequence[str], replace: bool) -> None:
        for line in await self._daemon.connect(list(addresses), replace):
            self._log.error("%s", line)

    async def remove_peer(self, peer: str) -> None:
        ipam = self._daemon.parts.services.ipam
        if ipam is None or not ipam.ready:
            # Without a ring nothing would be taken over, and the peer be forgotten all the same.
            raise KubeError("there is no ring yet")
        try:
            count = await ipam.take_over(peer)
        except IpamError as error:
            raise KubeError(str(error)) from error
        self._log.info("[kube] %d IPs taken over from %s", count, peer)

    def trouble(self) -> str:
        """Being alone is none, where no other node lives: pods of this one have each other."""
        if not self.has_ring() or self.others():
            return self._daemon.ready.obstacle()
        return ""

    def has_ring(self) -> bool:
        ipam = self._daemon.parts.services.ipam
        return ipam is not None and ipam.ready

    def reachable(self, peer: str) -> bool:
        """Whether somebody of that name is in the mesh."""
        try:
            return self._daemon.parts.service.router.knows(parse_peer_name(peer))
        except InvalidPeerNameError:
            return False


def _other(node: Object, own: str) -> bool:
    return name_of(node) != own and is_heard(node)
