"""The addresses that are somebody's, a pod's of any node or a node's: only where others are closed (`--unknown=drop`).

Source: NPC spec §4.5.
"""

from collections import Counter
from collections.abc import Iterable

from npc.base import KNOWN
from npc.draft import Draft
from npc.model import Model, Touched
from npc.objects import PodKey
from npc.plan import ElementSet


class KnownAddresses:
    """The sets of known addresses, followed like all else."""

    def __init__(self, model: Model, draft: Draft) -> None:
        self._model = model
        self._draft = draft
        self._of: dict[PodKey | str, tuple[bytes, ...]] = {}
        # A pod that ends and one that starts may have the same address for a moment.
        self._owners: Counter[bytes] = Counter()

    def update(self, touched: Touched) -> None:
        """Follow pods and nodes."""
        for key in touched.pods:
            self._settle(key, self._model.addresses(key))
        for name in touched.nodes:
            self._settle(name, self._model.nodes.get(name, ()))

    def _settle(self, owner: PodKey | str, addresses: Iterable[bytes]) -> None:
        after = tuple(addresses)
        before = self._of.pop(owner, ())
        if after:
            self._of[owner] = after
        for address in after:
            self._owners[address] += 1
            if self._owners[address] == 1:
                self._draft.add_element(self._set(address), address)
        for address in before:
            self._owners[address] -= 1
            if not self._owners[address]:
                del self._owners[address]
                self._draft.remove_element(self._set(address), address)

    def _set(self, address: bytes) -> ElementSet:
        found = self._draft.plan.sets[KNOWN[len(address)]]
        assert isinstance(found, ElementSet)
        return found
