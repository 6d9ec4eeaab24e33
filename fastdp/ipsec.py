"""Encrypted links in the kernel: security associations, policies, and packet rules that let nothing pass in clear.

For every pair of hosts and UDP port there is a policy each way that asks for ESP, from before the first packet: what
leaves is dropped until the peer's key is known. Policies name the port, so they need no
mark, unlike Weave Net 2.8's, and hold whatever becomes of packet rules; the rules, in table `inet weave_esp`, hold
whatever becomes of policies. What a link leaves stays as long as the kernel may forward on it: the table goes first.
Source: data plane spec §5.
"""

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from fastdp import esp
from fastdp.table import GRACE
from fastdp.xfrm import Direction, Policy, State, Xfrm, XfrmError
from mesh.names import PeerName
from nft import readback
from nft.elements import Key
from nft.expressions import Field, Protocol, came_in_clear, counter, drop, goes_in_clear, protocol, within
from nft.ruleset import Hook, Transaction
from nft.wire import NftError

TABLE = "weave_esp"
# Whose associations and policies are ours: "weav" as a number.
REQID = 0x77656176
# Weave Net 2.8's policies have this mark, value and mask.
OLD_MARK = (0x20000, 0x20000)
# Longer than the table serves a link that ended.
_KEPT = GRACE + 1.0
# Seconds between two looks at what should be there.
_LOOK = 10.0
_PORTS, _PEERS = "ports", {4: "peers", 6: "peers6"}
_KEYS = {4: Key.IPV4, 6: Key.IPV6}
_ENDS = {Hook.INPUT: {4: Field.SOURCE4, 6: Field.SOURCE6}, Hook.OUTPUT: {4: Field.DESTINATION4, 6: Field.DESTINATION6}}
_NOBODY = PeerName(0)
_CLEAR = {Hook.INPUT: came_in_clear(), Hook.OUTPUT: goes_in_clear()}


class IpsecError(Exception):
    """The kernel does not do it: one line for a person."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Which packets: between two hosts' addresses, to this UDP port."""

    local: str
    remote: str
    port: int

    def inward(self) -> Policy:
        """What arrives has come by any association of ours."""
        return Policy(Direction.IN, self.remote, self.local, self.port, 0, REQID)

    def outward(self, spi: int) -> Policy:
        """What leaves takes this association; 0: any of ours, so that nothing leaves while there is none."""
        return Policy(Direction.OUT, self.local, self.remote, self.port, spi, REQID)

    def policies(self, spi: int) -> tuple[Policy, Policy]:
        return self.inward(), self.outward(spi)


@dataclass(slots=True, eq=False)
class Session:
    """One connection's associations, the latest last: what a link does about its encryption. All raise IpsecError."""

    ipsec: "Ipsec"
    pair: Pair
    key: bytes = b""
    ourself: PeerName = _NOBODY
    peer: PeerName = _NOBODY
    inward: list[State] = field(default_factory=list)
    outward: State | None = None
    ended: bool = False

    def open(self) -> bytes:
        """Nothing passes in clear from now on, and nothing at all before `accept`; what the peer must be told."""
        self.ipsec.open(self)
        return self.renew()

    def renew(self) -> bytes:
        """A new key for what is sent to us: what the peer must be told."""
        return self.ipsec.announce(self)

    def accept(self, payload: bytes) -> None:
        """What the peer told us. Raises esp.BodyError too."""
        self.ipsec.accept(self, payload)

    def close(self) -> None:
        """The link has ended."""
        self.ipsec.close(self)

    def found(self) -> tuple[State | None, State | None]:
        """The associations with their counters, of what arrives and of what leaves; None where there is none."""
        return self.ipsec.found(self)


@dataclass(slots=True)
class _Held:
    """What holds a pair's policies: sessions, living or kept for a while; the SPI that packets leave with."""

    sessions: list[Session] = field(default_factory=list)
    spi: int = 0


def problem() -> str:
    """Why the kernel cannot encrypt; empty if it can. Loads the modules, which later must not take their time."""
    probe = State("127.0.0.1", "127.0.0.1", 0, REQID)
    try:
        with Xfrm() as xfrm:
            made = State(probe.source, probe.target, xfrm.allocate(probe.source, probe.target, REQID), REQID)
            try:
                xfrm.update(made, bytes(esp.KEY))
            finally:
                xfrm.remove(made)
            xfrm.policies()
    except (XfrmError, OSError) as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class Security:
    """Whether links are to be encrypted, but for those to `trusted` addresses; `problem`: why the kernel cannot."""

    wanted: bool
    problem: str = ""
    trusted: Callable[[str], bool] = lambda address: False


class Ipsec:
    """All encrypted links of this host. `later` calls something after so many seconds. Raises IpsecError.

    What an earlier router left towards a host of `served` is kept for as long as the kernel may forward by it.
    """

    def __init__(
        self, served: Iterable[str], later: Callable[[float, Callable[[], None]], object], log: logging.Logger
    ) -> None:
        self._later = later
        self._log = log
        self._pairs: dict[Pair, _Held] = {}
        self._ports: set[int] = set()
        with _errors():
            self._xfrm = Xfrm()
            _remove_old(self._xfrm)
            self._adopt(frozenset(served))
            self._write_rules()
        later(_LOOK, self._look)

    def _look(self) -> None:
        """Make again what somebody removed; associations of a silent link are `announce`d anew by it."""
        self._later(_LOOK, self._look)
        try:
            with _errors():
                there = frozenset(self._xfrm.policies())
                gone = [
                    one for pair, held in self._pairs.items() for one in pair.policies(held.spi) if one not in there
                ]
                for policy in gone:
                    self._xfrm.set(policy)
                flushed = TABLE not in readback.tables()
                if flushed:
                    self._write_rules()
        except IpsecError as error:
            self._log.error("unable to look after encryption: %s", error)
        else:
            if gone or flushed:
                self._log.warning("somebody removed IPsec policies or table inet %s: they are there again", TABLE)

    def _adopt(self, served: frozenset[str]) -> None:
        """What one of ours left is kept for a while where the kernel still forwards, else removed."""
        mine = [policy for policy in self._xfrm.policies() if policy.reqid == REQID]
        for policy in mine:
            if policy.direction is Direction.OUT and policy.target in served:
                pair = Pair(policy.source, policy.target, policy.port)
                outward = State(pair.local, pair.remote, policy.spi, REQID) if policy.spi else None
                self._pairs[pair] = _Held([Session(self, pair, outward=outward)], policy.spi)
        kept = {policy for pair, held in self._pairs.items() for policy in pair.policies(held.spi)}
        for policy in mine:
            if policy not in kept:
                self._xfrm.unset(policy)
        for state in self._xfrm.states():
            if state.reqid == REQID and not self._takes(state):
                self._xfrm.remove(state)
        for pair, held in self._pairs.items():
            self._xfrm.set(pair.inward())
            self._retire(held.sessions[0])

    def _takes(self, state: State) -> bool:
        """Whether an association belongs to a session that is kept."""
        for pair, held in self._pairs.items():
            if (state.source, state.target) == (pair.remote, pair.local):
                held.sessions[0].inward.append(state)
                return True
            if (state.source, state.target, state.spi) == (pair.local, pair.remote, held.spi):
                return True
        return False

    # --- links ---

    def protects(self, remote: str) -> bool:
        """Whether nothing goes to this host, or comes from it, in clear."""
        return any(pair.remote == remote for pair in self._pairs)

    def listen(self, port: int) -> None:
        """Frames are exchanged by this UDP port, too."""
        if port not in self._ports:
            self._ports.add(port)
            with _errors():
                self._write_rules()

    def session(self, pair: Pair, key: bytes, ourself: PeerName, peer: PeerName) -> Session:
        """For one connection: the session's key, who we are and who the peer is."""
        return Session(self, pair, key, ourself, peer)

    def open(self, session: Session) -> None:
        """From now on nothing passes in clear; what leaves waits for a key, but for what an earlier session left."""
        pair = session.pair
        held = self._pairs.get(pair)
        if held is not None:
            held.sessions.append(session)
            return
        self._pairs[pair] = _Held([session])
        with _errors():
            self._write_rules()
            self._xfrm.set(pair.outward(0))

    def announce(self, session: Session) -> bytes:
        """A new key for what is sent to us: what the peer must be told of it. The one it has is good until then."""
        pair, nonce = session.pair, secrets.token_bytes(esp.NONCE)
        with _errors():
            self._xfrm.set(pair.inward())
            spi = self._xfrm.allocate(pair.remote, pair.local, REQID)
            state = State(pair.remote, pair.local, spi, REQID)
            session.inward.append(state)
            self._xfrm.update(state, esp.key(session.key, nonce, session.ourself))
            self._forget(session)
        return esp.body(nonce, spi)

    def _forget(self, session: Session) -> None:
        """Keep the last association and, of those before, the last that something came by, else the first.

        The peer may not have been told of the others: its control connection can be as silent as the link is.
        """
        *before, last = session.inward
        if len(before) > 1:
            found = [(state, self._xfrm.find(state)) for state in before]
            used = [state for state, now in found if now is not None and now.packets]
            kept = used[-1] if used else before[0]
            for state in before:
                if state is not kept:
                    self._xfrm.remove(state)
            session.inward = [kept, last]

    def accept(self, session: Session, payload: bytes) -> None:
        """The peer's key: what leaves has it from now on. Raises esp.BodyError too."""
        pair, held = session.pair, self._pairs[session.pair]
        nonce, spi = esp.unpack_body(payload)
        state, before = State(pair.local, pair.remote, spi, REQID), session.outward
        with _errors():
            self._xfrm.add(state, esp.key(session.key, nonce, session.peer))
            session.outward = state
            self._xfrm.set(pair.outward(spi))
            held.spi = spi
            if before is not None:
                self._xfrm.remove(before)

    def close(self, session: Session) -> None:
        """The link has ended, if it began; the kernel may serve it for a while still."""
        held = self._pairs.get(session.pair)
        if held is not None and session in held.sessions:
            self._retire(session)
            with self._logged():
                self._choose(session.pair, held)

    def found(self, session: Session) -> tuple[State | None, State | None]:
        """The associations with their counters, of what arrives and of what leaves; None where there is none."""
        ends = (session.inward[-1] if session.inward else None, session.outward)
        with _errors():
            inward, outward = (None if end is None else self._xfrm.find(end) for end in ends)
        return inward, outward

    # --- ends ---

    def _retire(self, session: Session) -> None:
        session.ended = True
        self._later(_KEPT, lambda: self._end(session))

    def _end(self, session: Session) -> None:
        with self._logged():
            self._remove(session)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            with _errors():
                yield
        except IpsecError as error:
            self._log.error("what an encrypted link left is not removed: %s", error)

    def _remove(self, session: Session) -> None:
        pair, held = session.pair, self._pairs[session.pair]
        held.sessions.remove(session)
        if not held.sessions:
            del self._pairs[pair]
            for policy in pair.policies(held.spi):
                self._xfrm.unset(policy)
            self._write_rules()
        else:
            self._choose(pair, held)
        for state in (*session.inward, *([session.outward] if session.outward else ())):
            self._xfrm.remove(state)

    def _choose(self, pair: Pair, held: _Held) -> None:
        """What leaves takes a living session's association: the peer may have dropped the others already."""
        usable = [one for one in held.sessions if one.outward is not None]
        living = [one for one in usable if not one.ended] or usable
        spis = [one.outward.spi for one in living if one.outward is not None]
        if held.spi not in spis:
            held.spi = spis[-1] if spis else 0
            self._xfrm.set(pair.outward(held.spi))

    # --- packet rules ---

    def _write_rules(self) -> None:
        with Transaction(TABLE) as change:
            change.replace_table()
            change.add_set(_PORTS, Key.PORT)
            ports = self._ports | {pair.port for pair in self._pairs}
            change.add_elements(_PORTS, Key.PORT, sorted(map(str, ports)))
            remotes = sorted({pair.remote for pair in self._pairs})
            for version, name in _PEERS.items():
                change.add_set(name, _KEYS[version])
                here = [remote for remote in remotes if ip_address(remote).version == version]
                change.add_elements(name, _KEYS[version], here)
            for hook, ends in _ENDS.items():
                chain = hook.name.lower()
                change.add_chain(chain, hook)
                for version, end in ends.items():
                    udp = (protocol(Protocol.UDP), _CLEAR[hook], within((Field.DESTINATION_PORT,), _PORTS))
                    peers = within((end,), _PEERS[version])
                    change.add_rule(chain, *udp, peers, counter(), drop(), comment=f"in clear, IPv{version}")


def dropped_in_clear() -> dict[str, int]:
    """Packets that were dropped since the rules were last written because they would have passed in clear."""
    try:
        return {
            f"clear-{where}": sum(rule.packets for rule in readback.rules(TABLE, hook.name.lower()))
            for hook, where in ((Hook.INPUT, "in"), (Hook.OUTPUT, "out"))
        }
    except (NftError, OSError):
        return {}


def clean() -> list[str]:
    """Remove all that a router, ours or one of 2.8, left; what it was. Raises IpsecError."""
    with _errors():
        removed = []
        if TABLE in readback.tables():
            with Transaction(TABLE) as change:
                change.delete_table()
            removed.append(f"table inet {TABLE}")
        try:
            xfrm = Xfrm()
        except XfrmError:
            return removed
        with xfrm:
            number = _remove_old(xfrm)
            policies = [policy for policy in xfrm.policies() if policy.reqid == REQID]
            states = [state for state in xfrm.states() if state.reqid == REQID]
            for policy in policies:
                xfrm.unset(policy)
            for state in states:
                xfrm.remove(state)
        if number + len(policies) + len(states):
            removed.append("IPsec associations and policies")
        return removed


def _remove_old(xfrm: Xfrm) -> int:
    """Remove what a router of 2.8 left: policies by their mark, associations between the same hosts; how many."""
    old = [policy for policy in xfrm.policies() if policy.mark == OLD_MARK]
    ends = {frozenset((policy.source, policy.target)) for policy in old}
    states = [state for state in xfrm.states() if not state.reqid and frozenset((state.source, state.target)) in ends]
    for policy in old:
        xfrm.unset(policy)
    for state in states:
        xfrm.remove(state)
    return len(old) + len(states)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (XfrmError, NftError, OSError) as error:
        raise IpsecError(f"IPsec: {error}") from error
