"""The ring and who holds which addresses, as address allocation keeps them (`ipam.seams.Journal`).

One change is one transaction: ring and holders that a decision changes together are there together.
Source: IPAM spec §14.
"""

from ipam.seams import Change, Cidr, IpamError, JournalError, Owned, Saved
from weave_py.store import Store, StoreError
from weave_py.weave_net import Held


class IpamJournal:
    """The journal in a host's store. Both calls raise JournalError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> Saved | None:
        """What was committed last; None where nothing ever was."""
        try:
            ring, held = self._store.ring(), self._store.owned()
        except StoreError as error:
            raise JournalError(str(error)) from error
        if ring is None and not held:
            return None
        try:
            owned = {
                ident: Owned(who.is_container, tuple(Cidr.parse(cidr) for cidr in who.cidrs))
                for ident, who in held.items()
            }
        except IpamError as error:
            raise JournalError(f"unable to read {self._store.path}: {error}") from error
        return Saved(ring, owned)

    def commit(self, change: Change) -> None:
        """Keep a change: all of it or nothing, on the disk on return."""
        held = {
            ident: None if owned is None else Held(owned.is_container, tuple(map(str, owned.cidrs)))
            for ident, owned in change.owned.items()
        }
        try:
            self._store.commit_addresses(change.ring, held, rejoins=change.rejoins)
        except StoreError as error:
            raise JournalError(str(error)) from error
