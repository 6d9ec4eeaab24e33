"""How long to wait after failures: twice as long each time up to a limit, and never all clients at the same moment."""

from random import Random

_FIRST = 1.0
_LONGEST = 30.0
# What a server may ask for at most, seconds.
_OBEYED = 120.0


def delay(failures: int, rng: Random, retry_after: float | None = None) -> float:
    """Seconds after that many failures in a row (1 or more); not before the server wants to hear from us."""
    longest = min(_LONGEST, _FIRST * 2.0 ** min(failures - 1, 10))
    waiting = longest * (0.5 + rng.random() / 2)
    if retry_after is None:
        return waiting
    return max(waiting, min(retry_after, _OBEYED) + rng.random())
