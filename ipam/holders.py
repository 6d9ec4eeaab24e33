"""Who holds which addresses, with what the journal knows of it: every change can be taken back until it is durable.

An address has one holder. Source: IPAM spec §1 ("owned"), §12.
"""

from collections.abc import Mapping

from ipam.seams import Address, Cidr, Owned


class Holders:
    """Identifiers in the order of their first address."""

    def __init__(self, owned: Mapping[str, Owned]) -> None:
        self._owned = dict(owned)
        self._by_address = {cidr.addr: ident for ident, each in owned.items() for cidr in each.cidrs}
        self._unsaved: set[str] = set()
        # What the journal holds of each identifier that was changed since.
        self._saved: dict[str, Owned | None] = {}

    @property
    def owned(self) -> Mapping[str, Owned]:
        return self._owned

    def holder(self, address: Address) -> str | None:
        return self._by_address.get(address)

    def of(self, ident: str) -> tuple[Cidr, ...]:
        """Its addresses, none for an identifier that is not known."""
        each = self._owned.get(ident)
        return () if each is None else each.cidrs

    def is_container(self, ident: str) -> bool:
        each = self._owned.get(ident)
        return each is not None and each.is_container

    def add(self, ident: str, cidr: Cidr, *, is_container: bool) -> None:
        """Give an address that nobody holds. Once a container, always one."""
        self._set(ident, Owned(is_container or self.is_container(ident), (*self.of(ident), cidr)))
        self._by_address[cidr.addr] = ident

    def mark_container(self, ident: str) -> None:
        if not self.is_container(ident):
            self._set(ident, Owned(True, self.of(ident)))

    def remove(self, ident: str, address: Address) -> bool:
        """Take an address from its holder; False where this is not the one."""
        if self._by_address.get(address) != ident:
            return False
        del self._by_address[address]
        left = tuple(cidr for cidr in self.of(ident) if cidr.addr != address)
        self._set(ident, Owned(self.is_container(ident), left) if left else None)
        return True

    def drop(self, ident: str) -> tuple[Cidr, ...]:
        """Take all addresses from an identifier."""
        held = self.of(ident)
        for cidr in held:
            del self._by_address[cidr.addr]
        if held:
            self._set(ident, None)
        return held

    # --- what the journal knows ---

    def unsaved(self) -> dict[str, Owned | None]:
        """What changed since the last time this was asked."""
        changed = {ident: self._owned.get(ident) for ident in self._unsaved}
        self._unsaved.clear()
        return changed

    def saved(self, written: Mapping[str, Owned | None]) -> None:
        """The journal holds this now."""
        for ident, each in written.items():
            if ident in self._unsaved:
                self._saved[ident] = each
            else:
                self._saved.pop(ident, None)

    def restore(self) -> set[str]:
        """Go back to what the journal holds; the identifiers that were changed."""
        for ident, each in self._saved.items():
            if each is None:
                self._owned.pop(ident, None)
            else:
                self._owned[ident] = each
        self._by_address = {cidr.addr: ident for ident, each in self._owned.items() for cidr in each.cidrs}
        changed = set(self._saved)
        self._unsaved.clear()
        self._saved.clear()
        return changed

    def _set(self, ident: str, each: Owned | None) -> None:
        self._saved.setdefault(ident, self._owned.get(ident))
        self._unsaved.add(ident)
        if each is None:
            del self._owned[ident]
        else:
            self._owned[ident] = each
