"""One sleeve link's state machine: heartbeats, where the peer is, whether fragments pass, how much fits.

No sockets and no clock: events come with the time, effects go to a `LinkEffects`. Only the dialer knows where the
peer listens; the acceptor learns it from the first valid heartbeat, and both follow a peer whose address changes.
Source: data plane spec §3.5 to §3.8.
"""

from enum import IntEnum
from typing import Protocol

from mesh.names import PeerName
from overlay.frames import ETHERNET_HEADER
from sleeve.pmtu import PathMtu, Probe

FAST_HEARTBEAT = 0.5
SLOW_HEARTBEAT = 10.0
HEARTBEAT_TIMEOUT = 60.0
FRAGMENT_TEST_INTERVAL = 300.0
HEARTBEAT_SIZE = ETHERNET_HEADER + 8
FRAGMENT_TEST_SIZE = 60001
PMTU_TRIGGER_SIZE = 60000
_HEADER = bytes(ETHERNET_HEADER)

Address = tuple[str, int]


class Control(IntEnum):
    """Sleeve's private control messages."""

    ESTABLISHED = 1
    FRAGMENTED = 2
    MTU_VERIFIED = 3


class LinkEffects(Protocol):
    """What a link has done for it."""

    def send_special(self, frame: bytes, df: bool) -> None:
        """Send a special frame to the peer's current address, alone in its datagram."""

    def send_control(self, tag: int, payload: bytes) -> None:
        """Send a private control message over the mesh connection."""

    def established(self) -> None:
        """The peer receives us."""

    def failed(self, error: Exception) -> None:
        """The link is dead."""

    def mtu_verified(self, mtu: int) -> None:
        """The search for the path MTU has ended."""

    def moved(self, remote: Address) -> None:
        """The peer is reached here from now on."""


class SleeveTimeoutError(Exception):
    """Nothing was heard of the peer for too long."""

    def __init__(self) -> None:
        super().__init__("timed out waiting for UDP heartbeat")


class SleeveLink:
    """The state of one link. `remote` is the peer's UDP address, None until it is known."""

    def __init__(
        self,
        effects: LinkEffects,
        peer: PeerName,
        connection_uid: int,
        path: PathMtu,
        remote: Address | None,
    ) -> None:
        self._effects = effects
        self.peer = peer
        self._uid = connection_uid.to_bytes(8, "big")
        self.path = path
        self.remote = remote
        self.confirmed = False
        self.established = False
        self.fragments_pass = False
        self._acknowledged = False
        self._interval = FAST_HEARTBEAT
        self._heartbeat_at: float | None = None
        self._timeout_at: float | None = None
        self._fragment_test_at: float | None = None
        self._probe_at: float | None = None

    # --- events ---

    def confirm(self, now: float) -> None:
        """The mesh added the connection."""
        self.confirmed = True
        self._timeout_at = now + HEARTBEAT_TIMEOUT
        if self.remote is not None:
            self._beat(now)

    def special(self, frame: bytes, source: Address, now: float) -> None:
        """A special frame of the peer, for us; what it is shows in its length."""
        if len(frame) == HEARTBEAT_SIZE:
            self._on_heartbeat(frame, source, now)
        elif len(frame) == FRAGMENT_TEST_SIZE:
            if not any(frame):
                self._effects.send_control(Control.FRAGMENTED, b"")
        else:
            self._effects.send_control(Control.MTU_VERIFIED, (len(frame) - ETHERNET_HEADER).to_bytes(2, "big"))

    def control(self, tag: int, payload: bytes, now: float) -> None:
        """A private control message; unknown ones are ignored."""
        if tag == Control.ESTABLISHED:
            self._on_established(now)
        elif tag == Control.FRAGMENTED:
            self.fragments_pass = True
        elif tag == Control.MTU_VERIFIED and len(payload) >= 2:
            self._follow(self.path.acknowledged(int.from_bytes(payload[:2], "big")), now)

    def too_big(self, path_mtu: int, now: float) -> None:
        """The kernel refused a datagram; `path_mtu` bytes of IP packet would have fit."""
        probe = self.path.reported(path_mtu)
        if probe is not None:
            self._follow(probe, now)

    def next_timer(self) -> float | None:
        """When `tick` wants to be called, None for never."""
        times = (self._heartbeat_at, self._timeout_at, self._fragment_test_at, self._probe_at)
        return min((at for at in times if at is not None), default=None)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._timeout_at is not None and now >= self._timeout_at:
            self.stop()
            self._effects.failed(SleeveTimeoutError())
            return
        if self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._beat(now)
        if self._fragment_test_at is not None and now >= self._fragment_test_at:
            self._test_fragments(now)
        if self._probe_at is not None and now >= self._probe_at:
            self._follow(self.path.expired(), now)

    def stop(self) -> None:
        """No timer from now on."""
        self._heartbeat_at = self._timeout_at = self._fragment_test_at = self._probe_at = None

    # --- what follows ---

    def _on_heartbeat(self, frame: bytes, source: Address, now: float) -> None:
        if frame[ETHERNET_HEADER:] != self._uid:
            return
        known = self.remote is not None
        if source != self.remote:
            self.remote = source
            self._effects.moved(source)
        if not known and self.confirmed:
            self._beat(now)
        if not self._acknowledged:
            self._acknowledged = True
            self._effects.send_control(Control.ESTABLISHED, b"")
        self._timeout_at = now + HEARTBEAT_TIMEOUT

    def _on_established(self, now: float) -> None:
        self._interval = SLOW_HEARTBEAT
        if not self.established:
            self.established = True
            if self._heartbeat_at is not None:
                self._heartbeat_at = now + self._interval
            self._effects.established()
        self._test_fragments(now)
        self._effects.send_special(bytes(PMTU_TRIGGER_SIZE), df=True)

    def _beat(self, now: float) -> None:
        self._heartbeat_at = now + self._interval
        self._effects.send_special(_HEADER + self._uid, df=True)

    def _test_fragments(self, now: float) -> None:
        self.fragments_pass = False
        self._fragment_test_at = now + FRAGMENT_TEST_INTERVAL
        self._effects.send_special(bytes(FRAGMENT_TEST_SIZE), df=False)

    def _follow(self, probe: Probe | None, now: float) -> None:
        if probe is not None:
            # Armed before it is sent: sending may report a smaller path at once and lead to the next probe.
            self._probe_at = now + probe.timeout
            self._effects.send_special(bytes(ETHERNET_HEADER + probe.candidate), df=True)
        elif not self.path.searching and self._probe_at is not None:
            self._probe_at = None
            self._effects.mtu_verified(self.path.mtu)
