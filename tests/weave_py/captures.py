"""Captures of a Weave Net 2.8 router's texts and reports, read back into what they were written from."""

import json
import re
from collections.abc import Iterator
from typing import Any

from mesh.names import PeerName, parse_peer_name
from mesh.status import ConnectionRow, MeshStatus, PeerLinkRow, PeerRow
from tests.vectors import ROOT

API = ROOT / "api"


def report(name: str) -> dict[str, Any]:
    """A captured report."""
    return dict(json.loads((API / f"report.{name}.json").read_text()))


def text(name: str) -> str:
    """A captured text."""
    return (API / f"{name}.txt").read_text()


def names(pattern: str) -> list[str]:
    """The captures that fit, without their ending."""
    found = sorted(path.stem for path in API.glob(pattern))
    assert found, f"no capture fits {pattern}"
    return found


def mesh_status(router: dict[str, Any]) -> MeshStatus:
    """What the mesh said when this report was written."""
    name = parse_peer_name
    return MeshStatus(
        protocol_min_version=router["ProtocolMinVersion"],
        protocol_max_version=router["ProtocolMaxVersion"],
        encryption=router["Encryption"],
        peer_discovery=router["PeerDiscovery"],
        name=name(router["Name"]),
        nickname=router["NickName"],
        port=router["Port"],
        peers=tuple(map(_peer, router["Peers"])),
        unicast_routes=tuple((name(row["Dest"]), name(row["Via"])) for row in router["UnicastRoutes"]),
        broadcast_routes=tuple(
            (name(row["Source"]), tuple(map(name, row["Via"] or ()))) for row in router["BroadcastRoutes"]
        ),
        connections=tuple(
            ConnectionRow(row["Address"], row["Outbound"], row["State"], row["Info"], row["Attrs"])
            for row in router["Connections"] or ()
        ),
        termination_count=router["TerminationCount"],
        targets=tuple(router["Targets"] or ()),
        overlay_diagnostics=router["OverlayDiagnostics"],
        trusted_subnets=tuple(router["TrustedSubnets"]),
    )


def _peer(row: dict[str, Any]) -> PeerRow:
    links = tuple(
        PeerLinkRow(
            parse_peer_name(link["Name"]), link["NickName"], link["Address"], link["Outbound"], link["Established"]
        )
        for link in row["Connections"] or ()
    )
    return PeerRow(parse_peer_name(row["Name"]), row["NickName"], row["UID"], row["ShortID"], row["Version"], links)


def rows(section: str) -> dict[str, str]:
    """The labels and values of one section of an overview."""
    return {label.strip(): value for label, _, value in (line.partition(": ") for line in section.splitlines())}


def counted(value: str) -> list[str]:
    """`3 (2 established, 1 failed)` or `... (with 6 established connections)`: the states, one each."""
    return [state for count, state in re.findall(r"(\d+) ([a-z]+)", value) for _ in range(int(count))]


def status_of_overview(section: str) -> MeshStatus:
    """A mesh of which this is the overview: as many peers, links, connections and targets as it says."""
    said = rows(section)
    label = re.fullmatch(r"(\S+?)\((.*)\)", said["Name"])
    versions = re.findall(r"\d+", said["Protocol"])
    assert label is not None and versions
    links = tuple(PeerLinkRow(PeerName(9), "", "", False, state == "established") for state in counted(said["Peers"]))
    count = int(said["Peers"].split()[0])
    peers = tuple(PeerRow(PeerName(n), "", 0, 0, 0, () if n else links) for n in range(count))
    subnets = said["TrustedSubnets"]
    return MeshStatus(
        protocol_min_version=int(versions[0]),
        protocol_max_version=int(versions[-1]),
        encryption=said["Encryption"] == "enabled",
        peer_discovery=said["PeerDiscovery"] == "enabled",
        name=parse_peer_name(label[1]),
        nickname=label[2],
        port=6783,
        peers=peers,
        unicast_routes=(),
        broadcast_routes=(),
        connections=tuple(ConnectionRow("", True, state, "", None) for state in counted(said["Connections"])),
        termination_count=0,
        targets=("",) * int(said["Targets"]),
        overlay_diagnostics={},
        trusted_subnets=() if subnets == "none" else tuple(subnets.split(", ")),
    )


def session(*commands: str) -> Iterator[tuple[str, str, int]]:
    """(command, output, exit code) of the captured session on the command line, of these commands in their order."""
    for block in re.split(r"(?m)^host1# weave --local ", text("cli-transcript"))[1:]:
        words, _, rest = block.partition("\n")
        body, _, code = rest.rpartition("[exit status ")
        if words.split()[0] in commands:
            yield words, body, int(code.split("]")[0])
