"""Holders that are containers: what they hold is free when they are gone for good.

A dead one may start again, so its addresses wait for half a minute. Source: IPAM spec §12, cure D6 of §21.
"""

from collections.abc import Iterable, Mapping

from ipam.holders import Holders
from ipam.seams import Address

_GRACE = 30.0


class Containers:
    """When containers died, in seconds on a clock that never goes back."""

    def __init__(self, holders: Holders) -> None:
        self._holders = holders
        self._dead: dict[str, float] = {}

    def died(self, ident: str, now: float) -> None:
        if self._holders.is_container(ident):
            self._dead[ident] = now

    def lives(self, ident: str) -> None:
        """It started, or asks for something: it is not dead."""
        self._dead.pop(ident, None)

    def is_dead(self, ident: str) -> bool:
        return ident in self._dead

    def expired(self, now: float) -> list[str]:
        """Those that died long ago. They are not dead any more, but gone."""
        gone = [ident for ident, died in self._dead.items() if now - died > _GRACE]
        for ident in gone:
            del self._dead[ident]
        return gone

    def reconcile(self, live: Mapping[str, Iterable[Address]], now: float) -> list[str]:
        """The holders that do not exist on this host. Containers among them count as dead from now on.

        Whoever uses an address that no container has is not known here: such identifiers are only told.
        """
        there = {address for addresses in live.values() for address in addresses}
        orphans = []
        for ident, each in self._holders.owned.items():
            if ident in live:
                self.lives(ident)
                continue
            special = ident.startswith("weave:") or any(str(cidr.addr) == ident for cidr in each.cidrs)
            if special or any(cidr.addr in there for cidr in each.cidrs):
                continue
            orphans.append(ident)
            if each.is_container:
                self._dead.setdefault(ident, now)
        return orphans
