"""Nodes as the plan makes them: a planner each over one model, and what becomes of a packet on its way through them."""

from npc.base import Options
from npc.model import Model
from npc.plan import Chain, Change, Count, ElementSet, InSet, Jump, Plan, RangeSet, Set, VerdictMap
from npc.planner import Planner
from npc.simulate import Packet, run
from npc.verdict import Connection


class Nodes:
    """The plans of several nodes, each followed change by change, as a kernel is."""

    def __init__(self, model: Model, *names: str, options: Options | None = None) -> None:
        self.model = model
        self.planners = {name: Planner(model, name, options or Options()) for name in names}
        self.kernels = {name: Plan() for name in names}

    def update(self) -> dict[str, Change]:
        """All nodes follow the model; the change that each one's kernel got."""
        touched = self.model.take()
        changes = {name: planner.update(touched) for name, planner in self.planners.items()}
        for name, change in changes.items():
            apply(self.kernels[name], change)
        return changes

    def passes(self, connection: Connection) -> bool:
        """Whether a packet gets through the nodes of both its ends; what a node sends to itself meets no hook."""
        source, destination = self._place(connection.source), self._place(connection.destination)
        if self.model.node_of(connection.source) and self.model.owner(connection.destination) is None:
            # Whoever it is that policy does not know, the sender may be its own node.
            return True
        here = [name for name in dict.fromkeys((source, destination)) if name in self.kernels]
        for name in here:
            own = self.model.nodes.get(name, frozenset())
            if connection.source in own or connection.destination in own:
                continue
            if not run(self.kernels[name], Packet(connection)).accepted:
                return False
        return True

    def _place(self, address: bytes) -> str:
        """The node of an address; who is not known is a container on one of them."""
        pod = self.model.owner(address)
        return self.model.node_of(address) or next(iter(self.kernels)) if pod is None else pod.node


def apply(plan: Plan, change: Change) -> None:
    """Make a change in a plan as the kernel does in a table: in its order, refusing what a kernel refuses."""
    assert not plan.counters & change.new_counters
    plan.counters |= change.new_counters
    for name, new in change.new_sets.items():
        assert name not in plan.sets
        plan.sets[name] = copy_of(new)
    for name, mapped in change.new_maps.items():
        assert name not in plan.maps
        plan.maps[name] = VerdictMap(name, mapped.key)
    for name, base in change.new_chains.items():
        assert name not in plan.chains
        plan.chains[name] = Chain(name, (), base)
    for name, added in change.added.items():
        into = elements_of(plan, name)
        assert not into & added
        into |= added
    for name, rules in change.rules.items():
        plan.chains[name] = Chain(name, rules, plan.chains[name].base)
    for name, gone in change.unmapped.items():
        for key in gone:
            del plan.maps[name].chains[key]
    for name, led in change.mapped.items():
        assert not plan.maps[name].chains.keys() & led.keys()
        assert plan.chains.keys() >= set(led.values())
        plan.maps[name].chains.update(led)
    for name, removed in change.removed.items():
        from_there = elements_of(plan, name)
        assert from_there >= removed
        from_there -= removed
    for objects, names in (
        (plan.chains, change.gone_chains),
        (plan.maps, change.gone_maps),
        (plan.sets, change.gone_sets),
    ):
        for name in names:
            del objects[name]
    assert plan.counters >= change.gone_counters
    plan.counters -= change.gone_counters
    assert_whole(plan)


def copy_of(new: Set) -> Set:
    """A new set as a transaction makes it: ranges with what is in them, others empty."""
    return new if isinstance(new, RangeSet) else ElementSet(new.name, new.key, set(), new.comment)


def elements_of(plan: Plan, name: str) -> set[bytes]:
    found = plan.sets[name]
    assert isinstance(found, ElementSet)
    return found.elements


def assert_whole(plan: Plan) -> None:
    """Whatever the table refers to is there, and what is there is referred to."""
    chains = {name for mapped in plan.maps.values() for name in mapped.chains.values()}
    sets: set[str] = set()
    counters: set[str] = set()
    for chain in plan.chains.values():
        if chain.base is not None:
            chains.add(chain.name)
        for rule in chain.rules:
            sets |= {each.name for each in rule.matches if isinstance(each, InSet)}
            chains |= {each.chain for each in rule.actions if isinstance(each, Jump)}
            counters |= {each.counter for each in rule.actions if isinstance(each, Count)}
    assert chains == plan.chains.keys()
    # A set that no rule looks into is the other family's half of one that is.
    assert plan.sets.keys() >= sets
    assert {_other_family(name) for name in plan.sets.keys() - sets} <= sets
    assert counters == plan.counters


def _other_family(name: str) -> str:
    kind, dash, stem = name.partition("-")
    return f"{kind[:-1]}{'6' if kind.endswith('4') else '4'}{dash}{stem}"
