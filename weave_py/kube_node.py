"""What this node does with its cluster: at the start, and beside the router for as long as that runs."""

import asyncio
import logging
from typing import TYPE_CHECKING

from host.containers import EXPOSED
from host.links import own_addresses
from ipam.seams import IpamError
from weave_py.exposure import ExposeError
from weave_py.kube_environment import KubeEnvironment
from weave_py.store import Store

if TYPE_CHECKING:
    from weave_py.daemon import Daemon

_AGAIN = 5.0


class Node:
    """This node."""

    def __init__(self, told: KubeEnvironment, log: logging.Logger) -> None:
        self._told = told
        self._log = log

    async def join(self, store: Store) -> tuple[list[str], int]:
        """Who is to be dialled, and how many nodes there are, this one included."""
        peers = list(self._told.peers or ())
        # Whoever is there now is told by the cluster, not by the last run.
        store.set_running(False)
        here = await asyncio.to_thread(own_addresses)
        return peers, len(set(peers) - here) + 1

    async def follow(self, daemon: "Daemon") -> None:
        """Until cancelled."""
        await self._expose(daemon)

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
                        subnet = ipam.subnet(wish.subnet) if wish.subnet else None
                        cidr = await ipam.allocate(EXPOSED, subnet)
                    await daemon.exposure.expose(str(cidr), masquerade=True)
                    self._log.info("This host is %s in the overlay", cidr)
                return
            except (IpamError, ExposeError) as error:
                self._log.error("unable to expose this host: %s; trying again", error)
            await asyncio.sleep(_AGAIN)
