"""Short ids: 12 bits that stand for a peer in the fast data path.

Peers may claim the same id: the lowest name owns it, the others wait. Whoever loses its own id to a lower name
picks another. Source: mesh spec §9.
"""

from bisect import insort
from random import Random

from mesh.names import PeerName

SHORT_IDS = 4096
_DRAWS = 10


class ShortIds:
    """Who claims which id. `changed` counts how often an id began to mean another peer."""

    __slots__ = ("_claims", "_used", "changed")

    def __init__(self) -> None:
        self._claims: dict[int, list[PeerName]] = {}
        self._used: set[int] = set()
        self.changed = 0

    def owner(self, short_id: int) -> PeerName | None:
        """The peer an id stands for."""
        claims = self._claims.get(short_id)
        return claims[0] if claims else None

    def others(self, short_id: int) -> list[PeerName]:
        """Peers that claim an id and do not own it."""
        return self._claims.get(short_id, [])[1:]

    def add(self, short_id: int, name: PeerName) -> None:
        """A peer claims an id."""
        claims = self._claims.get(short_id)
        if claims is None:
            self._claims[short_id] = [name]
            if short_id in self._used:
                self.changed += 1
            self._used.add(short_id)
            return
        before = claims[0]
        insort(claims, name)
        if claims[0] != before:
            self.changed += 1

    def remove(self, short_id: int, name: PeerName) -> None:
        """A peer gives an id up."""
        claims = self._claims[short_id]
        owned = claims[0] == name
        claims.remove(name)
        if not claims:
            del self._claims[short_id]
        elif owned:
            self.changed += 1

    def choose(self, rng: Random) -> int | None:
        """An id that nobody claims; None if there is none."""
        for _ in range(_DRAWS):
            candidate = rng.randrange(SHORT_IDS)
            if candidate not in self._claims:
                return candidate
        free = [candidate for candidate in range(SHORT_IDS) if candidate not in self._claims]
        return rng.choice(free) if free else None
