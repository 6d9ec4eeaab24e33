"""How the first ring comes about: by agreement, among peers that were named, or by waiting for others.

Nothing is done until somebody needs the ring. Whoever could found one alone and was given peers first waits a while
for one of them: it may have a ring, and two of them never become one.
Source: IPAM spec §2 (quorum), §10, §11 (establish), §15, cure D11 of §21.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ipam.paxos import Claims, Node, Paxos
from ipam.seams import Mesh
from mesh.names import PeerName, parse_peer_name

# Seconds from the first tick for which nobody founds a ring alone who was given peers.
_GRACE = 30.0


@dataclass(frozen=True, slots=True)
class Init:
    """By consensus of `quorum` (0: guessed), among `seeds`, or by others alone."""

    elector: bool = True
    quorum: int = 0
    seeds: tuple[PeerName, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Init":
        """The value of `--ipalloc-init`, which the settings have checked."""
        mode, _, parameter = text.partition("=")
        if mode == "observer":
            return cls(elector=False)
        if mode == "seed":
            return cls(seeds=tuple(parse_peer_name(name) for name in parameter.split(",")))
        count = int(parameter or 0)
        return cls(quorum=count // 2 + 1 if count else 0)


class Step(NamedTuple):
    """Whether all are to be told our state, and among whom the ring is to be divided, if that is known."""

    tell: bool = False
    names: tuple[PeerName, ...] | None = None


class Founding:
    """One peer's part in it. `waiting`: the ring is being sought."""

    def __init__(self, me: Node, init: Init, mesh: Mesh, log: logging.Logger, *, lost: bool) -> None:
        self.waiting = False
        # Whoever lost what it knew must not found a second ring.
        self.elector = init.elector and not lost
        self.paxos = Paxos(me)
        self.seeds = init.seeds if self.elector else ()
        self._quorum = init.quorum
        self._graced_until: float | None = None
        self._grace = _GRACE
        self._was_alone = False
        self._mesh = mesh
        self._log = log

    def begin(self) -> Step:
        """Somebody needs a ring."""
        if self.seeds:
            return Step(names=self.seeds)
        self.waiting = True
        if self.elector and not self.paxos.quorum:
            self.paxos.quorum = self._quorum or (self._mesh.target_count() + 1) // 2 + 1
            if not self._quorum:
                self._log.info("Assuming quorum size of %d", self.paxos.quorum)
        return self.seek()

    def tick(self, now: float) -> None:
        """Time goes by, in seconds on a clock that never goes back."""
        if self._graced_until is None:
            self._graced_until = now + _GRACE
        self._grace = max(0.0, self._graced_until - now)

    def patience(self) -> float:
        """Seconds for which we still wait for the peers that we were given, rather than found a ring alone."""
        return self._grace if self.waiting and self._is_alone() else 0.0

    def _is_alone(self) -> bool:
        """Whether our own vote is enough, though there should be others."""
        if not self.elector or self.paxos.quorum != 1 or not self._mesh.target_count():
            return False
        return all(name == self.paxos.me.name for name in self._mesh.names())

    def leave_to_others(self) -> None:
        """Found none any more in this run."""
        self.elector, self.seeds, self.waiting = False, (), False

    def seek(self) -> Step:
        """Propose, or ask whoever has a ring for it."""
        alone = self._is_alone()
        if self.patience():
            self._was_alone = True
            return Step()
        if self._was_alone and not alone:
            # Somebody came: if they have a ring, they answer with it before the next tick.
            self._was_alone = False
            return Step(True)
        if self.elector:
            if alone:
                self._log.warning("None of the peers that were given is there: beginning a ring without them")
            self.paxos.propose()
        return Step(True, self._agreed())

    def heard(self, knowledge: Mapping[Node, Claims]) -> Step:
        """What another elector knows."""
        tell = self.elector and self.paxos.learn(knowledge) and self.paxos.think()
        return Step(tell, self._agreed())

    def knowledge(self) -> Mapping[Node, Claims] | None:
        """What other electors should know; an observer says nothing."""
        return self.paxos.knows if self.elector else None

    def _agreed(self) -> tuple[PeerName, ...] | None:
        return self.paxos.consensus() if self.elector else None
