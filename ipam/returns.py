"""Which part of ours to give back: a small one, long empty, beside a larger one of a peer that can be reached.

Every request for space may break off a piece, and a token is never removed: without this a ring whose containers come
and go only crumbles. What is given back joins the neighbour's part, so that pieces become fewer each time. It goes to
the larger side only, of equal ones to the lower name, so that two neighbours never swap; and whoever gives keeps much
more than that, so that it need not ask for it soon again. To the peer it is a grant like any other.
Source: IPAM spec §21 (D13).
"""

from collections.abc import Callable, Iterator

from ipam.ranges import Range
from ipam.ring import Ring
from ipam.space import Space
from mesh.names import PeerName

# Seconds for which a piece was empty, and from one to the next.
_IDLE = 600.0
_PAUSE = 60.0
# Free addresses that we keep for each one given back.
_KEPT = 4


class Returns:
    """Looks with every tick, in seconds on a clock that never goes back."""

    def __init__(self, ourself: PeerName) -> None:
        self._ourself = ourself
        self._empty: dict[Range, float] = {}
        self._last = -_PAUSE

    def due(
        self, ring: Ring, space: Space, is_known: Callable[[PeerName], bool], now: float
    ) -> tuple[Range, PeerName] | None:
        """A part to give back now, and to whom."""
        pieces = list(_pieces(ring))
        empty = [piece for piece, owner in pieces if owner == self._ourself and space.free.count(piece) == piece.size]
        self._empty = {piece: self._empty.get(piece, now) for piece in empty}
        if now - self._last < _PAUSE:
            return None
        for index, (piece, _) in enumerate(pieces):
            if now - self._empty.get(piece, now) < _IDLE or space.free.size < (1 + _KEPT) * piece.size:
                continue
            beside = [pieces[at] for at in (index - 1, index + 1) if 0 <= at < len(pieces)]
            larger = [
                (other.size, -owner, owner)
                for other, owner in beside
                if (other.size, -owner) > (piece.size, -self._ourself) and is_known(owner)
            ]
            if larger:
                self._last = now
                return piece, max(larger)[2]
        return None


def _pieces(ring: Ring) -> Iterator[tuple[Range, PeerName]]:
    """The universe in order, in pieces of one owner each."""
    piece: Range | None = None
    last = None
    for span, owner in sorted((span, entry.peer) for entry, span in ring.divided()):
        if piece is not None and last is not None:
            if owner == last:
                piece = Range(piece.start, span.end)
                continue
            yield piece, last
        piece, last = span, owner
    if piece is not None and last is not None:
        yield piece, last
