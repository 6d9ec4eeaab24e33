"""Owners that cannot be reached, and since when: what an administrator weighs before removing one.

Source: IPAM spec §21 (D8).
"""

from collections.abc import Callable, Iterable

from mesh.names import PeerName


class Absences:
    """Looked at with every tick; in seconds on a clock that never goes back."""

    def __init__(self) -> None:
        self._since: dict[PeerName, float] = {}
        self._now = 0.0

    def look(self, owners: Iterable[PeerName], is_known: Callable[[PeerName], bool], now: float) -> None:
        """Who is missing now."""
        self._now = now
        self._since = {owner: self._since.get(owner, now) for owner in owners if not is_known(owner)}

    def rows(self) -> list[tuple[PeerName, float]]:
        """Who is missing and for how many seconds, the longest first."""
        return sorted(((peer, self._now - since) for peer, since in self._since.items()), key=lambda row: -row[1])
