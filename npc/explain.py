"""Why a connection is allowed or denied: both sides, the policies there, the rule that allows, or why none does.

    Explanation: what is modelled, from `npc.verdict`; `document` is for programs and for `text`, which prints it.
    Whoever asks the kernel adds to the document: `programmed` (words), `drops` and `flows` (lists of words).

Source: NPC spec §7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from json import dumps
from typing import Any

from npc.model import Model
from npc.plan import Direction
from npc.proposal import Proposal, propose
from npc.question import End, Question, questions
from npc.ranges import Network
from npc.reasons import port_text, why_not
from npc.verdict import Connection, Match, Side, Verdict, judge

_WORDS = {Direction.EGRESS: "egress of", Direction.INGRESS: "ingress to"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule, or a whole policy without rules, that might have allowed, and why it does not."""

    rule: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExplainedSide:
    """One end: the judgement, every candidate if it denies, and what would change that."""

    end: End
    side: Side
    candidates: tuple[Candidate, ...]
    proposal: Proposal | None

    def document(self) -> dict[str, Any]:
        """For programs."""
        match = self.side.match
        document: dict[str, Any] = {
            "end": str(self.end),
            "isolated": bool(self.side.policies),
            "policies": [str(each) for each in self.side.policies],
            "allowed": self.side.allowed,
        }
        if match is not None and self.side.policies:
            document["allowedBy"] = _match(match)
        if self.candidates:
            document["candidates"] = [{"rule": each.rule, "reasons": list(each.reasons)} for each in self.candidates]
        if self.proposal is not None:
            document["proposal"] = self.proposal.document()
        return document


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole answer about one connection."""

    question: Question
    verdict: Verdict
    egress: ExplainedSide
    ingress: ExplainedSide

    @property
    def allowed(self) -> bool:
        """The verdict."""
        return self.verdict.allowed

    @property
    def connection(self) -> Connection:
        """What was judged."""
        return self.question.connection

    def document(self) -> dict[str, Any]:
        """For programs, and for `text`."""
        exemption = self.verdict.exemption
        return {
            "verdict": "allow" if self.allowed else "deny",
            "source": str(self.question.source),
            "destination": str(self.question.destination),
            "sourceAddress": str(ip_address(self.connection.source)),
            "destinationAddress": str(ip_address(self.connection.destination)),
            "port": self.question.what,
            "exempt": None if exemption is None else exemption.value,
            "unknownDestination": self.verdict.closed,
            "egress": self.egress.document(),
            "ingress": self.ingress.document(),
            "notes": list(self.question.notes),
        }


def explain(
    model: Model,
    source: str,
    destination: str,
    port: str,
    *,
    multicast: bool = True,
    closed: tuple[Network, ...] = (),
    proposals: bool = False,
) -> tuple[Explanation, ...]:
    """Answers for `shop/front`, `shop/db`, `5432/tcp`, one a family. Raises UnknownError."""
    asked = questions(model, source, destination, port)
    return tuple(explained(model, each, multicast=multicast, closed=closed, proposals=proposals) for each in asked)


def explained(
    model: Model,
    question: Question,
    *,
    multicast: bool = True,
    closed: tuple[Network, ...] = (),
    proposals: bool = False,
) -> Explanation:
    """The answer to one question as `judge` gives it; with `proposals`, what would allow it."""
    verdict = judge(model, question.connection, multicast=multicast, closed=closed)

    def side(end: End, judged: Side) -> ExplainedSide:
        wanted = proposals and not verdict.allowed
        proposal = propose(model, judged, question.connection) if wanted else None
        return ExplainedSide(end, judged, candidates(model, judged, question.connection), proposal)

    return Explanation(
        question, verdict, side(question.source, verdict.egress), side(question.destination, verdict.ingress)
    )


def candidates(model: Model, side: Side, connection: Connection) -> tuple[Candidate, ...]:
    """Every rule of a side that denies, with what it lacks; none if the side allows."""
    if side.allowed:
        return ()
    found = []
    for policy in side.policies:
        rules = policy.rules[side.direction]
        if policy.error:
            found.append(Candidate(str(policy), (f"cannot be used and allows nothing: {policy.error}",)))
        elif not rules:
            found.append(Candidate(str(policy), (f"allows no {side.direction.name.lower()} at all",)))
        for number, rule in enumerate(rules):
            peers, ports = why_not(model, rule, side.direction, connection)
            found.append(Candidate(f"{policy}#{number}", (*peers, *ports)))
    return tuple(found)


def _match(match: Match) -> dict[str, str]:
    return {
        "rule": f"{match.policy}#{match.rule}",
        "peer": "any" if match.peer is None else str(match.peer),
        "port": "any" if match.port is None else port_text(match.port),
    }


# --- in words ---


def text(document: Mapping[str, Any]) -> list[str]:
    """The lines that a person reads, of `Explanation.document` and what the caller added to it."""
    lines = [f"{document['verdict']}: {document['source']} -> {document['destination']} {document['port']}"]
    if document["exempt"]:
        lines.append(f"  exempt: {document['exempt']}")
    if document["unknownDestination"]:
        lines.append("  closed: no pod and no node has the destination's address (--unknown=drop)")
    for direction in (Direction.EGRESS, Direction.INGRESS):
        lines += _side_text(document[direction.name.lower()], direction)
    lines += [f"  note: {note}" for note in document["notes"]]
    if "programmed" in document:
        lines.append(f"  on this node: {document['programmed']}")
    lines += [f"  flow: {flow}" for flow in document.get("flows", ())]
    lines += [f"  dropped: {drop}" for drop in document.get("drops", ())]
    return lines


def _side_text(side: Mapping[str, Any], direction: Direction) -> list[str]:
    where = f"  {_WORDS[direction]} {side['end']}"
    if not side["isolated"]:
        return [f"{where}: not isolated, no policy asks"]
    lines = [f"{where}: isolated by {', '.join(side['policies'])}"]
    if "allowedBy" in side:
        match = side["allowedBy"]
        lines.append(f"    allowed by {match['rule']}: peer {match['peer']}, port {match['port']}")
    for candidate in side.get("candidates", ()):
        lines += [f"    {candidate['rule']}: {reason}" for reason in candidate["reasons"]]
    if "proposal" in side:
        proposal = side["proposal"]
        lines.append(
            f"    to allow it, add to {proposal['add to']} of {proposal['policy']}: {dumps(proposal['value'])}"
        )
    return lines
