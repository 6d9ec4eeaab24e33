"""A plan while it changes: every edit is made in the plan at once and noted in the change that leads there.

Edits that undo each other leave nothing in the change.
"""

from typing import TypeVar

from npc.plan import Chain, Change, ElementSet, Plan, RangeSet, VerdictMap

T = TypeVar("T", str, bytes)


class Draft:
    """Edits a plan in place."""

    def __init__(self) -> None:
        self.plan = Plan()
        self._change = Change()
        self._chains_before: dict[str, Chain | None] = {}
        self._map_before: dict[str, dict[bytes, str | None]] = {}

    def take(self) -> Change:
        """What changed since this was called last."""
        change = self._change
        for name, before in self._chains_before.items():
            self._settle_chain(change, before, self.plan.chains.get(name))
        for name, keys in self._map_before.items():
            self._settle_map(change, name, keys)
        for elements in (change.added, change.removed):
            for name in [name for name, listed in elements.items() if not listed]:
                del elements[name]
        self._change, self._chains_before, self._map_before = Change(), {}, {}
        return change

    # --- chains and counters ---

    def put_chain(self, chain: Chain) -> None:
        """A chain, new or with other rules than before."""
        self._chains_before.setdefault(chain.name, self.plan.chains.get(chain.name))
        self.plan.chains[chain.name] = chain

    def drop_chain(self, name: str) -> None:
        """No such chain any more; nothing leads there."""
        self._chains_before.setdefault(name, self.plan.chains.get(name))
        del self.plan.chains[name]

    def _settle_chain(self, change: Change, before: Chain | None, after: Chain | None) -> None:
        if after is None:
            if before is not None:
                change.gone_chains.add(before.name)
            return
        if before is None:
            change.new_chains[after.name] = after.base
        if before is None or before.rules != after.rules:
            change.rules[after.name] = after.rules

    def add_counter(self, name: str) -> None:
        """A named counter."""
        self.plan.counters.add(name)
        _toggle(self._change.new_counters, self._change.gone_counters, name)

    def drop_counter(self, name: str) -> None:
        """No such counter any more."""
        self.plan.counters.discard(name)
        _toggle(self._change.gone_counters, self._change.new_counters, name)

    # --- sets ---

    def add_set(self, new: ElementSet | RangeSet) -> None:
        """A set; elements of a hash set are added one by one."""
        self.plan.sets[new.name] = new
        self._change.new_sets[new.name] = new

    def drop_set(self, name: str) -> None:
        """No such set any more, whatever is in it."""
        del self.plan.sets[name]
        self._change.added.pop(name, None)
        self._change.removed.pop(name, None)
        if self._change.new_sets.pop(name, None) is None:
            self._change.gone_sets.add(name)

    def add_element(self, to: ElementSet, element: bytes) -> None:
        """An element that is not there yet."""
        to.elements.add(element)
        self._note(self._change.added, self._change.removed, to.name, element)

    def add_elements(self, to: ElementSet, elements: set[bytes]) -> None:
        """Elements that are not there yet."""
        to.elements |= elements
        back = self._change.removed.get(to.name, set()) & elements
        if back:
            self._change.removed[to.name] -= back
        self._change.added.setdefault(to.name, set()).update(elements - back if back else elements)

    def remove_element(self, of: ElementSet, element: bytes) -> None:
        """An element that is there."""
        of.elements.discard(element)
        self._note(self._change.removed, self._change.added, of.name, element)

    def _note(self, kind: dict[str, set[bytes]], opposite: dict[str, set[bytes]], name: str, element: bytes) -> None:
        _toggle(kind.setdefault(name, set()), opposite.setdefault(name, set()), element)

    # --- maps ---

    def add_map(self, new: VerdictMap) -> None:
        """A map, empty."""
        self.plan.maps[new.name] = new
        self._change.new_maps[new.name] = new

    def lead(self, name: str, key: bytes, chain: str | None) -> None:
        """Where a key of a map leads; None is nowhere."""
        chains = self.plan.maps[name].chains
        self._map_before.setdefault(name, {}).setdefault(key, chains.get(key))
        if chain is None:
            chains.pop(key, None)
        else:
            chains[key] = chain

    def _settle_map(self, change: Change, name: str, keys: dict[bytes, str | None]) -> None:
        chains = self.plan.maps[name].chains
        for key, before in keys.items():
            after = chains.get(key)
            if before == after:
                continue
            if before is not None:
                change.unmapped.setdefault(name, set()).add(key)
            if after is not None:
                change.mapped.setdefault(name, {})[key] = after


def _toggle(kind: set[T], opposite: set[T], item: T) -> None:
    """Note something, unless its opposite was noted: then neither."""
    if item in opposite:
        opposite.discard(item)
    else:
        kind.add(item)
