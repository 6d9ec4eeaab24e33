"""Whom to ask for addresses, and whom not again: one question for a range at a time.

An answer, a refusal or the next tick frees the way for the next question. A peer that refused, or could not be
reached, is asked last for a while: what it is said to have free is a hint, and counts whole ranges.
Source: IPAM spec §8 (candidates), §11.2, cure D13 of §21.
"""

from collections.abc import Iterable, Mapping
from random import Random

from ipam.ranges import Range
from mesh.names import PeerName

_REMEMBERED = 6


class Requests:
    """Questions under way and refusals, counted in ticks."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._tick = 0
        self._asked: dict[Range, PeerName] = {}
        self._refused: dict[tuple[Range, PeerName], int] = {}

    def choose(self, wanted: Range, candidates: Mapping[PeerName, int]) -> PeerName | None:
        """The peer to ask next: at random, rather one that has more; None where we wait for an answer, or for time."""
        if wanted in self._asked:
            return None
        fresh = [peer for peer in candidates if (wanted, peer) not in self._refused]
        ordered = sorted(fresh, key=lambda peer: -candidates[peer] * self._rng.random())
        if not ordered:
            return None
        self._asked[wanted] = ordered[0]
        return ordered[0]

    def asked(self, wanted: Range) -> PeerName | None:
        """Whose answer is awaited."""
        return self._asked.get(wanted)

    def answered(self, peer: PeerName) -> None:
        """A peer sent its ring, which is how it answers."""
        self._asked = {wanted: asked for wanted, asked in self._asked.items() if asked != peer}

    def refused(self, wanted: Range, peer: PeerName) -> None:
        """A peer has nothing there, or cannot be asked."""
        if self._asked.get(wanted) == peer:
            del self._asked[wanted]
        # Also when its ring came first, and was taken for the answer.
        self._refused[wanted, peer] = self._tick

    def tick(self, waiting: Iterable[Range]) -> None:
        """Five seconds are over; `waiting`: the ranges that are still of interest."""
        self._tick += 1
        self._asked.clear()
        still = set(waiting)
        self._refused = {
            key: tick
            for key, tick in self._refused.items()
            if key[0] in still and self._tick - tick < _REMEMBERED
        }
