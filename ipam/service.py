"""The shell around allocation: an asyncio service, a user of the gossip channel `IPallocation`.

Group commit: operations change memory; what they lead to (answers, messages) waits. At the end of the loop's turn one
`Journal.commit` on a worker thread carries all changes, then the effects are released in their order. While one commit
is under way the next turn gathers. A commit that fails takes everything back that is not durable, and fails whoever
waits for it with the journal's line; the service goes on. Source: IPAM spec §5.3, §11, §14; cures D10, D12, D14 of §21.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from ipam import account, wire
from ipam.allocator import Allocator
from ipam.founding import Init
from ipam.ledger import Record
from ipam.operations import Allocate, Answer, Broadcast, Claim, Effect, Operation, Order, Prime, Send
from ipam.paxos import Node
from ipam.ranges import Subnet
from ipam.ring import Ring
from ipam.seams import Address, Cidr, IpamError, Journal, JournalError, Mesh, Owned, Saved, Unavailable
from ipam.wire import Kind
from mesh.names import UNKNOWN, PeerName
from mesh.seams import Gossip, GossipError

CHANNEL = "IPallocation"
_TICK = 5.0


class Ipam:
    """One peer's allocation (`mesh.seams.Gossiper`). `uid` is new at each start of the process.

    `lost`: what this host knew is lost, so it waits for the ring of others and claims what its containers have.
    `reclaim`: seconds after which owners that cannot be reached lose what they own (`ipam/reclaim.py`); None: never.
    """

    def __init__(
        self,
        name: PeerName,
        nickname: str,
        universe: Subnet,
        default_subnet: Subnet | None = None,
        init: Init | None = None,
        *,
        uid: int,
        mesh: Mesh,
        journal: Journal,
        rng: Random,
        log: logging.Logger,
        lost: bool = False,
        reclaim: float | None = None,
    ) -> None:
        if universe.end >= 1 << universe.first.max_prefixlen:
            raise IpamError(f"invalid range {universe}: its last address is the last one there is")
        self.universe = universe
        self.default_subnet = default_subnet or universe
        self._journal = journal
        self._log = log
        self._worker = ThreadPoolExecutor(1, "ipam-journal")
        self._loop = asyncio.get_running_loop()
        self._gossip: Gossip | None = None
        self._futures: dict[Operation, asyncio.Future[Cidr | None]] = {}
        self._committing: asyncio.Future[None] | None = None
        self._turn_due: asyncio.Handle | None = None
        self._ticks: asyncio.TimerHandle | None = None
        self._trouble = ""
        self._said: tuple[int, Ring, bytes] | None = None

        def begin(saved: Saved | None) -> Allocator:
            node = Node(name, uid)
            return Allocator(
                node,
                nickname,
                universe,
                init or Init(),
                mesh=mesh,
                rng=rng,
                log=log,
                saved=saved,
                lost=lost,
                reclaim=reclaim,
            )

        self._begin = begin
        self._allocator: Allocator | None = None

    # --- life ---

    async def start(self, gossip: Gossip) -> None:
        """Load what is stored and take part; before the mesh starts. Raises JournalError."""
        saved = await self._loop.run_in_executor(self._worker, self._journal.load)
        self._gossip = gossip
        self._allocator = self._begin(saved)
        self._ticks = self._loop.call_later(_TICK, self._tick)
        self._soon()

    async def stop(self) -> None:
        """Answer whoever waits, write down what is not yet, and do nothing more."""
        if self._ticks is not None:
            self._ticks.cancel()
        if self._allocator is not None:
            self._allocator.ledger.report_free()
            self._turn()
            while self._committing is not None:
                await asyncio.wait([self._committing])
                # Its callback may have begun another one.
                await asyncio.sleep(0)
        for future in self._futures.values():
            if not future.done():
                future.set_exception(Unavailable("the router is stopping"))
        if self._turn_due is not None:
            self._turn_due.cancel()
        self._worker.shutdown()

    @property
    def _core(self) -> Allocator:
        assert self._allocator is not None, "start comes first"
        return self._allocator

    @property
    def ready(self) -> bool:
        """Whether there is a ring."""
        return self._allocator is not None and bool(self._allocator.ledger.ring)

    # --- texts ---

    def cidr(self, text: str) -> Cidr:
        """An address with a prefix length as a client gives it. Raises IpamError with the reference's texts."""
        made = Cidr.parse(text)
        if made.addr.version != self.universe.first.version:
            family = self.universe.first.version
            raise IpamError(f"invalid Non-IPv{family} address not supported: {text}")
        return made

    def subnet(self, text: str) -> Subnet:
        """A subnet as a client gives it. Raises IpamError with the reference's texts."""
        self.cidr(text)
        return Subnet.parse(text)

    # --- operations: cancelling the task means that the client is gone ---

    async def allocate(
        self, ident: str, subnet: Subnet | None = None, *, is_container: bool = False, timeout: float | None = None
    ) -> Cidr:
        """An address of a subnet, durably held. Waits as long as it takes, or `timeout` seconds.

        Raises IpamError, and Unavailable with the reason where it took too long or this router left the ring.
        """
        operation = Allocate(ident, subnet or self.default_subnet, is_container)
        value = await self._wait(operation, self._core.allocate, timeout)
        assert value is not None, "an allocation is answered with an address"
        return value

    async def claim(
        self,
        ident: str,
        cidr: Cidr,
        *,
        is_container: bool = False,
        no_error_on_unknown: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Hold this very address, durably; waits for its owner like `allocate`. Raises IpamError, Unavailable."""
        operation = Claim(ident, cidr, is_container, lenient=no_error_on_unknown)
        await self._wait(operation, self._core.claim, timeout)

    async def prime(self, *, timeout: float | None = None) -> None:
        """Wait until there is a ring. Raises Unavailable."""
        await self._wait(Prime(), self._core.prime, timeout)

    def lookup(self, ident: str, subnet: Subnet | None = None) -> list[Cidr]:
        """The addresses of an identifier among the hosts of a subnet."""
        return self._core.lookup(ident, subnet or self.default_subnet)

    def owned(self) -> Mapping[str, Owned]:
        """Who holds what."""
        return self._core.ledger.holders.owned

    async def free(self, ident: str, address: Address) -> None:
        """Free one address, durably. Raises IpamError."""
        await self._wait(Order(), lambda order: self._core.free(order, ident, address))

    async def delete(self, ident: str) -> None:
        """Free all addresses of an identifier, durably. Raises IpamError."""
        await self._wait(Order(), lambda order: self._core.delete(order, ident))

    async def shut_down(self) -> None:
        """Hand over to a peer what is ours; refuse everything until the next start."""
        await self._wait(Order(), self._core.shut_down)

    async def take_over(self, peer: str, *, force: bool = False) -> int:
        """Own what a dead peer owns, given its nickname or name; how many addresses that is. Raises IpamError.

        A peer that can be reached is taken from only with `force`.
        """
        counts: list[int] = []
        await self._wait(Order(), lambda order: counts.append(self._core.take_over(order, peer, force=force)))
        return counts[0]

    async def rejoin(self, spare: str | None = None) -> None:
        """Drop our ring, durably, and wait for that of others; what `spare` holds is given back. Raises IpamError."""
        await self._wait(Order(), lambda order: self._core.rejoin(order, spare))

    async def _wait(self, operation: Any, submit: Any, timeout: float | None = None) -> Cidr | None:
        future: asyncio.Future[Cidr | None] = self._loop.create_future()
        self._futures[operation] = future
        try:
            submit(operation)
            self._soon()
            async with asyncio.timeout(timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            reason = account.reason(self._core, operation)
            self._core.cancel(operation)
            raise Unavailable(reason) from None
        except asyncio.CancelledError:
            self._core.cancel(operation)
            raise
        finally:
            del self._futures[operation]

    # --- what happens on this host ---

    def pre_claim(self, found: Iterable[tuple[str, Cidr, bool]]) -> None:
        """Claim what is on this host already: identifier, address, whether it is a container's."""
        for ident, cidr, is_container in found:
            self._core.claim(Claim(ident, cidr, is_container, lenient=True, found=True))
        self._soon()

    def container_died(self, ident: str) -> None:
        self._core.container_died(ident, self._loop.time())
        self._soon()

    def container_started(self, ident: str) -> None:
        self._core.container_started(ident)

    def container_destroyed(self, ident: str) -> None:
        self._core.container_destroyed(ident)
        self._soon()

    def reconcile(self, live: Mapping[str, Iterable[Address]]) -> list[str]:
        """Compare with what exists on this host: identifiers and their addresses. Who holds something and does not.

        Those that are containers lose it if they are still missing half a minute later.
        """
        return self._core.reconcile(live, self._loop.time())

    def peer_gone(self, name: PeerName) -> None:
        """The mesh forgot a peer."""
        self._core.peer_gone(name)

    def report(self) -> dict[str, Any]:
        """The report's `IPAM` object."""
        return account.report(self._core, self.default_subnet)

    def metrics(self) -> dict[str, float]:
        """Numbers by the names of their metrics."""
        return account.figures(self._core)

    # --- gossip (mesh.seams.Gossiper) ---

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        self._core.received_unicast(sender, message)
        self._soon()

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes | None:
        travels_on = self._core.received(source, message)
        self._soon()
        return message if travels_on else None

    def on_gossip(self, message: bytes) -> bytes | None:
        self._core.received(UNKNOWN, message)
        self._soon()
        return None

    def gossip(self) -> bytes | None:
        return None if self._allocator is None else self._state()

    def _state(self) -> bytes:
        """Our state. With a ring it is the same for a second: a round of gossip goes to many neighbours."""
        now, ring = int(time.time()), self._core.ledger.committed
        if self._said is None or self._said[0] != now or self._said[1] is not ring or not ring:
            self._said = (now, ring, self._core.state(now))
        return self._said[2]

    # --- turns ---

    def _tick(self) -> None:
        self._ticks = self._loop.call_later(_TICK, self._tick)
        self._core.tick(self._loop.time())
        self._soon()

    def _soon(self) -> None:
        """End this turn of the loop with a commit; while one is under way, the next begins after it."""
        if self._turn_due is None and self._committing is None:
            self._turn_due = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = None
        if self._committing is not None:
            return
        record, effects = self._core.take_turn()
        if not record.change:
            self._release(effects)
            return
        self._committing = self._loop.run_in_executor(self._worker, self._journal.commit, record.change)
        self._committing.add_done_callback(lambda done: self._committed(done, record, effects))

    def _committed(self, done: asyncio.Future[None], record: Record, effects: list[Effect]) -> None:
        self._committing = None
        try:
            done.result()
        except JournalError as error:
            effects = self._failed(effects, str(error))
        except Exception as error:
            # The outermost edge of the worker: whatever it is, what was to be kept is not.
            self._log.error("unexpected error of the journal", exc_info=error)
            effects = self._failed(effects, f"unexpected error: {error}")
        else:
            self._core.ledger.commit(record)
            self._trouble = ""
            # After a failure the next operation or tick tries again.
            self._soon()
        self._release(effects)

    def _failed(self, effects: list[Effect], reason: str) -> list[Effect]:
        if reason != self._trouble:
            self._trouble = reason
            self._log.error("%s; no address is given out until it is better", reason)
        return self._core.roll_back(effects, reason)

    def _release(self, effects: list[Effect]) -> None:
        state: bytes | None = None
        told = False
        for effect in effects:
            if isinstance(effect, Answer):
                self._tell(effect)
                continue
            assert self._gossip is not None, "start comes first"
            if state is None:
                state = self._state()
            if isinstance(effect, Broadcast):
                # It says all that is committed: once is enough.
                if not told:
                    self._gossip.broadcast(state)
                told = True
            else:
                self._send(self._gossip, effect, state)
        if self._core.effects:
            self._soon()

    def _send(self, gossip: Gossip, send: Send, state: bytes) -> None:
        if send.wanted is None:
            message = bytes((Kind.RING_UPDATE,)) + state
        else:
            message = wire.encode_request(send.kind, send.wanted)
        try:
            gossip.unicast(send.peer, message)
        except GossipError as error:
            self._core.undeliverable(send, str(error))

    def _tell(self, answer: Answer) -> None:
        future = self._futures.get(answer.operation)
        if future is None or future.done():
            return
        if answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.value)
