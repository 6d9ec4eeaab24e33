"""How the first ring comes about: by agreement, among peers that were named, or by waiting for others.

Nothing is done until somebody needs the ring. Source: IPAM spec §2 (quorum), §10, §11 (establish), §15.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ipam.paxos import Claims, Node, Paxos
from ipam.seams import Mesh
from mesh.names import PeerName, parse_peer_name


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

    def seek(self) -> Step:
        """Propose, or ask whoever has a ring for it."""
        if self.elector:
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
