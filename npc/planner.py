"""The plan of one node, kept up to date: what the model says was touched goes in, the change of the table comes out.

A pod of this node belongs, in each direction, to the class of the set of policies that isolates it. A class has a
chain, which asks each policy's chain and then drops; so a pod that joins a class costs one map element an address.
Policies have chains only while they isolate somebody here, sets live only while such a policy looks into them. The cost
of an update goes with what was touched, and the plan is always the one that a new planner would make.
Source: NPC spec §4.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from npc import base
from npc.compile import compile_rules
from npc.draft import Draft
from npc.known import KnownAddresses
from npc.model import Model, Touched
from npc.naming import Names
from npc.objects import PodKey
from npc.plan import CLASS, POLICY, Chain, Change, Count, Direction, Drop, ElementSet, Jump, Log, Plan, Rule, element
from npc.podsets import Identity, PodSets, User
from npc.policy import PolicyKey


@dataclass(slots=True, eq=False)
class PodClass:
    """The pods of this node that the same policies isolate in a direction; `name` is that of chain and counter."""

    direction: Direction
    policies: tuple[PolicyKey, ...]
    stem: str
    pods: set[PodKey] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Of its chain and its counter."""
        return f"{CLASS}{self.direction.value}-{self.stem}"


ClassKey = tuple[Direction, tuple[PolicyKey, ...]]


@dataclass(slots=True)
class _Local:
    """A pod of this node as the plan has it."""

    addresses: tuple[bytes, ...] = ()
    classes: dict[Direction, PodClass] = field(default_factory=dict)


@dataclass(slots=True)
class _ActivePolicy:
    """A policy that isolates somebody here, in a direction."""

    stem: str
    chain: str
    classes: set[PodClass] = field(default_factory=set)


class Planner:
    """Makes the plan of a node. The first update, with all that a model has touched so far, gives the whole of it."""

    def __init__(self, model: Model, node: str, options: base.Options = base.Options()) -> None:  # noqa: B008
        self._model = model
        self._node = node
        self._draft = Draft()
        self._names = Names()
        self._sets = PodSets(model, node, self._draft)
        self._known = KnownAddresses(model, self._draft) if options.closed else None
        self._locals: dict[PodKey, _Local] = {}
        self._locals_in: dict[str, set[PodKey]] = {}
        self._classes: dict[ClassKey, PodClass] = {}
        self._active: dict[User, _ActivePolicy] = {}
        self._review: set[PodKey] = set()
        for mapped in base.maps():
            self._draft.add_map(mapped)
        for made in base.sets(options):
            self._draft.add_set(made)
        for counter in base.counters(options):
            self._draft.add_counter(counter)
        for chain in base.chains(options):
            self._draft.put_chain(chain)

    @property
    def plan(self) -> Plan:
        """All of the table as it should be now. It is edited by updates; it is not to be edited by others."""
        return self._draft.plan

    def update(self, touched: Touched) -> Change:
        """Follow the model; all that a model's `take` gave must come here, once and in its order."""
        pods = set(touched.pods)
        for namespace in touched.namespaces:
            pods |= self._model.pods_in.get(namespace, set())
        self._sets.place(pods)
        if self._known is not None:
            self._known.update(touched)
        for key in touched.policies:
            pods |= self._locals_in.get(key[0], set())
        fresh: set[User] = set()
        self._settle(pods, fresh)
        for key in touched.policies:
            fresh.update((key, direction) for direction in Direction)
        for user in fresh:
            self._compile(user)
        self._collect()
        self._sets.collect()
        change = self._draft.take()
        self._note_review(change)
        return change

    # --- pods of this node ---

    def _settle(self, keys: Iterable[PodKey], fresh: set[User]) -> None:
        """Bring pods to their addresses and classes: first out of what they left, then into the new."""
        wanted = [(key, *self._wanted(key)) for key in keys]
        for key, addresses, classes in wanted:
            known = self._locals.get(key)
            if known is None:
                continue
            for direction, pod_class in list(known.classes.items()):
                if classes.get(direction) != pod_class.policies:
                    pod_class.pods.discard(key)
                    del known.classes[direction]
                    self._lead(direction, known.addresses, None)
            gone = tuple(each for each in known.addresses if each not in addresses)
            self._lead_all(gone, {})
            self._reach_self(gone, self._draft.remove_element)
        for key, addresses, classes in wanted:
            self._settle_one(key, addresses, classes, fresh)

    def _wanted(self, key: PodKey) -> tuple[tuple[bytes, ...], dict[Direction, tuple[PolicyKey, ...]]]:
        """Addresses of a pod if it is of this node, and the policies that isolate it."""
        pod = self._model.pods.get(key)
        if pod is None or pod.node != self._node:
            return (), {}
        addresses = self._model.addresses(key)
        if not addresses:
            return (), {}
        selecting = self._model.selecting(pod)
        isolating = {
            direction: tuple(each.key for each in selecting if direction in each.rules) for direction in Direction
        }
        return addresses, {direction: keys for direction, keys in isolating.items() if keys}

    def _settle_one(
        self,
        key: PodKey,
        addresses: tuple[bytes, ...],
        classes: dict[Direction, tuple[PolicyKey, ...]],
        fresh: set[User],
    ) -> None:
        known = self._locals.get(key)
        if not addresses:
            if known is not None:
                del self._locals[key]
                self._locals_in[key[0]].discard(key)
                if not self._locals_in[key[0]]:
                    del self._locals_in[key[0]]
            return
        if known is None:
            known = self._locals[key] = _Local()
            self._locals_in.setdefault(key[0], set()).add(key)
        new = tuple(each for each in addresses if each not in known.addresses)
        self._reach_self(new, self._draft.add_element)
        if new:
            self._review.add(key)
        known.addresses = addresses
        for direction, policies in classes.items():
            if direction not in known.classes:
                known.classes[direction] = self._class(direction, policies, fresh)
                known.classes[direction].pods.add(key)
                self._review.add(key)
        self._lead_all(addresses, known.classes)

    def _lead_all(self, addresses: tuple[bytes, ...], classes: dict[Direction, PodClass]) -> None:
        for direction in Direction:
            self._lead(direction, addresses, classes.get(direction))

    def _lead(self, direction: Direction, addresses: tuple[bytes, ...], pod_class: PodClass | None) -> None:
        for address in addresses:
            name = base.ISOLATED[direction][len(address)]
            self._draft.lead(name, address, None if pod_class is None else pod_class.name)

    def _reach_self(self, addresses: tuple[bytes, ...], edit: Callable[[ElementSet, bytes], None]) -> None:
        for address in addresses:
            into = self.plan.sets[base.SELF[len(address)]]
            assert isinstance(into, ElementSet)
            edit(into, element(address, address))

    # --- classes and policies ---

    def _class(self, direction: Direction, policies: tuple[PolicyKey, ...], fresh: set[User]) -> PodClass:
        """The class of these policies, with its chain; policies that isolated nobody here yet are noted as fresh."""
        known = self._classes.get((direction, policies))
        if known is not None:
            return known
        stem = self._names.take(["class", direction.value, [[*each] for each in policies]])
        made = self._classes[direction, policies] = PodClass(direction, policies, stem)
        jumps = []
        for key in policies:
            active = self._active.get((key, direction))
            if active is None:
                active = self._activate((key, direction))
                fresh.add((key, direction))
            active.classes.add(made)
            jumps.append(Rule((), (Jump(active.chain),)))
        self._draft.add_counter(made.name)
        why = f"isolated by {', '.join('/'.join(each) for each in policies)}"
        noted = Rule((), (Count(made.name), Log(f"wnpc:{direction.value}:{stem}")), why)
        self._draft.put_chain(Chain(made.name, (*jumps, noted, Rule((), (Drop(),)))))
        return made

    def _activate(self, user: User) -> _ActivePolicy:
        key, direction = user
        stem = self._names.take(["policy", direction.value, [*key]])
        active = self._active[user] = _ActivePolicy(stem, f"{POLICY}{direction.value}-{stem}")
        return active

    def _compile(self, user: User) -> None:
        """The rules of a policy that isolates somebody here."""
        key, direction = user
        active, policy = self._active.get(user), self._model.policies.get(key)
        if active is None or policy is None:
            return
        held: set[Identity] = set()

        def name(identity: Identity, size: int) -> str:
            held.add(identity)
            return self._sets.name(identity, size)

        rules = compile_rules(policy, direction, name)
        self._sets.hold(user, held)
        before = self.plan.chains.get(active.chain)
        if before is not None and before.rules != rules:
            self._review.update(pod for each in active.classes for pod in each.pods)
        self._draft.put_chain(Chain(active.chain, rules))

    def _collect(self) -> None:
        """Drop classes without pods, and policies without classes."""
        for key in [key for key, pod_class in self._classes.items() if not pod_class.pods]:
            gone = self._classes.pop(key)
            self._names.free(gone.stem)
            self._draft.drop_chain(gone.name)
            self._draft.drop_counter(gone.name)
            for policy in gone.policies:
                self._active[policy, gone.direction].classes.discard(gone)
        for user in [user for user, active in self._active.items() if not active.classes]:
            idle = self._active.pop(user)
            self._names.free(idle.stem)
            self._draft.drop_chain(idle.chain)
            self._sets.hold(user, set())

    # --- what others ask ---

    def _note_review(self, change: Change) -> None:
        """Isolated addresses that may have lost an allowance: their class or its rules changed, or peers left."""
        for name in change.removed:
            for user in self._sets.users(name):
                active = self._active.get(user)
                if active is not None:
                    self._review.update(pod for each in active.classes for pod in each.pods)
        for key in self._review:
            known = self._locals.get(key)
            if known is not None and known.classes:
                change.review.update(known.addresses)
        self._review.clear()

    def policies_of(self, chain: str) -> tuple[PolicyKey, ...]:
        """The policies of a class, by the name of its chain or counter; none if there is no such class."""
        found = (each.policies for each in self._classes.values() if each.name == chain)
        return next(found, ())
