"""Services of several peers in one loop, joined by a mesh that delivers at once: enough to see them work together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random

from ipam.founding import Init
from ipam.ranges import Subnet
from ipam.service import Ipam
from mesh.names import PeerName, format_peer_name
from mesh.seams import GossipError
from tests.ipam.journals import MemoryJournal

UNIVERSE = Subnet.parse("10.32.0.0/24")


class Hub:
    """All peers; `cut` holds those that nobody reaches."""

    def __init__(self) -> None:
        self.peers: dict[int, Ipam] = {}
        self.journals: dict[int, MemoryJournal] = {}
        self.cut: set[int] = set()
        self.errors: list[str] = []
        self.sent: list[tuple[int, int, bytes]] = []
        self._uids = 0

    async def start(self, number: int, init: str = "", universe: Subnet = UNIVERSE, *, lost: bool = False) -> Ipam:
        self._uids += 1
        journal = self.journals.setdefault(number, MemoryJournal())
        ipam = Ipam(
            PeerName(number),
            f"host{number}",
            universe,
            init=Init.parse(init or "consensus"),
            uid=self._uids,
            mesh=Neighbourhood(self, number),
            journal=journal,
            rng=Random(number),
            log=logging.getLogger("hub"),
            lost=lost,
        )
        await ipam.start(Wire(self, number))
        self.peers[number] = ipam
        return ipam

    async def restart(self, number: int, init: str = "", *, lost: bool = False) -> Ipam:
        await self.peers.pop(number).stop()
        return await self.start(number, init, lost=lost)

    def reachable(self, one: int, other: int) -> bool:
        return other in self.peers and one not in self.cut and other not in self.cut

    def others(self, number: int) -> list[int]:
        return [other for other in self.peers if other != number and self.reachable(number, other)]

    def gossip(self) -> None:
        """What every peer says every thirty seconds, to all."""
        for number, ipam in list(self.peers.items()):
            state = ipam.gossip()
            assert state is not None
            for other in self.others(number):
                self.deliver(other, "on_gossip", state)

    def deliver(self, number: int, call: str, *args: object) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, number, call, args)

    def _deliver(self, number: int, call: str, args: tuple[object, ...]) -> None:
        if number in self.peers:
            try:
                getattr(self.peers[number], call)(*args)
            except GossipError as error:
                self.errors.append(str(error))


class Neighbourhood:
    """The mesh as one peer knows it (`ipam.seams.Mesh`)."""

    def __init__(self, hub: Hub, number: int) -> None:
        self._hub = hub
        self._number = number

    def knows(self, name: PeerName) -> bool:
        return name == self._number or self._hub.reachable(self._number, name)

    def nickname(self, name: PeerName) -> str:
        return f"host{name}" if self.knows(name) else ""

    def names(self) -> Iterable[PeerName]:
        return [PeerName(number) for number in [self._number, *self._hub.others(self._number)]]

    def target_count(self) -> int:
        return len(self._hub.others(self._number))


class Wire:
    """The gossip channel of one peer (`mesh.seams.Gossip`)."""

    def __init__(self, hub: Hub, number: int) -> None:
        self._hub = hub
        self._number = number

    def unicast(self, destination: PeerName, message: bytes) -> None:
        if not self._hub.reachable(self._number, destination):
            raise GossipError(f"unknown relay destination: {format_peer_name(destination)}")
        self._hub.sent.append((self._number, destination, message))
        self._hub.deliver(destination, "on_unicast", PeerName(self._number), message)

    def broadcast(self, message: bytes) -> None:
        for other in self._hub.others(self._number):
            self._hub.deliver(other, "on_broadcast", PeerName(self._number), message)

    def neighbours(self, message: bytes) -> None:
        raise AssertionError("allocation does not speak to neighbours")


@asynccontextmanager
async def hub(*inits: str) -> AsyncIterator[Hub]:
    """Peers 1, 2, … with these `--ipalloc-init`; they end when it ends."""
    made = Hub()
    try:
        for number, init in enumerate(inits, 1):
            await made.start(number, init)
        yield made
    finally:
        for journal in made.journals.values():
            journal.trouble = None
            journal.gate.set()
        for ipam in list(made.peers.values()):
            await ipam.stop()
