"""How allocation stands, for people and machines: the report's object, figures for metrics, and what is waited for.

Field names are those of the reference; what only we tell stands at the end.
Source: IPAM spec §17, cures D10 and D11 of §21.
"""

import math
from typing import Any

from ipam.allocator import Allocator
from ipam.operations import Allocate, Claim, Operation
from ipam.ranges import Range, Subnet
from mesh.names import PeerName, format_peer_name


def report(allocator: Allocator, default_subnet: Subnet) -> dict[str, Any]:
    """The report's `IPAM` object."""
    ledger = allocator.ledger
    text = ledger.universe.address
    entries = [
        {
            "Token": str(text(span.start)),
            "Size": span.size,
            "Peer": format_peer_name(entry.peer),
            "Nickname": allocator.nicknames.of(entry.peer),
            "IsKnownPeer": allocator.is_known(entry.peer),
            "Version": entry.version,
        }
        for entry, span in ledger.ring.divided()
    ]
    paxos = allocator.founding.paxos
    waiting = {
        "Elector": allocator.founding.elector,
        "KnownNodes": len(paxos.knows),
        "Quorum": paxos.quorum,
        "Patience": math.ceil(allocator.founding.patience()),
    }
    operations: list[Claim | Allocate] = [*allocator.claims, *allocator.allocates]
    return {
        "Paxos": waiting if allocator.founding.waiting else None,
        "Range": str(ledger.universe),
        "RangeNumIPs": ledger.universe.size,
        "ActiveIPs": len(ledger.space.used),
        "DefaultSubnet": str(default_subnet),
        "Entries": entries or None,
        "PendingClaims": [
            {"Ident": claim.ident, "CIDR": {"Addr": str(claim.cidr.addr), "PrefixLen": claim.cidr.prefix_len}}
            for claim in allocator.claims
        ]
        or None,
        "PendingAllocates": [f"{each.ident} {each.subnet}" for each in allocator.allocates] or None,
        "Waiting": [{"Ident": each.ident, "Reason": reason(allocator, each)} for each in operations] or None,
        "Disputes": [ledger.explain(dispute) for dispute in ledger.disputes()] or None,
        "Unreachable": [
            {"Peer": format_peer_name(peer), "Nickname": allocator.nicknames.of(peer), "Seconds": round(seconds)}
            for peer, seconds in allocator.absences.rows()
        ]
        or None,
        "Orphans": allocator.orphans or None,
        "ShuttingDown": allocator.shutting_down,
    }


def figures(allocator: Allocator) -> dict[str, float]:
    """Numbers by the names of their metrics; addresses are counted, percentages are of the universe."""
    ledger = allocator.ledger
    unreachable = [
        (entry.peer, span.size) for entry, span in ledger.ring.divided() if not allocator.is_known(entry.peer)
    ]
    return {
        "weave_ips": len(ledger.space.used),
        "weave_max_ips": ledger.universe.size,
        "weave_ipam_unreachable_count": len({peer for peer, _ in unreachable}),
        "weave_ipam_unreachable_percentage": 100 * sum(size for _, size in unreachable) / ledger.universe.size,
        "weave_ipam_pending_allocates": len(allocator.allocates),
        "weave_ipam_pending_claims": len(allocator.claims),
        "weave_ipam_disputes": len(ledger.disputes()),
        "weave_ipam_withheld_ips": ledger.space.withheld.size,
        "weave_ipam_orphans": len(allocator.orphans),
        "weave_ipam_ring_entries": len(ledger.ring.entries),
    }


def reason(allocator: Allocator, operation: Operation) -> str:
    """Why an operation is not done yet, and what would help: one line."""
    if not allocator.ledger.ring:
        return _without_ring(allocator)
    if isinstance(operation, Allocate):
        return _without_address(allocator, operation.subnet)
    if isinstance(operation, Claim):
        owner = allocator.ledger.ring.owner(int(operation.cidr.addr))
        return f"{operation.cidr} is owned by {_peer(allocator, owner)}, which was asked for it"
    return "it is being written down"


def _without_ring(allocator: Allocator) -> str:
    if not allocator.founding.elector:
        return "no ring yet: this router only observes, and no peer that has the ring has been heard"
    patience = math.ceil(allocator.founding.patience())
    if patience:
        return f"no ring yet: waiting {patience} s more for the peers that were given; after that we begin one alone"
    paxos = allocator.founding.paxos
    return (
        f"no ring yet: {paxos.quorum} peers must agree and {len(paxos.knows)} are known;"
        " connect more of them, or start with another --ipalloc-init"
    )


def _without_address(allocator: Allocator, subnet: Subnet) -> str:
    ring, bounds = allocator.ledger.ring, subnet.range
    owners = {entry.peer for entry, span in ring.divided() if span.clip(bounds).size} - {allocator.ourself}
    asked = allocator.requests.asked(bounds)
    if asked is not None:
        return f"no free address in {subnet} here; {_peer(allocator, asked)} was asked for some"
    gone = {peer for peer in owners if not allocator.is_known(peer)}
    names = ", ".join(_peer(allocator, peer) for peer in sorted(gone))
    remedy = f"; {names} cannot be reached: 'weave rmpeer' if dead for good" if gone else ""
    withheld = _withheld(allocator, bounds)
    if withheld:
        remedy += f"; {withheld} addresses are disputed: see 'weave report'"
    who = "we own all of it" if not owners else f"{len(owners)} other peers own parts of it and have none to spare"
    return f"no free address in {subnet}: {who}{remedy}"


def _withheld(allocator: Allocator, bounds: Range) -> int:
    return allocator.ledger.space.withheld.count(bounds)


def _peer(allocator: Allocator, name: PeerName) -> str:
    return allocator.nicknames.text([name])
