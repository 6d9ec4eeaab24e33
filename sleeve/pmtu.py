"""The search for a path's MTU: trust the kernel's number at once, then verify it with probes.

A candidate is probed up to eight times with doubling time-outs; between the largest that was acknowledged and the
smallest that was not, the search halves. Units: bytes of inner IP packet for candidates and `mtu`, bytes of
underlay IP packet for what the kernel reports, bytes of UDP payload for `max_payload`. Source: data plane spec §3.7.
"""

from dataclasses import dataclass

UNKNOWN_MTU = 65535
UNKNOWN_PAYLOAD = 65507
FLOOR = 552
_ATTEMPTS = 8
_FIRST_TIMEOUT = 0.010
ETHERNET_HEADER = 14


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a probe of this many bytes of inner IP packet, and call `expired` after `timeout` seconds."""

    candidate: int
    timeout: float


class PathMtu:
    """One link's path MTU. `overhead`: underlay IP packet minus inner IP packet; `headers`: IP and UDP."""

    def __init__(self, overhead: int, headers: int) -> None:
        self._overhead = overhead
        self._headers = headers
        self.mtu = UNKNOWN_MTU
        self.max_payload = UNKNOWN_PAYLOAD
        self.verified = False
        self._good = 0
        self._bad = 0
        self._candidate: int | None = None
        self._sent = 0

    @property
    def searching(self) -> bool:
        return self._candidate is not None

    def reported(self, path_mtu: int) -> Probe | None:
        """The kernel refused a packet and says what fits."""
        mtu = path_mtu - self._overhead
        if mtu <= 0 or (self._candidate is not None and mtu >= self._candidate):
            return None
        self._good, self._bad = FLOOR, mtu + 1
        self.mtu = mtu
        self.max_payload = path_mtu - self._headers
        self.verified = False
        return self._probe(mtu)

    def acknowledged(self, mtu: int) -> Probe | None:
        """A probe arrived. Others than the current one are old news."""
        if mtu != self._candidate:
            return None
        self._good = mtu
        return self._narrow()

    def expired(self) -> Probe | None:
        """The current probe was not acknowledged in time."""
        if self._candidate is None:
            return None
        if self._sent < _ATTEMPTS:
            return self._again(self._candidate)
        self._bad = self._candidate
        return self._narrow()

    def _narrow(self) -> Probe | None:
        if self._good + 1 >= self._bad:
            self.mtu = self._good
            self.max_payload = self._good + self._overhead - self._headers
            self.verified = True
            self._candidate = None
            return None
        return self._probe((self._good + self._bad) // 2)

    def _probe(self, candidate: int) -> Probe:
        self._candidate = candidate
        self._sent = 0
        return self._again(candidate)

    def _again(self, candidate: int) -> Probe:
        timeout = _FIRST_TIMEOUT * (1 << self._sent)
        self._sent += 1
        return Probe(candidate, timeout)
