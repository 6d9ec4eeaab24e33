"""What we own and who holds it: the ring, our space in it, the holders, and what others dispute, as one.

Every change is made in memory and can be taken back until the journal has it. Of each turn's changes one `Record` is
made; only what is `committed` is ever told to a peer. What others have to spare changes all the time and is only a
hint: alone it is written down at the next tick, not at once. Source: IPAM spec §9, §14, cures D1, D3, D7 of §21.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ipam import wire
from ipam.holders import Holders
from ipam.merge import Dispute, Merge, merge
from ipam.ranges import SMALLEST, Range, Subnet
from ipam.ring import Copy, Ring, RingError
from ipam.seams import Address, Change, Cidr, IpamError, JournalError, Saved
from ipam.space import Space
from mesh.gob import GobError
from mesh.names import UNKNOWN, PeerName, format_peer_name

ANONYMOUS = "_"
_ASKED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Record:
    """The changes of one turn, and the ring they lead to."""

    ring: Ring
    change: Change


class Ledger:
    """All that outlives the process, and what follows from it."""

    def __init__(self, ourself: PeerName, universe: Subnet, saved: Saved | None, log: logging.Logger) -> None:
        self._ourself = ourself
        self.universe = universe
        self._log = log
        # Identifiers, and with them the ring, that the journal may hold otherwise than we: it was another's, or a
        # commit failed, of which nobody knows how far it came. The next record has them all.
        self._rewrite: set[str] | None = None
        self._due = self._rejoins = False
        self.ring = self.committed = Ring(universe)
        self.holders = Holders({})
        self.space = Space()
        # By the token of the entry that we keep: the dispute, and the copy of the ring that it comes from.
        self._disputes: dict[int, tuple[Dispute, Copy]] = {}
        if saved is not None:
            self._load(saved)

    # --- the beginning ---

    def _load(self, saved: Saved) -> None:
        """Begin with what was saved, if it is ours and of this universe. Raises JournalError: it cannot be read."""
        problem = None
        if saved.ring is not None:
            try:
                copy = wire.decode_ring(saved.ring)
                ring = copy.over(self.universe).clamped()
                if copy.bounds == self.universe.range:
                    ring.check()
            except (GobError, RingError) as error:
                raise JournalError(f"the stored ring cannot be read: {error}") from error
            if copy.bounds != self.universe.range:
                bounds = wire.bounds_text(copy.bounds)
                problem = f"Deleting persisted data for IPAM range {bounds}; our range is {self.universe}"
            elif copy.holder not in (UNKNOWN, self._ourself):
                problem = f"Deleting persisted data for peername {format_peer_name(copy.holder)}"
            else:
                self.ring = self.committed = ring
        if problem is not None:
            self._log.warning("%s", problem)
            self._rewrite = set(saved.owned)
            return
        self.holders = Holders(saved.owned)
        self._rebuild()

    def _rebuild(self) -> None:
        """Space follows from ring and holders. Nobody holds an address of the universe that is not ours."""
        self.space = Space()
        self._follow()
        for ident, each in list(self.holders.owned.items()):
            for cidr in each.cidrs:
                inside = self.universe.holds(cidr.addr)
                if inside and not self.space.claim(int(cidr.addr), withheld=True):
                    self._log.warning("%s no longer holds %s: it is not of our part of the ring", ident, cidr)
                    self.holders.remove(ident, cidr.addr)

    def _follow(self) -> None:
        self.space.update(self.ring.ranges_of(self._ourself), self.withheld())

    # --- the ring ---

    def seed(self, names: Iterable[PeerName]) -> None:
        """Make the first ring."""
        self.ring = self.ring.seeded(names)
        self._follow()

    def merge(self, copy: Copy) -> bool:
        """Merge a peer's copy; whether something of it was new. Raises RingError, and then nothing changed."""
        updated = self._apply(merge(self.ring, copy, self._ourself, self.space.used_in), copy)
        for token, (dispute, said) in self._disputes.items():
            if said.holder == copy.holder:
                # What it said before no longer counts.
                self._disputes[token] = (dispute, copy)
        return self.settle() or updated

    def _apply(self, result: Merge, copy: Copy) -> bool:
        new = [dispute for dispute in result.disputes if dispute.ours.token not in self._disputes]
        for dispute in result.disputes:
            self._disputes[dispute.ours.token] = (dispute, copy)
        self.ring = result.ring
        if result.updated or new:
            self._follow()
        for dispute in new:
            self._log.warning("%s", self.explain(dispute))
        return result.updated

    def settle(self) -> bool:
        """See whether what was disputed still is; whether that changed the ring."""
        updated = False
        for token, (_, copy) in list(self._disputes.items()):
            result = merge(self.ring, copy, self._ourself, self.space.used_in)
            updated |= self._apply(result, copy)
            if all(dispute.ours.token != token for dispute in result.disputes):
                del self._disputes[token]
                self._follow()
                self._log.info("the dispute about %s is settled", self.universe.address(token))
        return updated

    def disputes(self) -> list[Dispute]:
        return [dispute for dispute, _ in self._disputes.values()]

    def withheld(self) -> list[Range]:
        return [part for dispute in self.disputes() for part in dispute.lost]

    def wanted_back(self) -> Iterator[tuple[PeerName, int]]:
        """Used addresses in what others took, and who has each: if it is free there, it is given, and we agree."""
        for dispute, copy in self._disputes.values():
            theirs = copy.over(self.universe)
            for number in dispute.used[:_ASKED_AT_ONCE]:
                owner = theirs.owner(number)
                if owner != self._ourself:
                    yield owner, number

    def _is_claimed(self, number: int, peer: PeerName) -> bool:
        """Whether a peer is one of those who dispute an address."""
        return any(
            any(part.holds(number) for part in dispute.lost) and any(entry.peer == peer for entry in dispute.claims)
            for dispute in self.disputes()
        )

    def explain(self, dispute: Dispute) -> str:
        """What is disputed, and how to end it: one line."""
        text = self.universe.address
        parts = ", ".join(f"{text(part.start)}-{text(part.end - 1)}" for part in dispute.lost)
        owners = ", ".join(sorted({format_peer_name(entry.peer) for entry in dispute.claims}))
        used = [text(number) for number in dispute.used]
        names = ", ".join(f"{address} ({self.holders.holder(address)})" for address in used[:8])
        more = f" and {len(used) - 8} more" if len(used) > 8 else ""
        return (
            f"{parts} is ours, and {owners} says it is theirs: nothing is given out of it. In use here: {names}{more};"
            " end these and start them again, and they get other addresses"
        )

    def give(self, wanted: Range, peer: PeerName) -> bool:
        """Grant a peer what we can spare of a range; False where that is nothing.

        A subnet's first and last address alone are of no use to whoever wants a host in it: two peers with nothing
        else would hand them to and fro for ever. What touches the peer's own needs a token less in the ring.
        """
        if wanted.size == 1 and self._is_claimed(wanted.start, peer):
            self.space.settle(wanted.start)
        beside = self.ring.ranges_of(peer)
        given = self.space.spare(wanted, beside)
        hosts = Range(wanted.start + 1, wanted.end - 1)
        if given is not None and wanted.size >= SMALLEST and not given.clip(hosts).size:
            given = self.space.spare(hosts, beside)
        if given is None:
            return False
        self.grant(given, peer)
        return True

    def grant(self, given: Range, peer: PeerName) -> None:
        """Make a free range of ours a peer's."""
        self.space.donate(given)
        self.ring = self.ring.granted(given, peer, self._ourself)

    def transfer(self, source: PeerName, heir: PeerName) -> int:
        """Everything that is one peer's becomes another's; how many addresses that is. What it said is forgotten."""
        self._disputes = {token: each for token, each in self._disputes.items() if each[1].holder != source}
        count = sum(each.size for each in self.ring.ranges_of(source))
        self.ring = self.ring.transferred(source, heir)
        self._follow()
        return count

    def leave(self, heir: PeerName | None) -> None:
        """Give up all that is ours, to an heir if there is one. Nobody holds anything after it."""
        for ident in list(self.holders.owned):
            self.drop(ident)
        self._disputes.clear()
        if heir is not None:
            self.transfer(self._ourself, heir)

    def drop_ring(self, spare: str | None) -> None:
        """Forget the ring, and what `spare` holds. Raises IpamError where anybody else holds an address of it."""
        held = [
            f"{cidr.addr} ({ident})"
            for ident, each in self.holders.owned.items()
            for cidr in each.cidrs
            if ident != spare and self.universe.holds(cidr.addr)
        ]
        if held:
            more = f" and {len(held) - 8} more" if len(held) > 8 else ""
            raise IpamError(f"the ring cannot be discarded, its addresses are in use: {', '.join(held[:8])}{more}")
        if spare is not None:
            self.drop(spare)
        self._disputes.clear()
        self.ring, self._rejoins = Ring(self.universe), True
        self._follow()

    # --- addresses ---

    def take(self, ident: str, subnet: Subnet, *, is_container: bool) -> Cidr | None:
        """The lowest free host address of a subnet, for an identifier; None where there is none."""
        number = self.space.allocate(subnet.hosts)
        if number is None:
            return None
        cidr = Cidr(self.universe.address(number), subnet.prefix_len)
        self.record(ident, cidr, is_container=is_container)
        return cidr

    def record(self, ident: str, cidr: Cidr, *, is_container: bool) -> None:
        """Write down a holder; nobody in particular holds an address under the address itself."""
        self.holders.add(str(cidr.addr) if ident == ANONYMOUS else ident, cidr, is_container=is_container)

    def release(self, ident: str, address: Address) -> bool:
        """Free one address; False where the identifier does not hold it."""
        if not self.holders.remove(ident, address):
            return False
        self._free(address)
        return True

    def drop(self, ident: str) -> bool:
        """Free all addresses of an identifier; False where it has none."""
        held = self.holders.drop(ident)
        for cidr in held:
            self._free(cidr.addr)
        return bool(held)

    def _free(self, address: Address) -> None:
        if self.universe.holds(address):
            self.space.release(int(address), self.withheld())

    # --- what is durable ---

    def report_free(self) -> None:
        """Let the next record carry how many addresses are free, and what was not worth a record of its own."""
        self._due = True

    def record_turn(self) -> Record:
        """All that changed since the last one."""
        due, self._due = self._due, False
        rejoins, self._rejoins = self._rejoins, False
        rewrite = self._rewrite
        moved = self.ring is not self.committed and _shape(self.ring) != _shape(self.committed)
        ring = self.committed
        if due or moved or rewrite is not None:
            self.ring = self.ring.reporting(self._ourself, self.space.free.count)
            ring = self.ring if self.ring != self.committed else self.committed
        changed = ring is not self.committed or rewrite is not None
        stored = wire.encode_ring(ring, self._ourself) if changed else None
        again = {ident: self.holders.owned.get(ident) for ident in rewrite or ()}
        return Record(ring, Change(stored, {**again, **self.holders.unsaved()}, rejoins))

    def commit(self, record: Record) -> None:
        """The journal has it."""
        self.committed = record.ring
        self._rewrite = None
        self.holders.saved(record.change.owned)

    def roll_back(self) -> None:
        """The journal could not take it: be again what it held before."""
        self.ring = self.committed
        self._rewrite = (self._rewrite or set()) | self.holders.restore()
        self._disputes.clear()
        self._rebuild()


def _shape(ring: Ring) -> tuple[object, ...]:
    """What a ring says, without hints."""
    return (ring.seeds, [(entry.token, entry.peer) for entry in ring.entries])

