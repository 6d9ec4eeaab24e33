"""Keeping a forwarding table in step with routes, links and addresses.

Hops to all known peers are written again, as a whole, whenever routes or links change. Trees of floods cost a search
each, so they are written once a source floods, and from then on with every change, so that nothing is asked anew.
Source: data plane spec §6.3.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from mesh.names import PeerName
from overlay.seams import Forwarder, ForwardingTable, Topology


class Link(Protocol):
    """A link to a neighbour, as far as the table is concerned."""

    @property
    def forwarder(self) -> Forwarder | None:
        """What carries its frames now, if anything; it may still decline some."""


class TableWriter:
    """Writes a table. `later` calls something once the current events are done with."""

    def __init__(
        self,
        topology: Topology,
        link: Callable[[PeerName], Link | None],
        table: ForwardingTable,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.table = table
        self._topology = topology
        self._link = link
        self._later = later
        self._pending = False
        self._flooding: dict[PeerName, None] = {}

    def request(self) -> None:
        """Routes or links changed."""
        if not self._pending:
            self._pending = True
            self._later(self._write)

    def flooded(self, source: PeerName) -> None:
        """A frame of `source` is being flooded."""
        if source not in self._flooding and not self._pending and self._topology.knows(source):
            self._flooding[source] = None
            self._write_flood(source)

    def _write(self) -> None:
        self._pending = False
        topology = self._topology
        self.table.routes([(name, self._forwarder(topology.unicast(name))) for name in topology.names()])
        self._flooding = {name: None for name in self._flooding if topology.knows(name)}
        for name in self._flooding:
            self._write_flood(name)

    def _write_flood(self, source: PeerName) -> None:
        hops = [self._forwarder(hop) for hop in self._topology.broadcast(source)]
        known = [hop for hop in hops if hop is not None]
        self.table.flood(source, known if len(known) == len(hops) else None)

    def _forwarder(self, hop: PeerName | None) -> Forwarder | None:
        link = None if hop is None else self._link(hop)
        return None if link is None else link.forwarder


class TwoTables:
    """The kernel's table and sleeve's, written as one (`overlay.seams.ForwardingTable`).

    The bridge gives what it floods to both ports. Each serves its own kind of next hop, so none gets two copies.
    """

    def __init__(self, kernel: ForwardingTable, sleeve: ForwardingTable, ourself: PeerName) -> None:
        self._kernel = kernel
        self._sleeve = sleeve
        self._ourself = ourself

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        self._kernel.address(mac, owner)
        self._sleeve.address(mac, owner)

    def seen(self, mac: bytes) -> float:
        return max(self._kernel.seen(mac), self._sleeve.seen(mac))

    def routes(self, hops: Sequence[tuple[PeerName, Forwarder | None]]) -> None:
        self._kernel.routes(hops)
        self._sleeve.routes(hops)

    def flood(self, source: PeerName, hops: Sequence[Forwarder] | None) -> None:
        self._kernel.flood(source, hops)
        if hops is not None and source == self._ourself:
            hops = [hop for hop in hops if not hop.in_kernel]
        self._sleeve.flood(source, hops)
