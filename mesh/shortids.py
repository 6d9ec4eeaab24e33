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

    __slots__ = ("_freed", "_others", "_owners", "changed")

    def __init__(self) -> None:
        self._owners: dict[int, PeerName] = {}
        # Ascending; only where there is a collision.
        self._others: dict[int, list[PeerName]] = {}
        self._freed: set[int] = set()
        self.changed = 0

    def owner(self, short_id: int) -> PeerName | None:
        """The peer an id stands for."""
        return self._owners.get(short_id)

    def others(self, short_id: int) -> list[PeerName]:
        """Peers that claim an id and do not own it."""
        return list(self._others.get(short_id, ()))

    def add(self, short_id: int, name: PeerName) -> None:
        """A peer claims an id."""
        owner = self._owners.get(short_id)
        if owner is None:
            self._owners[short_id] = name
            if short_id in self._freed:
                self._freed.remove(short_id)
                self.changed += 1
        elif name < owner:
            self._owners[short_id] = name
            insort(self._others.setdefault(short_id, []), owner)
            self.changed += 1
        else:
            insort(self._others.setdefault(short_id, []), name)

    def remove(self, short_id: int, name: PeerName) -> None:
        """A peer that claimed an id gives it up."""
        others = self._others.get(short_id)
        if self._owners[short_id] != name:
            assert others is not None
            others.remove(name)
        elif others:
            self._owners[short_id] = others.pop(0)
            self.changed += 1
        else:
            del self._owners[short_id]
            self._freed.add(short_id)
        if others is not None and not others:
            del self._others[short_id]

    def choose(self, rng: Random) -> int | None:
        """An id that nobody claims; None if there is none."""
        for _ in range(_DRAWS):
            candidate = rng.randrange(SHORT_IDS)
            if candidate not in self._owners:
                return candidate
        free = [candidate for candidate in range(SHORT_IDS) if candidate not in self._owners]
        return rng.choice(free) if free else None
