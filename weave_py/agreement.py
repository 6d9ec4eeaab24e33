"""Do all peers hold the same topology, ring and names; and if not, who differs since when.

Every node of our kind tells all others a digest of each, on a gossip channel of its own, when one changed and now and
then. Weave Net 2.8 relays such a channel and says nothing on it. Of a 2.8 router that is our neighbour some of this
shows all the same, in the gossip that it sends every half a minute; of one further away nothing. A digest says that
two nodes differ, not which of them is right. The record: u8 format, u64 UID, u64 milliseconds since the epoch, u8
which digests follow (bit 0 topology, 1 ring, 2 names), then u64 digest and u32 count for each; more bytes may follow.
Source: mesh spec §8.4, §11.1, §11.5; IPAM spec §5.3; CLI spec §14.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipam.ranges import Subnet
from ipam.wire import decode_state
from mesh.names import PeerName, format_peer_name
from weave_py.log import printable
from weave_py.report import moment

CHANNEL = "digests"
SUBJECTS = ("topology", "ring", "names")
_FORMAT = 1
_HEAD = struct.Struct(">BQQB")
_DIGEST = struct.Struct(">QI")
_MASK = (1 << 64) - 1
# Seconds: between two records of a node that is busy, and of one that is not. Both grow with the mesh, so that a node
# hears of at most about twenty, and five, of them a second.
_GAP, _GAP_PER_PEER = 5.0, 1 / 20
_INTERVAL, _INTERVAL_PER_PEER = 60.0, 1 / 5
# A difference that is younger is a change on its way.
_SETTLING = 20.0
# Neighbours gossip every 30 s; what comes in between is of changes.
_GLANCE = 25.0


@dataclass(frozen=True, slots=True)
class Digest:
    """64 bits of what a node holds of a subject, and of how many parts that is."""

    value: int
    count: int


Holding = Mapping[str, Digest]


@dataclass(frozen=True, slots=True)
class Record:
    """What a node says of itself. `clock`: its milliseconds since the epoch."""

    uid: int
    clock: int
    holding: Holding


def encode(record: Record) -> bytes:
    """A record as it travels."""
    present = [name for name in SUBJECTS if name in record.holding]
    bits = sum(1 << SUBJECTS.index(name) for name in present)
    digests = (_DIGEST.pack(record.holding[name].value, record.holding[name].count) for name in present)
    return _HEAD.pack(_FORMAT, record.uid, record.clock, bits) + b"".join(digests)


def decode(message: bytes) -> Record | None:
    """A record; None if these bytes are none that we know, which is no reason to hang up on whoever relayed them."""
    if len(message) < _HEAD.size or message[0] != _FORMAT:
        return None
    _, uid, clock, bits = _HEAD.unpack_from(message)
    present = [name for number, name in enumerate(SUBJECTS) if bits >> number & 1]
    if len(message) < _HEAD.size + len(present) * _DIGEST.size:
        return None
    holding = {
        name: Digest(*_DIGEST.unpack_from(message, _HEAD.size + place * _DIGEST.size))
        for place, name in enumerate(present)
    }
    return Record(uid, clock, holding)


def digest(parts: Iterable[str]) -> Digest:
    """Of texts in any order."""
    total = count = 0
    for part in parts:
        hashed = hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        total, count = total + int.from_bytes(hashed, "big") & _MASK, count + 1
    return Digest(total, count)


def ring_digest(ipam: Mapping[str, Any]) -> Digest:
    """Of the report's object `IPAM`: who owns what.

    Versions rise with every address that is given out, and travel with the next gossip only: they differ always.
    """
    entries = ipam["Entries"] or ()
    owners = [f"{entry['Token']} {entry['Size']} {entry['Peer']}" for entry in entries]
    return Digest(digest([*owners, ipam["Range"]]).value, len(owners))


def neighbour_ring(message: bytes, universe: Subnet) -> Digest | None:
    """The same of a neighbour, by its gossip on the channel of allocation; None where it has no ring.

    The message was taken in already, so it can be read.
    """
    copy = decode_state(message).ring
    if copy is None or copy.bounds != universe.range:
        return None
    entries = [
        {"Token": str(universe.address(span.start)), "Size": span.size, "Peer": format_peer_name(entry.peer)}
        for entry, span in copy.over(universe).divided()
    ]
    return ring_digest({"Range": str(universe), "Entries": entries})


@dataclass(slots=True)
class _Peer:
    holding: Holding = field(default_factory=dict)
    heard: float = 0.0
    # How far its clock is ahead of ours, seconds; None for one that never said, and of which we know what it gossips.
    skew: float | None = None
    # When a subject was last seen in its gossip, seconds since the epoch.
    glances: dict[str, float] = field(default_factory=dict)
    # Since when a subject differs, seconds since the epoch.
    since: dict[str, float] = field(default_factory=dict)


class Agreement:
    """What we hold, and what the others said they hold. All times are seconds since the epoch."""

    def __init__(self) -> None:
        self._ours: Holding = {}
        self._peers: dict[PeerName, _Peer] = {}
        self._told: Holding | None = None
        self._told_at = 0.0

    # --- telling ---

    def hold(self, holding: Holding, now: float) -> None:
        """What we hold now."""
        self._ours = dict(holding)
        for peer in self._peers.values():
            self._compare(peer, now)

    def glance_due(self, name: PeerName, subject: str, now: float) -> bool:
        """Whether gossip of a neighbour on a subject is worth a look: it says nothing itself, or said nothing yet."""
        peer = self._peers.get(name)
        return peer is None or (peer.skew is None and abs(now - peer.glances.get(subject, 0.0)) >= _GLANCE)

    def glanced(self, name: PeerName, subject: str, digest: Digest, now: float) -> None:
        """A neighbour that says nothing gossiped all that it holds of a subject."""
        peer = self._peers.setdefault(name, _Peer())
        peer.holding, peer.heard = {**peer.holding, subject: digest}, now
        peer.glances[subject] = now
        self._compare_one(peer, subject, now)

    def due(self, now: float) -> bool:
        """Whether the others should be told: it changed, or it is a while ago. Whoever asks and gets True tells."""
        peers = len(self._peers)
        waited = abs(now - self._told_at)
        changed = self._told != self._ours and waited >= max(_GAP, peers * _GAP_PER_PEER)
        if not changed and waited < max(_INTERVAL, peers * _INTERVAL_PER_PEER):
            return False
        self._told, self._told_at = self._ours, now
        return True

    def record(self, uid: int, now: float) -> Record:
        """What to tell."""
        return Record(uid, int(now * 1000), self._ours)

    # --- hearing ---

    def heard(self, name: PeerName, record: Record, now: float) -> None:
        """A peer said what it holds."""
        peer = self._peers.setdefault(name, _Peer())
        peer.holding, peer.heard, peer.skew = record.holding, now, record.clock / 1000 - now
        peer.glances.clear()
        self._compare(peer, now)

    def keep(self, names: Iterable[PeerName]) -> None:
        """Forget everybody else."""
        self._peers = {name: self._peers[name] for name in names if name in self._peers}

    def _compare(self, peer: _Peer, now: float) -> None:
        for subject in SUBJECTS:
            # What was gossiped is as old as the gossip: it is compared with what we held then.
            if subject not in peer.glances:
                self._compare_one(peer, subject, now)

    def _compare_one(self, peer: _Peer, subject: str, now: float) -> None:
        ours, theirs = self._ours.get(subject), peer.holding.get(subject)
        if ours is None or theirs is None or ours == theirs:
            peer.since.pop(subject, None)
        else:
            peer.since.setdefault(subject, now)

    # --- showing ---

    def document(self, peers: Iterable[tuple[PeerName, str]], now: float) -> dict[str, Any]:
        """The report's object `Agreement`, about these others (name, nickname)."""
        others = sorted(peers)
        settling = _SETTLING + 2 * max(_GAP, len(others) * _GAP_PER_PEER)
        rows = [self._row(name, nickname, now, settling) for name, nickname in others]
        differences = [difference for row in rows for difference in row["Differs"]]
        return {
            "Agreed": not any(difference["Lasting"] for difference in differences),
            "Subjects": [self._subject(subject, others) for subject in SUBJECTS],
            "Peers": rows,
        }

    def _subject(self, subject: str, others: list[tuple[PeerName, str]]) -> dict[str, Any]:
        said = [self._peers[name] for name, _ in others if name in self._peers]
        comparable = [peer for peer in said if subject in peer.holding] if subject in self._ours else []
        differ = sum(1 for peer in comparable if subject in peer.since)
        return {
            "Subject": subject,
            "Ours": _shown(self._ours.get(subject)),
            "Agree": len(comparable) - differ,
            "Differ": differ,
            "Unknown": len(others) - len(comparable),
        }

    def _row(self, name: PeerName, nickname: str, now: float, settling: float) -> dict[str, Any]:
        peer = self._peers.get(name)
        return {
            "Name": format_peer_name(name),
            "NickName": nickname,
            "Says": [] if peer is None else [subject for subject in SUBJECTS if subject in peer.holding],
            "Heard": None if peer is None else moment(peer.heard),
            "ClockSkew": None if peer is None or peer.skew is None else round(peer.skew, 3),
            "Differs": []
            if peer is None
            else [
                {
                    "Subject": subject,
                    "Since": moment(since),
                    "Lasting": peer.glances.get(subject, now) - since >= settling,
                    "Theirs": _shown(peer.holding.get(subject)),
                    "Ours": _shown(self._ours.get(subject)),
                }
                for subject, since in sorted(peer.since.items())
            ],
        }


def _shown(value: Digest | None) -> dict[str, Any] | None:
    return None if value is None else {"Digest": f"{value.value:016x}", "Count": value.count}


def text(document: Mapping[str, Any]) -> str:
    """The document for people: a line a subject, then one for each peer that differs or does not say."""
    lines = []
    for row in document["Subjects"]:
        if row["Ours"] is None:
            lines.append(f"{row['Subject']:<8} not used here")
            continue
        said = [f"{row['Agree']} agree with us"]
        said += [f"{row['Differ']} differ"] if row["Differ"] else []
        said += [f"{row['Unknown']} do not say"] if row["Unknown"] else []
        lines.append(f"{row['Subject']:<8} {', '.join(said)} ({row['Ours']['Count']} entries)")
    for peer in document["Peers"]:
        label = f"{peer['Name']}({printable(peer['NickName'])})"
        for difference in peer["Differs"]:
            what = "differs" if difference["Lasting"] else "is changing"
            counts = f"{difference['Theirs']['Count']} entries, ours {difference['Ours']['Count']}"
            lines.append(f"{label} {difference['Subject']} {what} since {difference['Since']}: {counts}")
        if not peer["Says"]:
            lines.append(f"{label} does not say: it runs Weave Net 2.8, or is new")
        elif peer["ClockSkew"] is None:
            lines.append(
                f"{label} runs Weave Net 2.8: what is known of it is what it gossips ({', '.join(peer['Says'])})"
            )
    return "".join(f"{line}\n" for line in lines)
