"""The object in which the peers of a cluster are listed, and who is removing whom. No input or output here.

ConfigMap `kube-system/weave-net` without data; everything is in its annotations, which nodes of Weave Net 2.8 read and
write as well: texts are as theirs, to the byte. One annotation is ours: how many nodes the first ring was begun with,
and whether there is one. 2.8 keeps what it does not know. Source: Kubernetes and CNI spec §4.2, §4.3.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from kube.errors import KubeError
from kube.peers import is_heard, runs_router
from kube.resource import Object

NAMESPACE, NAME = "kube-system", "weave-net"
MANAGER = "kube-peers.weave.works"
_PEERS = f"{MANAGER}/peers"
_RING = "weave-py/ring"
_FOREIGN = re.compile(r"[^A-Za-z0-9\-_./]")


class Listed(NamedTuple):
    """A peer, by the text of its name, and the node on which it runs."""

    peer: str
    node: str


class Ring(NamedTuple):
    """How many nodes the one saw who recorded it first, and whether addresses have owners by now."""

    nodes: int
    founded: bool


def _annotations(document: Object) -> dict[str, str]:
    return document["metadata"].get("annotations") or {}


def _annotated(document: Object, annotations: dict[str, str]) -> Object:
    return {**document, "metadata": {**document["metadata"], "annotations": annotations}}


def listed(document: Object) -> list[Listed]:
    """Raises KubeError where the list cannot be read: it is not for us to begin a new one."""
    text = _annotations(document).get(_PEERS)
    if not text:
        return []
    try:
        return [Listed(str(entry["PeerName"]), str(entry["NodeName"])) for entry in json.loads(text)["Peers"] or []]
    except (ValueError, KeyError, TypeError) as error:
        raise KubeError(f"the list of peers in ConfigMap {NAMESPACE}/{NAME} cannot be read: {text[:80]!r}") from error


def _with_list(document: Object, peers: Sequence[Listed]) -> Object:
    entries = [{"PeerName": peer, "NodeName": node} for peer, node in peers]
    text = json.dumps({"Peers": entries}, separators=(",", ":"), ensure_ascii=False)
    return _annotated(document, {**_annotations(document), _PEERS: text})


def with_peer(document: Object, added: Listed) -> Object | None:
    """None: a peer of that name is listed."""
    peers = listed(document)
    if any(entry.peer == added.peer for entry in peers):
        return None
    return _with_list(document, [*peers, added])


def without_peer(document: Object, peer: str) -> Object:
    return _with_list(document, [entry for entry in listed(document) if entry.peer != peer])


def lock_name(peer: str) -> str:
    """The annotation that says who removes that peer."""
    return f"{MANAGER}/{_FOREIGN.sub('_', peer)}"


def lock_holder(document: Object, peer: str) -> str:
    """Blank: nobody."""
    return _annotations(document).get(lock_name(peer), "")


def with_lock(document: Object, peer: str, holder: str) -> Object:
    return _annotated(document, {**_annotations(document), lock_name(peer): holder})


def without_lock(document: Object, peer: str) -> Object:
    return _annotated(document, {k: v for k, v in _annotations(document).items() if k != lock_name(peer)})


def holds_locks(document: Object, holder: str) -> bool:
    return holder in _annotations(document).values()


def without_locks_of(document: Object, holder: str) -> Object:
    """Whatever a peer was about to remove is anybody's again."""
    return _annotated(document, {k: v for k, v in _annotations(document).items() if v != holder})


def departed(document: Object, own: Listed, nodes: Collection[str]) -> list[Listed]:
    """Listed peers whose node is none of these, or is ours: it came back under another peer name."""
    others = (entry for entry in listed(document) if entry.peer != own.peer)
    return [entry for entry in others if entry.node not in nodes or entry.node == own.node]


def ring(document: Object) -> Ring | None:
    """None: nobody recorded one, or what stands there is not ours."""
    try:
        said = json.loads(_annotations(document).get(_RING, "null"))
        return Ring(int(said["Nodes"]), bool(said["Founded"]))
    except (ValueError, KeyError, TypeError):
        return None


def with_ring(document: Object, said: Ring) -> Object:
    text = json.dumps({"Nodes": said.nodes, "Founded": said.founded}, separators=(",", ":"))
    return _annotated(document, {**_annotations(document), _RING: text})


def begins_ring(document: Object, own: Listed) -> bool:
    """Whether nobody was here before us, as far as is recorded."""
    return ring(document) is None and all(entry == own for entry in listed(document))


def consensus(document: Object, nodes: Sequence[Object]) -> int:
    """N of `--ipalloc-init consensus=N` for a node that has no ring.

    A first ring needs half of the nodes and one more, ours counted. Once there may be one, or whoever counted first
    counted another number, a second ring must not come about while those who have the first are slow to be reached:
    then it takes all nodes that the cluster hears. (Nodes that come later are not among those: enough of them, cut off
    from everybody who has the ring, could still begin another.)

    Source: Kubernetes and CNI spec §3.1 step 3; IPAM spec §2.
    """
    count, said = router_count(nodes), ring(document)
    if said is not None and not said.founded and said.nodes == count:
        return count
    return max(1, 2 * sum(runs_router(node) and is_heard(node) for node in nodes) - 2)


def router_count(nodes: Sequence[Object]) -> int:
    """How many routers there are to be, ours included."""
    return max(1, sum(map(runs_router, nodes)))
