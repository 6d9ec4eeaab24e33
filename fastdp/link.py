"""One fast link's state machine: heartbeats, their acknowledgement, and whether the link may carry frames.

Between our own nodes heartbeats come every two seconds, twelve without any mean silence, and each side tells the other
whether it hears it, so a path that works one way only is left by both; two in a row end the silence. It is told by the
control connection, which passes where the path works one way only, and in heartbeats, since that connection may wait
for as long again as nothing passed. Whoever missed three heartbeats asks for one every second, so that a path which
merely loses some is not given up. Towards Weave Net 2.8 the times are 2.8's: ten seconds, a minute, and the first
heartbeat heals. A heartbeat is as long as the longest frame and must not be fragmented, so a path with too small an MTU
shows itself; one that the kernel refuses says so at once. No sockets and no clock. Source: data plane spec §4.3, §4.4.
"""

from typing import Protocol

from fastdp.wire import IPV6_MORE, OVERHEAD, Cause, Control, is_heartbeat, said_heard

FAST_HEARTBEAT = 0.5
SLOW_HEARTBEAT = 10.0
TIMEOUT = 60.0
OUR_HEARTBEAT = 2.0
OUR_TIMEOUT = 12.0
# Two heartbeats within this end a silence between our own nodes; as many without a refusal end one for their size.
_CLOSE = 2.5 * OUR_HEARTBEAT
_PASSED = 2
_ASK = 1.0


class LinkEffects(Protocol):
    """What a link has done for it."""

    def beat(self, heard: bool | None) -> int | None:
        """Send a heartbeat; the path's MTU (octets of IP packet) where the kernel finds it too long, else None.

        `heard` is what it says of the peer's.
        """

    def send_control(self, tag: int, payload: bytes) -> None: ...

    def established(self) -> None: ...

    def healthy(self, health: bool) -> None: ...

    def fits_again(self) -> None:
        """Heartbeats pass that were too long before."""

    def renew_key(self) -> None:
        """Nothing passes on an encrypted link: perhaps somebody removed its keys from the kernel."""


class FastLink:
    """The state of one link; `ours` says that the peer speaks HEALTH. `mtu` of a frame's content, in octets.

    `esp` is what encryption adds to a heartbeat, in octets; None in clear. Encrypted, nothing is sent before `keyed`.
    """

    def __init__(
        self,
        effects: LinkEffects,
        connection_uid: int,
        mtu: int,
        *,
        ours: bool,
        port: int,
        v6: bool = False,
        esp: int | None = None,
    ) -> None:
        self._effects = effects
        self._uid = connection_uid
        # Octets of IP packet that the path has to take.
        self.needs = mtu + OVERHEAD + (IPV6_MORE if v6 else 0) + (esp or 0)
        self._ours = ours
        self._where = f"on UDP port {port}" if esp is None else "by ESP, IP protocol 50"
        self._keyed = esp is None
        self._encrypted = esp is not None
        self._renewed = 0.0
        self._beat_at: float | None = None
        self._timeout_at: float | None = None
        self._ask_at: float | None = None
        self._beaten = 0.0
        self._acknowledged = False
        self._receiving = True
        self._heard = True
        self._barred = self._barred_there = Cause.NOTHING
        self._healthy = True
        self._last_beat: float | None = None
        # When a heartbeat last said that ours are received.
        self._said_heard: float | None = None
        self._passed = 0
        self.path_mtu: int | None = None
        self.confirmed = False
        self.established = False
        self.changes = 0

    @property
    def trouble(self) -> str:
        """Why it carries nothing now; empty if it may."""
        if self.path_mtu is not None:
            return f"path MTU {self.path_mtu} < {self.needs}"
        if self._barred:
            return "frames have to be relayed here, which this kernel does not do without BPF"
        if self._barred_there:
            return "the peer has to relay frames, which its kernel does not do without BPF"
        if not self._keyed:
            return "encrypted, and the peer has sent no key for ESP"
        if not self._receiving:
            return f"nothing is received {self._where}: is it blocked, or the path MTU < {self.needs}?"
        if not self._heard:
            return f"the peer receives nothing {self._where}: is it blocked, or the path MTU < {self.needs}?"
        if not self.established:
            return f"no answer yet {self._where}"
        return ""

    # --- events ---

    def confirm(self, now: float) -> None:
        """The mesh added the connection."""
        self.confirmed = True
        self._timeout_at = now + self._patience
        self._renewed = now
        if self._keyed:
            self._beat(now)

    def keyed(self, now: float) -> None:
        """The peer's key is in the kernel, for the first time or again."""
        self._keyed = True
        self._beat(now)

    def heartbeat(self, frame: bytes, now: float) -> bool:
        """A special frame of the peer; whether it was a heartbeat of this connection."""
        if not self.confirmed or not is_heartbeat(frame, self._uid):
            return False
        if not self._acknowledged:
            self._acknowledged = True
            self._effects.send_control(Control.HEARTBEAT_ACK, b"")
        close = self._last_beat is not None and now - self._last_beat <= _CLOSE
        self._last_beat = now
        self._timeout_at = now + self._patience
        self._ask_at = now + OUR_TIMEOUT / 2 if self._ours else None
        if self._ours:
            self._hear(said_heard(frame), now)
        if not self._receiving and (close or not self._ours):
            self._receive(True, now)
        return True

    def _hear(self, said: bool | None, now: float) -> None:
        if said is not None:
            self._said_heard = now if said else None
            self._heard = said
            self._judge()

    def control(self, tag: int, payload: bytes, now: float) -> None:
        """A private control message; unknown ones are ignored."""
        if tag == Control.HEARTBEAT_ACK:
            if self._keyed and not self.established:
                self.established = True
                self._beat_at = now + self._interval
                self._effects.established()
        elif tag == Control.HEALTH and payload and self._ours:
            self._barred_there = Cause.RELAYS if payload[1:2] == bytes((Cause.RELAYS,)) else Cause.NOTHING
            # What a heartbeat said is not older than a message that may have waited.
            lately = self._said_heard is not None and now - self._said_heard <= _CLOSE
            self._heard = bool(payload[0]) or bool(self._barred_there) or lately
            self._judge()
            if self._beat_at is not None:
                # Who hears us tells it again to ask for a heartbeat.
                soon = max(now, self._beaten + FAST_HEARTBEAT) if self._heard else now + OUR_HEARTBEAT
                self._beat_at = min(self._beat_at, soon)

    def bar(self, cause: Cause) -> None:
        """The link must not be used, or may be again, though it works; the peer hears of it."""
        if cause != self._barred:
            self._barred = cause
            self._tell()

    def next_timer(self) -> float | None:
        """When `tick` wants to be called, None for never."""
        return min((at for at in (self._beat_at, self._timeout_at, self._ask_at) if at is not None), default=None)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._timeout_at is not None and now >= self._timeout_at:
            # Armed again by the next heartbeat.
            self._timeout_at = self._ask_at = None
            self._receive(False, now)
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = now + _ASK
            self._tell()
        if self._beat_at is not None and now >= self._beat_at:
            self._beat(now)

    def stop(self) -> None:
        """No timer from now on."""
        self._beat_at = self._timeout_at = self._ask_at = None

    # --- what follows ---

    @property
    def _patience(self) -> float:
        return OUR_TIMEOUT if self._ours else TIMEOUT

    @property
    def _interval(self) -> float:
        if not self.established and self._receiving:
            return FAST_HEARTBEAT
        # What is on hold is tried more often than 2.8 does, to come back soon.
        return OUR_HEARTBEAT if self._ours or not self._healthy else SLOW_HEARTBEAT

    def _beat(self, now: float) -> None:
        self._beaten = now
        limit = self._effects.beat(self._receiving if self._ours else None)
        if limit is not None and limit < self.needs:
            self._passed = 0
            self.path_mtu = limit
        elif self.path_mtu is not None:
            self._passed += 1
            if self._passed >= _PASSED:
                self.path_mtu = None
                self._effects.fits_again()
        self._judge()
        self._beat_at = now + self._interval
        silent = not (self._receiving and self._heard)
        if self._encrypted and self._ours and silent and now - self._renewed >= OUR_TIMEOUT:
            self._renewed = now
            self._effects.renew_key()

    def _receive(self, receiving: bool, now: float) -> None:
        self._receiving = receiving
        self._tell()
        if self._ours and self._beat_at is not None:
            self._beat_at = now

    def _tell(self) -> None:
        if self._ours:
            healthy = self._receiving and not self._barred
            self._effects.send_control(Control.HEALTH, bytes((healthy, *([self._barred] if self._barred else []))))
        self._judge()

    def _judge(self) -> None:
        barred = self._barred or self._barred_there
        healthy = self._receiving and self._heard and self.path_mtu is None and not barred
        if healthy != self._healthy:
            self._healthy = healthy
            self.changes += 1
            self._effects.healthy(healthy)
