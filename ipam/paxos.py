"""Agreement on the first ring: Paxos by gossip, for one value.

Every elector keeps what it knows of everybody's promises and acceptances, and sends all of it. The value is the names
of those among whom the ring is divided. A process has a number of its own at each start, since it forgets its
promises. Source: IPAM spec §10.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mesh.names import UNKNOWN, PeerName


class Node(NamedTuple):
    """One run of an elector."""

    name: PeerName = UNKNOWN
    uid: int = 0


class Proposal(NamedTuple):
    """Ordered by round, then by proposer. Round 0 is none."""

    round: int = 0
    proposer: Node = Node()


NONE = Proposal()


@dataclass(frozen=True, slots=True)
class Value:
    """The names, in any order, and the proposal in which they came up first."""

    names: tuple[PeerName, ...] = ()
    origin: Proposal = NONE


@dataclass(frozen=True, slots=True)
class Claims:
    """What is known of one elector."""

    promise: Proposal = NONE
    accepted: Proposal = NONE
    value: Value = field(default=Value())


class Paxos:
    """One elector. `quorum` electors must accept; it is set before anything is proposed."""

    def __init__(self, me: Node) -> None:
        self.me = me
        self.quorum = 0
        self._knows: dict[Node, Claims] = {}

    @property
    def knows(self) -> Mapping[Node, Claims]:
        return self._knows

    def learn(self, others: Mapping[Node, Claims]) -> bool:
        """Take over what is newer; whether anything was."""
        changed = False
        for node, claims in others.items():
            before = self._knows.get(node)
            after = claims if before is None else _later(before, claims)
            if after != before:
                self._knows[node] = after
                changed = True
        return changed

    def propose(self) -> None:
        """Begin a round above all that are known."""
        highest = max((max(c.promise.round, c.accepted.round) for c in self._knows.values()), default=0)
        ours = self._knows.get(self.me, Claims())
        self._knows[self.me] = replace(ours, promise=Proposal(highest + 1, self.me))
        if self.quorum == 1:
            self.think()

    def think(self) -> bool:
        """Promise and accept what can be; whether our claims changed."""
        before = self._knows.get(self.me, Claims())
        ours = replace(before, promise=max((c.promise for c in self._knows.values()), default=NONE))
        self._knows[self.me] = ours
        if ours.promise.proposer == self.me:
            promised = [claims for claims in self._knows.values() if claims.promise == ours.promise]
            if self.quorum <= len(promised):
                latest = max(promised, key=lambda claims: claims.accepted)
                value = latest.value if latest.accepted.round else Value(self._names(), ours.promise)
                ours = replace(ours, accepted=ours.promise, value=value)
        for claims in self._knows.values():
            if claims.accepted.round and claims.accepted == ours.promise:
                ours = replace(ours, accepted=claims.accepted, value=claims.value)
                break
        self._knows[self.me] = ours
        return (before.promise, before.accepted, before.value.origin) != (
            ours.promise,
            ours.accepted,
            ours.value.origin,
        )

    def consensus(self) -> tuple[PeerName, ...] | None:
        """The value, once enough have accepted it."""
        counts: dict[Proposal, int] = {}
        for claims in self._knows.values():
            if claims.accepted.round:
                origin = claims.value.origin
                counts[origin] = counts.get(origin, 0) + 1
                if 0 < self.quorum <= counts[origin]:
                    return claims.value.names
        return None

    def _names(self) -> tuple[PeerName, ...]:
        return tuple(sorted({node.name for node in self._knows}))


def _later(one: Claims, other: Claims) -> Claims:
    if other.promise > one.promise:
        one = replace(one, promise=other.promise)
    if other.accepted > one.accepted:
        one = replace(one, accepted=other.accepted, value=other.value)
    return one
