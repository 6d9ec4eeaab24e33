"""Attempts at what was asked for: its answer, with the address held, or what is lacking for one.

An attempt changes the ledger alone and tells nobody; what is lacking the allocator gets, and tries again then.
Source: IPAM spec §11, cure D6 of §21.
"""

from dataclasses import dataclass
from enum import Enum, auto

from ipam.containers import Containers
from ipam.ledger import ANONYMOUS, Ledger
from ipam.operations import Allocate, Claim, Prime
from ipam.ranges import Subnet
from ipam.seams import Cidr, IpamError
from mesh.names import PeerName


class Lack(Enum):
    """What an operation waits for: a ring, free addresses in its subnet, or its address, which a peer owns."""

    RING = auto()
    SPACE = auto()
    ADDRESS = auto()


@dataclass(frozen=True, slots=True)
class Over:
    """The operation is over: with this address (only `Allocate`), or for this reason without."""

    value: Cidr | None = None
    error: IpamError | None = None


Outcome = Over | Lack


class Attempts:
    """At operations of users of this peer, on its ledger."""

    def __init__(self, ourself: PeerName, universe: Subnet, ledger: Ledger, containers: Containers) -> None:
        self._ourself = ourself
        self._universe = universe
        self._ledger = ledger
        self._containers = containers

    def at(self, operation: Prime | Claim | Allocate) -> Outcome:
        """What becomes of it now."""
        if isinstance(operation, Allocate):
            return self._allocate(operation)
        if isinstance(operation, Claim):
            return self._claim(operation)
        return Over() if self._ledger.ring else Lack.RING

    def _allocate(self, operation: Allocate) -> Outcome:
        ident, subnet, ledger = operation.ident, operation.subnet, self._ledger
        for cidr in ledger.holders.of(ident):
            if subnet.holds(cidr.addr):
                self._containers.lives(ident)
                return Over(Cidr(cidr.addr, subnet.prefix_len))
        if not subnet.overlaps(self._universe):
            return Over(error=IpamError(f"range {subnet} out of bounds: {self._universe}"))
        if not ledger.ring:
            return Lack.RING
        taken = ledger.take(ident, subnet, is_container=operation.is_container)
        if taken is None:
            return Lack.SPACE
        self._containers.lives(ident)
        return Over(taken)

    def _claim(self, operation: Claim) -> Outcome:
        ident, cidr, ledger = operation.ident, operation.cidr, self._ledger
        inside = self._universe.holds(cidr.addr)
        holder = ledger.holders.holder(cidr.addr)
        if holder is not None:
            return Over(error=self._claim_held(operation, holder, inside))
        if inside:
            if not ledger.ring:
                return Lack.RING
            number = int(cidr.addr)
            if ledger.ring.owner(number) != self._ourself:
                return Lack.ADDRESS
            if not ledger.space.claim(number, withheld=operation.found):
                return Over(error=IpamError(f"address {cidr} is disputed: 'weave report' says by whom and what to do"))
            self._containers.lives(ident)
        ledger.record(ident, cidr, is_container=operation.is_container)
        return Over()

    def _claim_held(self, operation: Claim, holder: str, inside: bool) -> IpamError | None:
        """The address has a holder: the same one, nobody in particular, or another, which is an error."""
        ident, cidr = operation.ident, operation.cidr
        if ident == holder:
            self._containers.lives(ident)
            if operation.is_container:
                self._ledger.holders.mark_container(ident)
        elif ident != ANONYMOUS:
            if inside:
                by = "already in use" if holder == str(cidr.addr) else f"is already owned by {holder}"
                return IpamError(f"address {cidr} {by}")
            if not self._containers.is_dead(holder):
                return IpamError(f"address {cidr} already in use by {holder}")
            self._ledger.release(holder, cidr.addr)
            self._ledger.record(ident, cidr, is_container=operation.is_container)
        return None
