"""Whether this node is of use to the overlay: what a probe asks for. No input or output here.

A router that answers may still reach nobody. It counts as ready when it has an established connection to one of the
peers that it knows, or knows none; and goes on counting so for a while after the last one ended, since a peer that
restarts is no fault of ours. Addresses must be to be had as well. Source: Kubernetes and CNI spec §8.
"""


class Readiness:
    """`patience`: seconds without an established connection after which we count as cut off; 0 for never."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._reached: float | None = None

    def obstacle(self, known: int, established: int, *, addresses: bool, now: float) -> str:
        """Why we are not ready; blank if we are.

        `known` peers to dial or connected, `established` of them; `addresses`: whether there is a ring; `now` in
        seconds on a clock that never goes back.
        """
        if established or not known:
            self._reached = now
        if not addresses:
            return "addresses are not to be had yet: 'weave status ipam' says what is waited for"
        if not self._patience:
            return ""
        if self._reached is None:
            return f"none of {known} known peers was reached yet"
        if now - self._reached > self._patience:
            return f"none of {known} known peers is reached, for {now - self._reached:.0f} seconds"
        return ""
