"""The change between two plans made apart: at a start, where the kernel's table is adopted, and after an audit.

A planner that lives notes its changes as it makes them (`npc.draft`); this compares everything.
"""

from npc.plan import Change, ElementSet, Plan, RangeSet, VerdictMap


def diff(old: Plan, new: Plan) -> Change:
    """What leads from `old` to `new`. Established flows of every isolated address are to be judged again.

    Raises ValueError for what no transaction can change in place: the hook of a chain, the type of a set or map.
    Replace the table then.
    """
    change = Change()
    _chains(change, old, new)
    for name, there in new.sets.items():
        _set(change, old.sets.get(name), there)
    for name, mapped in new.maps.items():
        _map(change, old.maps.get(name), mapped)
        change.review.update(mapped.chains)
    change.gone_sets = set(old.sets) - set(new.sets)
    change.gone_maps = set(old.maps) - set(new.maps)
    change.new_counters = new.counters - old.counters
    change.gone_counters = old.counters - new.counters
    return change


def _chains(change: Change, old: Plan, new: Plan) -> None:
    for name, chain in new.chains.items():
        before = old.chains.get(name)
        if before is None:
            change.new_chains[name] = chain.base
        elif before.base != chain.base:
            raise ValueError(f"chain {name} is at another hook")
        if before is None or before.rules != chain.rules:
            change.rules[name] = chain.rules
    change.gone_chains = set(old.chains) - set(new.chains)


def _set(change: Change, before: ElementSet | RangeSet | None, after: ElementSet | RangeSet) -> None:
    if before is None:
        change.new_sets[after.name] = after
        if isinstance(after, ElementSet) and after.elements:
            change.added[after.name] = set(after.elements)
        return
    if isinstance(before, RangeSet) or isinstance(after, RangeSet):
        if before != after:
            raise ValueError(f"set {after.name} has another content")
        return
    if before.key is not after.key:
        raise ValueError(f"set {after.name} has another type")
    if added := after.elements - before.elements:
        change.added[after.name] = added
    if removed := before.elements - after.elements:
        change.removed[after.name] = removed


def _map(change: Change, before: VerdictMap | None, after: VerdictMap) -> None:
    if before is None:
        change.new_maps[after.name] = after
    elif before.key is not after.key:
        raise ValueError(f"map {after.name} has another type")
    known = {} if before is None else before.chains
    if mapped := {key: chain for key, chain in after.chains.items() if known.get(key) != chain}:
        change.mapped[after.name] = mapped
    if unmapped := {key for key, chain in known.items() if after.chains.get(key) != chain}:
        change.unmapped[after.name] = unmapped
