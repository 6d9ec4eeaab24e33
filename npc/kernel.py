"""The table of network policy in the kernel: written whole or changed, read back, compared with what was meant.

Every write is one transaction: packets meet the old rules or the new ones. The table outlives us and goes on judging.
Methods block (a change of a few elements for less than a millisecond) and belong to one thread at a time; they act in
the namespace of the thread that made the object. Source: NPC spec §4.4, §4.7.
"""

from collections.abc import Collection

from nft import audit
from nft.events import Events
from nft.readback import counters, tables
from nft.ruleset import Transaction
from nft.wire import Channel, NftError
from npc import flows, rules
from npc.plan import POLICY, TABLE, Change, Plan

# Objects that the kernel may refuse one after the other before we give the whole up.
_REFUSALS = 20


class Table:
    """`inet weave_npc`. `refused` names what the kernel did not take of the present plan, with its words."""

    name = TABLE

    def __init__(self) -> None:
        """Raises OSError."""
        self._channel = Channel()
        # Figures are asked for at any time, also while a thread writes.
        self._figures = Channel()
        self.events = Events(self._channel.port)
        self.refused: dict[str, str] = {}

    def close(self) -> None:
        """Leave the table as it is."""
        self.events.close()
        self._channel.close()
        self._figures.close()

    def exists(self) -> bool:
        """Whether there is a table, of ours or of one before us. Raises NftError."""
        return TABLE in tables()

    def replace(self, wanted: Plan) -> None:
        """The whole table, in one transaction; what the kernel refuses of it alone is left out, so that its pods stay
        isolated. Raises NftError where the rest is refused, too; the old table stays then.
        """
        counted = counters(self._channel, TABLE)
        refused: dict[str, str] = {}
        while True:
            try:
                self._channel.commit(rules.whole(wanted, counted, refused).messages)
            except NftError as error:
                if not _can_go(error.name, wanted, refused) or len(refused) >= _REFUSALS:
                    raise
                refused[error.name] = str(error)
                continue
            self.refused = refused
            return

    def apply(self, change: Change, after: Plan) -> None:
        """A change of the plan that is in the kernel. Raises NftError; nothing changed then."""
        self._channel.commit(rules.delta(change, after).messages)

    def audit(self, wanted: Plan) -> list[str]:
        """What is not as it was meant, an object each; empty if nothing. Raises NftError."""
        meant = audit.intended(rules.whole(wanted, None, self.refused).messages)
        return audit.differences(meant, audit.read(self._channel, TABLE))

    def counters(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes of each counter; empty if there is no table. On the event loop. Raises NftError."""
        return counters(self._figures, TABLE)

    def remove(self) -> bool:
        """No table of network policy; whether there was one. Raises NftError."""
        present = self.exists()
        for name in (TABLE, flows.TABLE):
            change = Transaction(name)
            change.delete_table()
            self._channel.commit(change.messages)
        self.refused = {}
        return present


def _can_go(name: str, wanted: Plan, refused: Collection[str]) -> bool:
    """Whether a table without this object is still one that isolates: base chains and classes must be whole."""
    if name in refused:
        return False
    chain = wanted.chains.get(name)
    return name in wanted.sets or (chain is not None and name.startswith(POLICY))
