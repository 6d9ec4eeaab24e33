"""When to take over from owners that do not come back, without anybody saying so: never, unless a time is given.

Of all peers one does it: the lowest name among the owners that can be reached, and only while these are more than half
of all owners, so that the smaller side of a partition takes nothing, and of two owners neither does. Only time counts
in which we watched from among the majority: whoever was cut off itself, or slept, has seen nobody missing.
Source: IPAM spec §21 (D8).
"""

from collections.abc import Sequence, Set

from mesh.names import PeerName

# Seconds between two looks after which we cannot tell what was between them: three ticks.
_BLIND = 15.0


class Reclaim:
    """Looks with every tick; `after` is in seconds, None to take nothing ever."""

    def __init__(self, ourself: PeerName, after: float | None) -> None:
        self._ourself = ourself
        self._after = after
        self._watching: float | None = None
        self._looked = 0.0

    def due(
        self, owners: Set[PeerName], missing: Sequence[tuple[PeerName, float]], now: float
    ) -> list[tuple[PeerName, float]]:
        """Of those who are missing, and for how many seconds, whom we are to take over from now."""
        looked, self._looked = self._looked, now
        present = owners - {peer for peer, _ in missing}
        if self._after is None or 2 * len(present) <= len(owners):
            self._watching = None
            return []
        if self._watching is None or now - looked > _BLIND:
            self._watching = now
        if min(present) != self._ourself or now - self._watching <= self._after:
            return []
        return [(peer, seconds) for peer, seconds in missing if seconds > self._after]
