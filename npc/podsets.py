"""The sets that policy rules look into: pods of a selector, named ports, address blocks, each shared by all who use it.

A set lives as long as somebody uses it. A pod's change touches the sets that it enters or leaves and no others: it is
known which sets each pod is in, and selectors are found by the labels they match.
Source: NPC spec §4.2, §4.3.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from npc.draft import Draft
from npc.model import Model
from npc.naming import Names, Part
from npc.objects import Pod, PodKey
from npc.plan import Direction, ElementSet, Key, RangeSet, element
from npc.policy import NamedPort, PodPeer, PolicyKey
from npc.ranges import Span
from npc.selector import Index, Selector

_KEYS = {4: Key.ADDRESS4, 16: Key.ADDRESS6}
_PORT_KEYS = {4: Key.ADDRESS4_PROTOCOL_PORT, 16: Key.ADDRESS6_PROTOCOL_PORT}
_FAMILY = {4: "4", 16: "6"}
# The scope of selectors that look at all namespaces; no namespace is called so.
_CLUSTER = ""


@dataclass(frozen=True, slots=True)
class PortNames:
    """Named ports: of the pods of this node alone, as destinations of ingress, or of all."""

    local: bool
    ports: tuple[NamedPort, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Ranges of addresses, sorted and disjoint; `size` is the length of an address in bytes."""

    size: int
    spans: tuple[Span, ...]


# Who uses a set: a policy in one direction. What a set stands for.
User = tuple[PolicyKey, Direction]
Identity = PodPeer | PortNames | Blocks


@dataclass(slots=True, eq=False)
class _Shared:
    """A set for each length of an address, who uses it, what it stands for."""

    identity: Identity
    stem: str
    names: dict[int, str]
    sets: dict[int, ElementSet] = field(default_factory=dict)
    users: set[User] = field(default_factory=set)
    # One object for all pods that are in it.
    whole: "_Member" = field(init=False)

    def __post_init__(self) -> None:
        self.whole = (self, ())

    def members(self, pod: Pod) -> Iterator["_Member"]:
        """What a pod is here: itself, or each of its ports that the set is about."""
        if not isinstance(self.identity, PortNames):
            yield self.whole
            return
        for named, number in pod.ports:
            if named in self.identity.ports:
                yield self, (bytes((named.protocol,)), number.to_bytes(2, "big"))


# A set and what follows a pod's address in its keys.
_Member = tuple[_Shared, tuple[bytes, ...]]


@dataclass(slots=True)
class _Place:
    """Where a pod is: its addresses, and what it is in each set."""

    addresses: tuple[bytes, ...]
    members: tuple[_Member, ...]

    def elements(self) -> Iterator[tuple[ElementSet, bytes]]:
        """Each set's key."""
        for address in self.addresses:
            for shared, rest in self.members:
                yield shared.sets[len(address)], element(address, *rest)


class PodSets:
    """All sets but those of the base."""

    def __init__(self, model: Model, node: str, draft: Draft) -> None:
        self._model = model
        self._node = node
        self._draft = draft
        self._names = Names()
        self._shared: dict[Identity, _Shared] = {}
        self._by_name: dict[str, _Shared] = {}
        self._held: dict[User, set[Identity]] = {}
        self._unused: set[Identity] = set()
        self._peers: Index[_Shared] = Index()
        self._declaring: dict[NamedPort, set[_Shared]] = {}
        self._places: dict[PodKey, _Place] = {}

    # --- who uses what ---

    def name(self, identity: Identity, size: int) -> str:
        """The name of a set for addresses of `size` bytes; it is made and filled if there is none."""
        shared = self._shared.get(identity)
        if shared is None:
            shared = self._make(identity)
        return shared.names[size]

    def hold(self, user: User, wanted: set[Identity]) -> None:
        """A user uses these from now on, and nothing else."""
        before = self._held.pop(user, set())
        if wanted:
            self._held[user] = wanted
        for identity in wanted - before:
            self._shared[identity].users.add(user)
        for identity in before - wanted:
            shared = self._shared[identity]
            shared.users.discard(user)
            if not shared.users:
                self._unused.add(identity)

    def users(self, name: str) -> Iterable[User]:
        """Who uses the set of this name."""
        shared = self._by_name.get(name)
        return () if shared is None else shared.users

    def collect(self) -> None:
        """Drop what nobody uses."""
        for identity in self._unused:
            shared = self._shared[identity]
            if not shared.users:
                self._drop(shared)
        self._unused.clear()

    def _make(self, identity: Identity) -> _Shared:
        stem = self._names.take(_key(identity))
        letter = {PodPeer: "p", PortNames: "n", Blocks: "b"}[type(identity)]
        sizes = (identity.size,) if isinstance(identity, Blocks) else (4, 16)
        shared = _Shared(identity, stem, {size: f"{letter}{_FAMILY[size]}-{stem}" for size in sizes})
        self._shared[identity] = shared
        self._by_name.update(dict.fromkeys(shared.names.values(), shared))
        # What is dropped if it stays without a user.
        self._unused.add(identity)
        if isinstance(identity, Blocks):
            self._draft.add_set(_range_set(shared.names[identity.size], identity))
            return shared
        keys = _KEYS if isinstance(identity, PodPeer) else _PORT_KEYS
        for size, name in shared.names.items():
            shared.sets[size] = ElementSet(name, keys[size], comment=_comment(identity))
            self._draft.add_set(shared.sets[size])
        if isinstance(identity, PodPeer):
            self._peers.add(*_scope(identity), shared)
        else:
            for named in identity.ports:
                self._declaring.setdefault(named, set()).add(shared)
        self._fill(shared)
        return shared

    def _fill(self, shared: _Shared) -> None:
        """Put into a new set the pods that have a place; others come when they are placed."""
        found: dict[int, set[bytes]] = {size: set() for size in shared.sets}
        for pod in self._members(shared.identity):
            place = self._places.get(pod.key)
            if place is None:
                continue
            members = tuple(shared.members(pod))
            place.members += members
            for address in place.addresses:
                into = found[len(address)]
                for _, rest in members:
                    into.add(element(address, *rest) if rest else address)
        for size, elements in found.items():
            self._draft.add_elements(shared.sets[size], elements)

    def _members(self, identity: Identity) -> Iterable[Pod]:
        if isinstance(identity, PodPeer):
            return self._model.peers(identity)
        assert isinstance(identity, PortNames)
        keys = {key for named in identity.ports for key in self._model.pods_declaring.get(named, ())}
        pods = (self._model.pods[key] for key in keys)
        return (pod for pod in pods if not identity.local or pod.node == self._node)

    def _drop(self, shared: _Shared) -> None:
        identity = shared.identity
        del self._shared[identity]
        self._names.free(shared.stem)
        for name in shared.names.values():
            del self._by_name[name]
            self._draft.drop_set(name)
        if isinstance(identity, Blocks):
            return
        if isinstance(identity, PodPeer):
            self._peers.discard(*_scope(identity), shared)
        else:
            for named in identity.ports:
                self._declaring[named].discard(shared)
                if not self._declaring[named]:
                    del self._declaring[named]
        for pod in self._members(identity):
            place = self._places.get(pod.key)
            if place is not None:
                place.members = tuple(each for each in place.members if each[0] is not shared)

    # --- where pods are ---

    def place(self, keys: Iterable[PodKey]) -> None:
        """Pods as they are now: take them out of what they left, then put them into what they entered.

        All pods that changed at once are placed at once: one may have the address of another.
        """
        entered: list[tuple[ElementSet, bytes]] = []
        for key in keys:
            before = self._places.pop(key, None)
            after = self._find_place(key)
            if after is not None:
                self._places[key] = after
            old = set() if before is None else {(into.name, what) for into, what in before.elements()}
            new = {} if after is None else {(into.name, what): into for into, what in after.elements()}
            for name, what in old - new.keys():
                self._remove(name, what)
            entered += [(into, what) for (name, what), into in new.items() if (name, what) not in old]
        for into, what in entered:
            self._draft.add_element(into, what)

    def _remove(self, name: str, what: bytes) -> None:
        shared = self._by_name[name]
        self._draft.remove_element(next(each for each in shared.sets.values() if each.name == name), what)

    def _find_place(self, key: PodKey) -> _Place | None:
        addresses = self._model.addresses(key)
        if not addresses:
            return None
        pod = self._model.pods[key]
        found = [*self._peers.matching(pod.namespace, pod.labels)]
        for shared in self._peers.matching(_CLUSTER, pod.labels):
            assert isinstance(shared.identity, PodPeer)
            if self._model.in_namespaces(shared.identity, pod.namespace):
                found.append(shared)
        for named, _ in pod.ports:
            found += [each for each in self._declaring.get(named, ()) if self._counts(each, pod)]
        listed = dict.fromkeys(found)
        return _Place(addresses, tuple(member for shared in listed for member in shared.members(pod)))

    def _counts(self, shared: _Shared, pod: Pod) -> bool:
        assert isinstance(shared.identity, PortNames)
        return not shared.identity.local or pod.node == self._node


def _scope(peer: PodPeer) -> tuple[str, Selector]:
    return (_CLUSTER if peer.namespace is None else peer.namespace), peer.pods


def _range_set(name: str, blocks: Blocks) -> RangeSet:
    size = blocks.size
    listed = tuple((first.to_bytes(size, "big"), last.to_bytes(size, "big")) for first, last in blocks.spans)
    return RangeSet(name, _KEYS[size], listed)


def _comment(identity: PodPeer | PortNames) -> str:
    if isinstance(identity, PodPeer):
        return str(identity)
    where = "of this node" if identity.local else "of the cluster"
    return f"ports {', '.join(str(each) for each in identity.ports)} of pods {where}"


def _key(identity: Identity) -> Part:
    """What an identity is, for its name."""
    if isinstance(identity, PodPeer):
        return ["pods", identity.namespace, _selector_key(identity.namespaces), _selector_key(identity.pods)]
    if isinstance(identity, PortNames):
        return ["ports", str(identity.local), [[each.name, each.protocol.name] for each in identity.ports]]
    return ["block", str(identity.size), [[str(first), str(last)] for first, last in identity.spans]]


def _selector_key(selector: Selector | None) -> Part:
    if selector is None:
        return None
    return [[each.key, each.operator, list(each.values)] for each in selector.requirements]
