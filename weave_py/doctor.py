"""What is wrong with this host and its part of the mesh, and what to do about it: the decisions of `weave doctor`.

`examine` takes what the host is (`Facts`) and what the router says of itself (its report, None where none runs), and
knows nothing else: one finding for each thing that does not work, or will not when it is needed.
`doctor_mesh` has the checks of the report. Source: CLI spec §14; operator's guide.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from weave_py import doctor_mesh
from weave_py.doctor_finding import Finding, Severity, error, warning
from weave_py.log import printable
from weave_py.report import Document

__all__ = ["CHECKS", "Facts", "Finding", "Severity", "as_document", "examine", "text"]

CHECKS = ("kernel", "ports", "forwarding", "mtu", "clock", "names", "connections", "agreement", "ring", "state")
# Without a report nothing is known of these.
_OF_THE_MESH = ("mtu", "clock", "names", "connections", "agreement", "ring")
_OLDEST_KERNEL = (5, 4)
# What the bridge has unless `--mtu` says otherwise, in octets.
_OPEN_MTU = 65521

_FEATURES = {
    "tun": (Severity.ERROR, "load the module: modprobe tun"),
    "bridge": (Severity.ERROR, "load the module: modprobe bridge"),
    "veth": (Severity.ERROR, "load the module: modprobe veth"),
    "nftables": (Severity.ERROR, "load the module: modprobe nf_tables"),
    "vxlan": (Severity.WARNING, "load the module: modprobe vxlan; without it frames go by sleeve, which costs CPU"),
}


@dataclass(frozen=True, slots=True)
class Busy:
    """A port that somebody has: `tcp 0.0.0.0:6783`, and who, as far as it can be seen."""

    port: str
    holder: str


@dataclass(frozen=True, slots=True)
class Facts:
    """This host. What could not be looked at is left at its default."""

    root: bool = True
    kernel: tuple[int, int] = (99, 0)
    # Feature and why it is not there.
    lacking: Mapping[str, str] = field(default_factory=dict)
    busy: Sequence[Busy] = ()
    # Lines of `host.forward.obstacles`.
    obstacles: Sequence[str] = ()
    bridge_mtu: int | None = None
    # The state on the disk, and files of it that were moved aside.
    state_path: str = ""
    damaged: Sequence[str] = ()
    # Bytes that are left where the state is; None if nobody knows.
    free_bytes: int | None = None
    # Devices of Weave Net 2.8 that are still there.
    old_devices: Sequence[str] = ()


def examine(facts: Facts, report: Document | None) -> list[Finding]:
    """Everything that is wrong, the worse first."""
    found = [*_kernel(facts), *_ports(facts, report), *_forwarding(facts), *_state(facts, report)]
    if report is not None:
        found += [*_mtu(facts, report), *doctor_mesh.examine(report)]
    order = [Severity.ERROR, Severity.WARNING]
    return sorted(found, key=lambda finding: (order.index(finding.severity), CHECKS.index(finding.check)))


def unchecked(facts: Facts, report: Document | None) -> dict[str, str]:
    """What could not be looked at, and why."""
    reasons: dict[str, str] = {}
    if report is None:
        reasons |= dict.fromkeys(_OF_THE_MESH, "no router answers")
    if not facts.root:
        reasons |= dict.fromkeys(("kernel", "ports", "forwarding"), "only root may look: run it as root")
    return reasons


def as_document(facts: Facts, report: Document | None) -> dict[str, Any]:
    """For a program: findings, and what was looked at."""
    left_out = unchecked(facts, report)
    return {
        "Findings": [
            {key.title(): value for key, value in asdict(finding).items()} for finding in examine(facts, report)
        ],
        "Checked": [check for check in CHECKS if check not in left_out],
        "NotChecked": left_out,
    }


def text(document: Mapping[str, Any]) -> str:
    """For people: two lines a finding, then what was looked at."""
    lines = []
    for finding in document["Findings"]:
        lines.append(f"{finding['Severity']:<7} {finding['Check']}: {printable(finding['What'])}")
        lines.append(f"        remedy: {printable(finding['Remedy'])}")
    lines.append(f"checked: {', '.join(document['Checked'])}; {len(document['Findings']) or 'no'} findings")
    reasons: dict[str, list[str]] = {}
    for check, reason in document["NotChecked"].items():
        reasons.setdefault(reason, []).append(check)
    lines += [f"not checked: {', '.join(checks)} ({reason})" for reason, checks in reasons.items()]
    return "".join(f"{line}\n" for line in lines)


def _kernel(facts: Facts) -> Iterator[Finding]:
    if facts.kernel < _OLDEST_KERNEL:
        have, need = (".".join(map(str, version)) for version in (facts.kernel, _OLDEST_KERNEL))
        yield error("kernel", f"the kernel is {have}", f"run {need} or later")
    for feature, reason in facts.lacking.items():
        severity, remedy = _FEATURES[feature]
        yield Finding("kernel", severity, f"this kernel makes no {feature}: {reason}", remedy)


def _ports(facts: Facts, report: Document | None) -> Iterator[Finding]:
    if report is not None:
        # What is in use is in use by the router that answered.
        return
    for busy in facts.busy:
        yield error(
            "ports",
            f"{busy.port} is in use by {busy.holder}",
            "stop that program, or launch with another --port (the same on all hosts)",
        )


def _forwarding(facts: Facts) -> Iterator[Finding]:
    for line in facts.obstacles:
        what, _, remedy = line.partition(": ")
        yield warning("forwarding", what, remedy)


def _mtu(facts: Facts, report: Document) -> Iterator[Finding]:
    carried = [
        (row["Attrs"]["mtu"], row["Info"].split()[-1], row["Address"])
        for row in report["Router"]["Connections"] or ()
        if row["State"] == "established" and row["Attrs"] and row["Attrs"].get("mtu")
    ]
    if not carried:
        return
    least, label, address = min(carried)
    if facts.bridge_mtu is not None and least < facts.bridge_mtu < _OPEN_MTU:
        yield warning(
            "mtu",
            f"the bridge has MTU {facts.bridge_mtu}, and the connection to {label} at {address} carries {least} octets",
            f"launch with --mtu {least}, or without --mtu: containers then learn by ICMP what fits",
        )
    for mtu, label, address in sorted(carried):
        if mtu < doctor_mesh.LEAST_MTU:
            yield warning(
                "mtu",
                f"the connection to {label} at {address} carries {mtu} octets; IPv6 needs {doctor_mesh.LEAST_MTU}",
                "raise the MTU of the network between the hosts, or of the tunnel that they are connected by",
            )


def _state(facts: Facts, report: Document | None) -> Iterator[Finding]:
    for path in facts.damaged:
        yield warning(
            "state",
            f"a state that was damaged is kept as {path}",
            "remove it once this host's containers have the addresses they should have",
        )
    if facts.free_bytes is not None and facts.free_bytes < doctor_mesh.LEAST_SPACE:
        yield error(
            "state",
            f"{facts.free_bytes >> 10} KiB are left where {facts.state_path} is",
            "make room: without it no address can be given out or taken back",
        )
    if facts.old_devices and report is not None:
        yield warning(
            "state",
            f"devices of Weave Net 2.8 are left: {', '.join(facts.old_devices)}",
            "if you will not go back to it, remove them: ip link del NAME",
        )
