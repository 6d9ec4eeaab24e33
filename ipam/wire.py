"""What peers say to each other about addresses, as gob: the state of §5.1, requests of §5.2, the stored ring of §14.

The only place that knows addresses of 32 bits. A state without a ring tells by its `paxos` who sends it: an elector's
map may be empty, an observer's is not there. Source: IPAM spec §5, §14; mesh spec §19.7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address

from ipam.paxos import NONE, Claims, Node, Proposal, Value
from ipam.ranges import Range
from ipam.ring import Copy, Entry, Ring
from mesh import gob
from mesh.gob import GobError
from mesh.names import UNKNOWN, PeerName

_LARGEST_NAME = (1 << 48) - 1
_WIDTH = 32


class Kind(IntEnum):
    """The first byte of a unicast."""

    SPACE_REQUEST = 0
    RING_UPDATE = 1
    SPACE_REQUEST_DENIED = 2


def bounds_text(bounds: Range) -> str:
    """As CIDR where the size is a power of two, aligned or not, as people know it; else first and last address."""
    size = bounds.size
    if size and size & (size - 1) == 0:
        return f"{IPv4Address(bounds.start)}/{_WIDTH + 1 - size.bit_length()}"
    return f"{IPv4Address(bounds.start)}-{IPv4Address((bounds.end - 1) % (1 << _WIDTH))}"


@dataclass(frozen=True, slots=True)
class State:
    """The whole state of a peer. At most one of `paxos` and `ring` says something. `now` is in Unix seconds."""

    now: int = 0
    nicknames: Mapping[PeerName, str] = field(default_factory=dict)
    paxos: Mapping[Node, Claims] | None = None
    ring: Copy | None = None


# --- the records of the wire ---


@dataclass(frozen=True, slots=True)
class _NodeID:
    name: int = gob.of("Name", gob.UINT)
    uid: int = gob.of("UID", gob.UINT)


_NODE_ID = gob.struct_of("NodeID", _NodeID)


@dataclass(frozen=True, slots=True)
class _ProposalID:
    round: int = gob.of("Round", gob.UINT)
    proposer: _NodeID = gob.of("Proposer", _NODE_ID)


_PROPOSAL_ID = gob.struct_of("ProposalID", _ProposalID)


@dataclass(frozen=True, slots=True)
class _AcceptedValue:
    value: Sequence[int] = gob.of("Value", gob.ListOf(gob.UINT))
    origin: _ProposalID = gob.of("Origin", _PROPOSAL_ID)


_ACCEPTED_VALUE = gob.struct_of("AcceptedValue", _AcceptedValue)


@dataclass(frozen=True, slots=True)
class _NodeClaims:
    promise: _ProposalID = gob.of("Promise", _PROPOSAL_ID)
    accepted: _ProposalID = gob.of("Accepted", _PROPOSAL_ID)
    accepted_value: _AcceptedValue = gob.of("AcceptedVal", _ACCEPTED_VALUE)


@dataclass(frozen=True, slots=True)
class _Entry:
    token: int = gob.of("Token", gob.UINT32)
    peer: int = gob.of("Peer", gob.UINT)
    version: int = gob.of("Version", gob.UINT32)
    free: int = gob.of("Free", gob.UINT32)


@dataclass(frozen=True, slots=True)
class _Ring:
    start: int = gob.of("Start", gob.UINT32)
    end: int = gob.of("End", gob.UINT32)
    peer: int = gob.of("Peer", gob.UINT)
    entries: Sequence[_Entry] = gob.of("Entries", gob.ListOf(gob.struct_of("entry", _Entry)))
    seeds: Sequence[int] = gob.of("Seeds", gob.ListOf(gob.UINT))


_RING = gob.struct_of("Ring", _Ring)


@dataclass(frozen=True, slots=True)
class _GossipState:
    now: int = gob.of("Now", gob.INT)
    nicknames: Mapping[int, str] | None = gob.of("Nicknames", gob.MapOf(gob.UINT, gob.STRING), optional=True)
    paxos: Mapping[_NodeID, _NodeClaims] | None = gob.of(
        "Paxos", gob.MapOf(_NODE_ID, gob.struct_of("NodeClaims", _NodeClaims)), optional=True
    )
    ring: _Ring | None = gob.of("Ring", _RING, optional=True)


_STATE = gob.struct_of("gossipState", _GossipState)


@dataclass(frozen=True, slots=True)
class _Range:
    start: int = gob.of("Start", gob.UINT32)
    end: int = gob.of("End", gob.UINT32)


_RANGE = gob.struct_of("Range", _Range)


# --- out ---


def encode_state(state: State, ring: Ring | None = None, ourself: PeerName = UNKNOWN) -> bytes:
    """A gossip or broadcast, or the body of a ring update. `ring`: our own copy, in place of the state's."""
    copied = None
    if ring is not None:
        copied = _ring_record(ring, ourself)
    elif state.ring is not None:
        copied = _record(state.ring)
    paxos = None
    if state.paxos is not None:
        paxos = {_NodeID(*node): _claims_record(claims) for node, claims in state.paxos.items()}
    return gob.encode(_STATE, _GossipState(state.now, dict[int, str](state.nicknames.items()), paxos, copied))


def encode_ring(ring: Ring, ourself: PeerName) -> bytes:
    """The ring as it is stored."""
    return gob.encode(_RING, _ring_record(ring, ourself))


def encode_request(kind: Kind, wanted: Range) -> bytes:
    """A space request, or its denial."""
    return bytes((kind,)) + gob.encode(_RANGE, _Range(wanted.start, wanted.end))


def _ring_record(ring: Ring, ourself: PeerName) -> _Ring:
    return _record(Copy(ring.universe.range, ourself, ring.entries, ring.seeds))


def _record(copy: Copy) -> _Ring:
    return _Ring(copy.bounds.start, copy.bounds.end, copy.holder, [_Entry(*e) for e in copy.entries], copy.seeds)


def _claims_record(claims: Claims) -> _NodeClaims:
    value = _AcceptedValue(claims.value.names, _proposal_record(claims.value.origin))
    return _NodeClaims(_proposal_record(claims.promise), _proposal_record(claims.accepted), value)


def _proposal_record(proposal: Proposal) -> _ProposalID:
    return _ProposalID(proposal.round, _NodeID(*proposal.proposer))


# --- in: whatever is wrong raises GobError ---


def decode_state(data: bytes) -> State:
    """A gossip or broadcast, or the body of a ring update. Raises GobError."""
    record = gob.decode(data, _STATE)
    paxos = None
    if record.paxos is not None:
        paxos = {_node(key): _claims(value) for key, value in record.paxos.items()}
    return State(
        now=record.now,
        nicknames={_name(name): nickname for name, nickname in (record.nicknames or {}).items()},
        paxos=paxos,
        ring=None if record.ring is None else _copy(record.ring),
    )


def decode_ring(data: bytes) -> Copy:
    """A stored ring, unchecked, and whose it is. Raises GobError."""
    return _copy(gob.decode(data, _RING))


def decode_request(data: bytes) -> Range:
    """The range of a request or a denial, behind its kind. Raises GobError."""
    record = gob.decode(data, _RANGE)
    return Range(record.start, record.end)


def _copy(record: _Ring) -> Copy:
    entries = tuple(Entry(e.token, _name(e.peer), e.version, e.free) for e in record.entries)
    return Copy(Range(record.start, record.end), _name(record.peer), entries, tuple(map(_name, record.seeds)))


def _claims(record: _NodeClaims) -> Claims:
    value = record.accepted_value
    accepted = _proposal(record.accepted)
    names = tuple(map(_name, value.value))
    if accepted != NONE and not names:
        raise GobError("an accepted value without peers")
    return Claims(_proposal(record.promise), accepted, Value(names, _proposal(value.origin)))


def _proposal(record: _ProposalID) -> Proposal:
    return Proposal(record.round, _node(record.proposer))


def _node(record: _NodeID) -> Node:
    return Node(_name(record.name), record.uid)


def _name(number: int) -> PeerName:
    if number > _LARGEST_NAME:
        raise GobError(f"a peer name of more than 48 bits: {number:#x}")
    return PeerName(number)
