"""Allocation: operations that wait, the first ring, and what peers say. One step at a time, no I/O, no clock.

Each call changes memory and adds to `effects`; `Ledger` holds what must be durable before they are released. Operations
wait in three queues and are tried again whenever the ring changed, an address became free, or five seconds went by.
Source: IPAM spec §6, §10-§13, cures D6-D10, D14, D16 of §21.
"""

import logging
from collections.abc import Iterable, Mapping
from random import Random
from typing import TypeVar

from ipam import wire
from ipam.absences import Absences
from ipam.attempts import Attempts, Lack, Over
from ipam.containers import Containers
from ipam.founding import Founding, Init, Step
from ipam.ledger import Ledger, Record
from ipam.merge import RangeDiffersError, SeedsDifferError
from ipam.nicknames import Nicknames
from ipam.operations import Allocate, Answer, Broadcast, Claim, Effect, Operation, Order, Prime, Send
from ipam.paxos import Node
from ipam.ranges import Range, Subnet
from ipam.reclaim import Reclaim
from ipam.requests import Requests
from ipam.returns import Returns
from ipam.ring import Copy, RingError
from ipam.seams import Address, Cidr, IpamError, Mesh, Saved, Unavailable
from ipam.wire import Kind
from mesh.gob import GobError
from mesh.names import UNKNOWN, PeerName, format_peer_name
from mesh.seams import GossipError

_CLAIM_ATTEMPTS = 5
_Op = TypeVar("_Op", Prime, Claim, Allocate)


class Allocator:
    """One peer's part in the allocation of a universe. `me` has a new number at each start."""

    def __init__(
        self,
        me: Node,
        nickname: str,
        universe: Subnet,
        init: Init,
        *,
        mesh: Mesh,
        rng: Random,
        log: logging.Logger,
        saved: Saved | None = None,
        lost: bool = False,
        reclaim: float | None = None,
    ) -> None:
        self.ourself = me.name
        self.universe = universe
        self.effects: list[Effect] = []
        self.primes: list[Prime] = []
        self.claims: list[Claim] = []
        self.allocates: list[Allocate] = []
        self.shutting_down = False
        self.orphans: list[str] = []
        self.absences = Absences()
        self.reclaim = Reclaim(me.name, reclaim)
        self.returns = Returns(me.name)
        self.ledger = Ledger(me.name, universe, saved, log)
        self.founding = Founding(me, init, mesh, log, lost=lost)
        self.requests = Requests(rng)
        self.nicknames = Nicknames(me.name, nickname, mesh)
        self.containers = Containers(self.ledger.holders)
        self._attempts = Attempts(me.name, universe, self.ledger, self.containers)
        self._mesh = mesh
        self._log = log
        self._begin(init.seeds)

    def _begin(self, seeds: tuple[PeerName, ...]) -> None:
        if self.ledger.ring:
            self._log.info("Initialising with persisted data")
            if seeds:
                self._log.info("Found persisted IPAM data, ignoring supplied IPAM seed")
            return
        self._log.info("No valid persisted data")
        if self.founding.seeds:
            self._log.info("Initialising with supplied IPAM seed")
            self.ledger.seed(self.founding.seeds)
        elif self.founding.elector:
            self._log.info("Initialising via deferred consensus")
        else:
            self._log.info("Initialising as observer - awaiting IPAM data from another peer")

    # --- operations ---

    def prime(self, operation: Prime) -> None:
        """Answered as soon as there is a ring."""
        self._submit(operation, self.primes)

    def claim(self, operation: Claim) -> None:
        """Answered when the address is held."""
        self._submit(operation, self.claims)

    def allocate(self, operation: Allocate) -> None:
        """Answered with an address, when there is one."""
        self._submit(operation, self.allocates)

    def cancel(self, operation: Operation) -> None:
        """Whoever asked is gone."""
        self.primes = [each for each in self.primes if each is not operation]
        self.claims = [each for each in self.claims if each is not operation]
        self.allocates = [each for each in self.allocates if each is not operation]
        self._log.info("[allocator]: %s", operation.cancelled())

    def free(self, order: Order, ident: str, address: Address) -> None:
        """Free one address. Raises IpamError where the identifier does not hold it."""
        if not self.ledger.release(ident, address):
            raise IpamError(f"Free: address {address} not found for {ident}")
        self._freed()
        self._answer(order)

    def delete(self, order: Order, ident: str) -> None:
        """Free all addresses of an identifier. Raises IpamError where it has none."""
        if not self.ledger.drop(ident):
            raise IpamError(f"Delete: no addresses for {ident}")
        self._freed()
        self._answer(order)

    def lookup(self, ident: str, subnet: Subnet) -> list[Cidr]:
        """The addresses of an identifier among the hosts of a subnet."""
        held = self.ledger.holders.of(ident)
        return [cidr for cidr in held if subnet.holds(cidr.addr) and subnet.hosts.holds(int(cidr.addr))]

    def _submit(self, operation: _Op, queue: list[_Op]) -> None:
        if self.shutting_down:
            self._answer(operation, error=Unavailable(f"{operation.cancelled()}: this router left the ring"))
        elif not self._attempt(operation):
            queue.append(operation)

    def _attempt(self, operation: Prime | Claim | Allocate) -> bool:
        """Whether it is over, and answered; what it lacks is seen to."""
        outcome = self._attempts.at(operation)
        if outcome is Lack.RING:
            self._establish()
            outcome = self._attempts.at(operation)
        if isinstance(outcome, Over):
            self._answer(operation, outcome.value, outcome.error)
            return True
        if isinstance(operation, Allocate) and outcome is Lack.SPACE:
            self._ask(operation.subnet.range)
        elif isinstance(operation, Claim):
            if outcome is Lack.ADDRESS:
                self._ask_for(operation)
            elif operation.lenient:
                self._answer(operation)
        return False

    def _answer(self, operation: Operation, value: Cidr | None = None, error: IpamError | None = None) -> None:
        if isinstance(operation, Claim):
            if operation.answered:
                if error is not None:
                    self._log.warning("Unable to claim: %s", error)
                return
            operation.answered = True
        self.effects.append(Answer(operation, value, error))

    # --- waiting ---

    def waits(self) -> bool:
        """Whether anybody waits for anything."""
        return bool(self.primes or self.claims or self.allocates)

    def _retry(self) -> None:
        """Try everything that waits; without a ring nothing can have changed for it."""
        if self.ledger.ring and not self.shutting_down:
            self.primes = [operation for operation in self.primes if not self._attempt(operation)]
            self.claims = [operation for operation in self.claims if not self._attempt(operation)]
            self.allocates = [operation for operation in self.allocates if not self._attempt(operation)]

    def _freed(self) -> None:
        """Addresses of ours became free: a dispute may be over, and somebody may wait."""
        if self.ledger.settle():
            self._ring_changed()
        else:
            self._retry()

    def _cancel_all(self, reason: str, ident: str | None = None) -> None:
        waiting: list[Operation] = [*self.primes, *self.claims, *self.allocates]
        for operation in waiting:
            if ident is None or (isinstance(operation, Claim | Allocate) and operation.ident == ident):
                self.cancel(operation)
                self._answer(operation, error=Unavailable(f"{operation.cancelled()}: {reason}"))

    def tick(self, now: float) -> None:
        """Every five seconds, with the time in seconds on a clock that never goes back."""
        self.founding.tick(now)
        for ident in self.containers.expired(now):
            self.container_destroyed(ident)
        self.absences.look(self.ledger.ring.owners(), self.is_known, now)
        self._reclaim(now)
        self._return(now)
        self.ledger.report_free()
        for peer, number in self.ledger.wanted_back():
            self.effects.append(Send(peer, Kind.SPACE_REQUEST, Range(number, number + 1)))
        for claim in self.claims:
            claim.asked = None
        self.requests.tick([operation.subnet.range for operation in self.allocates])
        if self.ledger.ring:
            self._retry()
        elif self.founding.waiting:
            self._found(self.founding.seek())
        elif self.waits():
            self._establish()

    # --- the first ring ---

    def _establish(self) -> None:
        if not (self.ledger.ring or self.founding.waiting or self.shutting_down):
            self._found(self.founding.begin())

    def _found(self, step: Step) -> None:
        """Take a step towards the first ring, perhaps the last one."""
        if step.tell:
            self.effects.append(Broadcast())
        if step.names is not None and not self.ledger.ring:
            self.ledger.seed(step.names)
            self.effects.append(Broadcast())
            self._ring_changed()

    def _ring_changed(self) -> None:
        self.founding.waiting = False
        self.nicknames.prune(self.ledger.ring.owners())
        self._retry()

    # --- asking peers ---

    def _ask(self, wanted: Range) -> None:
        candidates = self.ledger.ring.candidates(wanted, self.ourself)
        reachable = {peer: spare for peer, spare in candidates.items() if self._mesh.knows(peer)}
        peer = self.requests.choose(wanted, reachable)
        if peer is not None:
            self.effects.append(Send(peer, Kind.SPACE_REQUEST, wanted))

    def _ask_for(self, claim: Claim) -> None:
        """Ask the owner of an address for it, once a tick: a ring changes with every address that is granted."""
        number = int(claim.cidr.addr)
        owner = self.ledger.ring.owner(number)
        if claim.asked != owner:
            claim.asked = owner
            self.effects.append(Send(owner, Kind.SPACE_REQUEST, Range(number, number + 1)))

    def undeliverable(self, send: Send, reason: str) -> None:
        """A peer could not be told."""
        if send.kind is not Kind.SPACE_REQUEST or send.wanted is None:
            self._log.info("unable to tell %s: %s", format_peer_name(send.peer), reason)
            return
        self._refused(send.wanted, send.peer)
        for claim in [claim for claim in self.claims if _is_for(claim, send.wanted)]:
            claim.attempts += 1
            if claim.lenient:
                self._answer(claim)
            elif claim.attempts > _CLAIM_ATTEMPTS:
                self.claims.remove(claim)
                self._answer(claim, error=self._owned_by_other(claim, send.peer, f" - {reason}"))

    def _owned_by_other(self, claim: Claim, peer: PeerName, reason: str = "") -> IpamError:
        shown = f"{format_peer_name(peer)} ({self.nicknames.of(peer)})"
        return IpamError(f"address {claim.cidr} is owned by other peer {shown}{reason}")

    # --- what peers say ---

    def received(self, sender: PeerName, message: bytes) -> bool:
        """Gossip or a broadcast; `sender` is unknown for gossip. Raises GossipError: the connection must end.

        Whether it may travel on: a 2.8 router ends a connection that brings hints of more free space than there is.
        """
        try:
            state = wire.decode_state(message)
        except GobError as error:
            raise GossipError(str(error)) from error
        self._hear(sender, state)
        if state.ring is None:
            return True
        ring = state.ring.over(self.universe)
        return ring.clamped() is ring

    def received_unicast(self, sender: PeerName, message: bytes) -> None:
        """A message for us alone. Raises GossipError: the connection must end."""
        if not message:
            raise GossipError("an empty message about addresses")
        kind, body = message[0], message[1:]
        try:
            if kind == Kind.RING_UPDATE:
                state = wire.decode_state(body)
            elif kind in (Kind.SPACE_REQUEST, Kind.SPACE_REQUEST_DENIED):
                wanted = wire.decode_request(body)
            else:
                raise GossipError(f"a message about addresses of an unknown kind: {kind}")
        except GobError as error:
            raise GossipError(str(error)) from error
        if kind == Kind.RING_UPDATE:
            self.requests.answered(sender)
            self._hear(sender, state)
        elif kind == Kind.SPACE_REQUEST:
            self._donate(wanted, sender)
        else:
            self._denied(wanted, sender)

    def _hear(self, sender: PeerName, state: wire.State) -> None:
        self.nicknames.learn(state.nicknames)
        if state.ring is not None:
            self._merge(state.ring)
        elif self.ledger.ring:
            if sender != UNKNOWN:
                self.effects.append(Send(sender, Kind.RING_UPDATE))
        elif state.paxos is not None:
            self._found(self.founding.heard(state.paxos))
        elif self.founding.elector and sender != UNKNOWN:
            self._establish()

    def _merge(self, copy: Copy) -> None:
        try:
            updated = self.ledger.merge(copy)
        except SeedsDifferError as error:
            received, ours = self.nicknames.text(copy.seeds), self.nicknames.text(self.ledger.ring.seeds)
            text = f"IP allocation was seeded by different peers (received: [{received}], ours: [{ours}])"
            raise GossipError(text) from error
        except RangeDiffersError as error:
            received = wire.bounds_text(copy.bounds)
            text = f"Incompatible IP allocation ranges (received: {received}, ours: {self.universe})"
            raise GossipError(text) from error
        except RingError as error:
            raise GossipError(str(error)) from error
        if updated or (self.founding.waiting and self.ledger.ring):
            self._ring_changed()

    def _donate(self, wanted: Range, peer: PeerName) -> None:
        if not self.ledger.ring:
            return
        if self.ledger.give(wanted, peer):
            self.effects.append(Broadcast())
        else:
            self.effects.append(Send(peer, Kind.SPACE_REQUEST_DENIED, wanted))
        self.effects.append(Send(peer, Kind.RING_UPDATE))

    def _denied(self, wanted: Range, peer: PeerName) -> None:
        for claim in list(self.claims):
            # Only the owner can say that an address is not to be had.
            if _is_for(claim, wanted) and self.ledger.ring and self.ledger.ring.owner(int(claim.cidr.addr)) == peer:
                self.claims.remove(claim)
                self._answer(claim, error=self._owned_by_other(claim, peer))
        if self._refused(wanted, peer) and self.ledger.ring:
            self.allocates = [operation for operation in self.allocates if not self._attempt(operation)]

    def _refused(self, wanted: Range, peer: PeerName) -> bool:
        """Remember whom not to ask again soon; whether anybody waits for that range."""
        waits = any(operation.subnet.range == wanted for operation in self.allocates)
        if waits:
            self.requests.refused(wanted, peer)
        return waits

    # --- containers ---

    def container_died(self, ident: str, now: float) -> None:
        """It may start again: its addresses wait for a while, what it asked for does not."""
        self.containers.died(ident, now)
        self._cancel_all("the container died", ident)

    def container_started(self, ident: str) -> None:
        self.containers.lives(ident)

    def container_destroyed(self, ident: str) -> None:
        """Its addresses are free."""
        self.containers.lives(ident)
        if self.ledger.drop(ident):
            self._freed()

    def reconcile(self, live: Mapping[str, Iterable[Address]], now: float) -> list[str]:
        """Compare the holders with what exists on this host: who holds something and does not exist."""
        self.orphans = self.containers.reconcile(live, now)
        return self.orphans

    # --- administration ---

    def take_over(self, order: Order, peer: str, *, force: bool = False) -> int:
        """Make ours what a dead peer has, by nickname or name; how many addresses. Raises IpamError.

        0 for a peer that is not known, has nothing, or is us.
        """
        name = self.nicknames.find(peer, self.ledger.ring.owners())
        if name is None or name == self.ourself or not self.ledger.ring:
            self._answer(order)
            return 0
        if self._mesh.knows(name) and not force:
            shown = self.nicknames.text([name])
            raise IpamError(f"{shown} is reachable: two peers would own its addresses; stop it first, or --force")
        count = self._take_over(name)
        self._answer(order)
        return count

    def _take_over(self, name: PeerName) -> int:
        count = self.ledger.transfer(name, self.ourself)
        if count:
            self.effects.append(Broadcast())
            self._ring_changed()
        return count

    def _reclaim(self, now: float) -> None:
        """Take over from whoever is missing for too long, where that is wanted and up to us."""
        for name, seconds in self.reclaim.due(self.ledger.ring.owners(), self.absences.rows(), now):
            if not self.shutting_down:
                shown = self.nicknames.text([name])
                count = self._take_over(name)
                self._log.warning("Took over %d addresses of %s, out of reach for %d seconds", count, shown, seconds)

    def _return(self, now: float) -> None:
        """Give an empty piece back to the peer beside it, where nobody here waits for addresses."""
        if self.shutting_down or self.allocates:
            return
        due = self.returns.due(self.ledger.ring, self.ledger.space, self.is_known, now)
        if due is not None:
            self.ledger.grant(*due)
            self.effects.append(Broadcast())

    def shut_down(self, order: Order) -> None:
        """Hand over what is ours and do nothing more until the next start."""
        self._log.info("Shutdown")
        self.shutting_down = True
        self._cancel_all("this router left the ring")
        heir = self.nicknames.heir([entry.peer for entry in self.ledger.ring.entries])
        self.ledger.leave(heir)
        if heir is not None:
            self.effects.append(Broadcast())
        self._answer(order)

    def rejoin(self, order: Order, spare: str | None) -> None:
        """Drop our ring and wait for that of others. Raises IpamError where anybody but `spare` has addresses of it."""
        if not self.ledger.ring:
            raise IpamError("there is no ring here to discard")
        self.ledger.drop_ring(spare)
        self._log.warning("Discarding our ring - awaiting IPAM data from another peer")
        self.founding.leave_to_others()
        self._establish()
        self._answer(order)

    def is_known(self, name: PeerName) -> bool:
        """Whether a peer can be reached: ourselves always."""
        return name == self.ourself or self._mesh.knows(name)

    def peer_gone(self, name: PeerName) -> None:
        """The mesh forgot a peer. What it owns stays its own."""
        if name not in self.ledger.ring.owners():
            self.nicknames.forget(name)

    # --- what the shell takes away ---

    def state(self, now: int) -> bytes:
        """Our state as it is committed, with the time in Unix seconds that nobody reads."""
        nicknames = self.nicknames.all()
        ring = self.ledger.committed
        if ring:
            return wire.encode_state(wire.State(now, nicknames), ring, self.ourself)
        return wire.encode_state(wire.State(now, nicknames, self.founding.knowledge()))

    def take_turn(self) -> tuple[Record, list[Effect]]:
        """All changes since the last turn, and what may be done once they are durable."""
        effects, self.effects = self.effects, []
        return self.ledger.record_turn(), effects

    def roll_back(self, effects: list[Effect], reason: str) -> list[Effect]:
        """The journal failed: nothing of this turn or since has happened, and whoever waits for it is told so."""
        undone, self.effects = [*effects, *self.effects], []
        self.ledger.roll_back()
        self.founding.waiting = self.founding.waiting and not self.ledger.ring
        failure = Unavailable(reason)
        return [
            each if each.error is not None else Answer(each.operation, None, failure)
            for each in undone
            if isinstance(each, Answer)
        ]


def _is_for(claim: Claim, wanted: Range) -> bool:
    return wanted.holds(int(claim.cidr.addr))
