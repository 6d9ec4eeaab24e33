"""The cluster as policy sees it: who has which address, which labels, and what selects whom.

Objects come in as the API has them, in any order, and leave a list of what they touched; whoever derives something from
the model (`npc.planner`) takes that list. The state is a function of the objects alone, not of the order in which they
came, so that a model built anew is the same.

An address has one owner at a time. Where several pods claim one, because the new pod was seen before the end of the
old, it is the one that the node itself admitted, then the one created last. What the node says of its own pods
(`admit`, `release`) goes before their status, which comes later.
Source: NPC spec §2, §4.2, §4.5.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from npc import objects, policy
from npc.objects import Document, Pod, PodKey
from npc.policy import NamedPort, PodPeer, Policy, PolicyKey
from npc.selector import Index, Labels, Pair

KINDS = ("Namespace", "Pod", "NetworkPolicy", "Node")
T = TypeVar("T")
K = TypeVar("K")


@dataclass(slots=True)
class Touched:
    """What changed: pods (their labels, addresses, being), namespaces' labels, policies, nodes' addresses."""

    pods: set[PodKey] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    policies: set[PolicyKey] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.pods or self.namespaces or self.policies or self.nodes)


class Model:
    """Namespaces, pods, policies and nodes."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Labels] = {}
        self.pods: dict[PodKey, Pod] = {}
        self.policies: dict[PolicyKey, Policy] = {}
        self.nodes: dict[str, frozenset[bytes]] = {}
        self.pods_in: dict[str, set[PodKey]] = {}
        self.pods_with: dict[Pair, set[PodKey]] = {}
        self.pods_declaring: dict[NamedPort, set[PodKey]] = {}
        self._targets: Index[PolicyKey] = Index()
        self._claims: dict[bytes, tuple[PodKey, ...]] = {}
        self._nodes_at: dict[bytes, set[str]] = {}
        self._admitted: dict[PodKey, tuple[bytes, ...]] = {}
        self._touched = Touched()

    def take(self) -> Touched:
        """What changed since this was called last."""
        touched, self._touched = self._touched, Touched()
        return touched

    def everything(self) -> Touched:
        """All there is, for who begins anew."""
        return Touched(set(self.pods), set(self.namespaces), set(self.policies), set(self.nodes))

    # --- objects of the API ---

    def apply(self, kind: str, document: Document) -> None:
        """An object as it is now, whole or trimmed. Kinds are those of the API."""
        name = document["metadata"]["name"]
        if kind == "Pod":
            self.put(objects.pod(document))
        elif kind == "NetworkPolicy":
            self._apply_policy(policy.parse(document))
        elif kind == "Namespace":
            found = objects.labels(document)
            if self.namespaces.get(name) != found:
                self.namespaces[name] = found
                self._touched.namespaces.add(name)
        elif kind == "Node":
            self._set_node(name, objects.node_addresses(document))

    def delete(self, kind: str, name: str, namespace: str = "", uid: str = "") -> None:
        """An object is gone; with `uid`, only if it is still that one."""
        if kind == "Pod":
            known = self.pods.get((namespace, name))
            if known is not None and uid in ("", known.uid):
                self._forget_pod(known)
        elif kind == "NetworkPolicy":
            self._forget_policy((namespace, name))
        elif kind == "Namespace":
            if self.namespaces.pop(name, None) is not None:
                self._touched.namespaces.add(name)
        elif kind == "Node":
            self._set_node(name, None)

    # --- policies ---

    def _apply_policy(self, new: Policy) -> None:
        known = self.policies.get(new.key)
        if known == new:
            return
        if known is not None:
            self._targets.discard(known.namespace, known.target, known.key)
        self.policies[new.key] = new
        self._targets.add(new.namespace, new.target, new.key)
        self._touched.policies.add(new.key)

    def _forget_policy(self, key: PolicyKey) -> None:
        known = self.policies.pop(key, None)
        if known is not None:
            self._targets.discard(known.namespace, known.target, key)
            self._touched.policies.add(key)

    def refuse(self, key: PolicyKey, error: str) -> None:
        """The kernel does not take this policy: until it changes, it isolates and allows nothing."""
        if key in self.policies:
            self._apply_policy(self.policies[key].refused(error))

    def selecting(self, pod: Pod) -> list[Policy]:
        """The policies that select a pod, by name. None selects host-network and finished pods."""
        if pod.host_network or pod.finished:
            return []
        return [self.policies[key] for key in sorted(self._targets.matching(pod.namespace, pod.labels))]

    # --- pods ---

    def put(self, new: Pod) -> None:
        """A pod as it is now."""
        known = self.pods.get(new.key)
        if known == new:
            return
        before = self._claimed(known)
        if known is not None and known.uid != new.uid:
            if new.created < known.created:
                # A late word about the pod that had this name before.
                return
            self._admitted.pop(new.key, None)
        if known is not None:
            self._unlist(known)
        self.pods[new.key] = new
        self._list(new)
        self._touched.pods.add(new.key)
        self._claim(new.key, before, self._claimed(new))

    def _forget_pod(self, pod: Pod) -> None:
        before = self._claimed(pod)
        del self.pods[pod.key]
        self._admitted.pop(pod.key, None)
        self._unlist(pod)
        self._touched.pods.add(pod.key)
        self._claim(pod.key, before, ())

    def _list(self, pod: Pod) -> None:
        self.pods_in.setdefault(pod.namespace, set()).add(pod.key)
        for pair in pod.labels.items():
            self.pods_with.setdefault(pair, set()).add(pod.key)
        for named, _ in pod.ports:
            self.pods_declaring.setdefault(named, set()).add(pod.key)

    def _unlist(self, pod: Pod) -> None:
        _drop(self.pods_in, pod.namespace, pod.key)
        for pair in pod.labels.items():
            _drop(self.pods_with, pair, pod.key)
        for named, _ in pod.ports:
            _drop(self.pods_declaring, named, pod.key)

    # --- addresses ---

    def admit(self, namespace: str, name: str, uid: str, addresses: Iterable[bytes]) -> bool:
        """A pod of this node is about to start with these addresses. False if this pod is not known (yet).

        `uid` may be empty where the container runtime does not tell it.
        """
        return self._settle(namespace, name, uid, tuple(addresses))

    def release(self, namespace: str, name: str, uid: str) -> bool:
        """The network of a pod of this node is taken down: whatever its status says, it has no address."""
        return self._settle(namespace, name, uid, ())

    def _settle(self, namespace: str, name: str, uid: str, addresses: tuple[bytes, ...]) -> bool:
        pod = self.pods.get((namespace, name))
        if pod is None or uid not in ("", pod.uid):
            return False
        before = self._claimed(pod)
        self._admitted[pod.key] = addresses
        self._touched.pods.add(pod.key)
        self._claim(pod.key, before, self._claimed(pod))
        return True

    def _claimed(self, pod: Pod | None) -> tuple[bytes, ...]:
        if pod is None or pod.host_network or pod.finished:
            return ()
        return self._admitted.get(pod.key, pod.addresses)

    def _claim(self, key: PodKey, before: tuple[bytes, ...], after: tuple[bytes, ...]) -> None:
        """A pod claims other addresses than before, or ranks otherwise among those who claim the same."""
        for address in dict.fromkeys((*before, *after)):
            claimants = self._claims.get(address, ())
            rivals = [each for each in claimants if each != key]
            if address in after:
                rivals.append(key)
            if len(rivals) > 1:
                rivals.sort(key=self._rank, reverse=True)
            if rivals:
                self._claims[address] = tuple(rivals)
            else:
                self._claims.pop(address, None)
            self._touched.pods.update(claimants[:1], rivals[:1])

    def _rank(self, key: PodKey) -> tuple[bool, str, str, PodKey]:
        pod = self.pods[key]
        return key in self._admitted, pod.created, pod.uid, key

    def owner(self, address: bytes) -> Pod | None:
        """The pod that has an address now."""
        claimants = self._claims.get(address)
        return None if claimants is None else self.pods[claimants[0]]

    def addresses(self, key: PodKey) -> tuple[bytes, ...]:
        """The addresses of a pod that are its own now; none if it is gone, finished, or on the host's network."""
        claimed = self._claimed(self.pods.get(key))
        return tuple(address for address in claimed if self._claims[address][0] == key)

    def node_of(self, address: bytes) -> str:
        """The node that has an address; empty if none has."""
        return min(self._nodes_at.get(address, ("",)))

    def _set_node(self, name: str, addresses: frozenset[bytes] | None) -> None:
        """A node with its addresses; None if it is gone."""
        before = self.nodes.pop(name, None)
        if addresses is not None:
            self.nodes[name] = addresses
        if before == addresses:
            return
        for address in before or ():
            _drop(self._nodes_at, address, name)
        for address in addresses or ():
            self._nodes_at.setdefault(address, set()).add(name)
        self._touched.nodes.add(name)

    # --- peers ---

    def is_peer(self, peer: PodPeer, pod: Pod) -> bool:
        """Whether a pod is one of the peers. The labels of a namespace that is not known match nothing."""
        if not self.in_namespaces(peer, pod.namespace):
            return False
        return peer.pods.matches(pod.labels)

    def in_namespaces(self, peer: PodPeer, namespace: str) -> bool:
        """Whether pods of a namespace may be peers."""
        if peer.namespaces is None:
            return namespace == peer.namespace
        known = self.namespaces.get(namespace)
        return known is not None and peer.namespaces.matches(known)

    def peers(self, peer: PodPeer) -> Iterator[Pod]:
        """All pods that are peers, whether they have an address or not."""
        for key in self._candidates(peer):
            pod = self.pods[key]
            if self.is_peer(peer, pod):
                yield pod

    def _candidates(self, peer: PodPeer) -> Iterable[PodKey]:
        pair = peer.pods.pair()
        if peer.namespace is not None:
            return self.pods_in.get(peer.namespace, ())
        if pair is not None:
            return self.pods_with.get(pair, ())
        selected = (name for name in self.namespaces if self.in_namespaces(peer, name))
        return (key for name in selected for key in self.pods_in.get(name, ()))


def _drop(index: dict[T, set[K]], at: T, key: K) -> None:
    found = index[at]
    found.discard(key)
    if not found:
        del index[at]
