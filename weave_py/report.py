"""The report: one document of everything the router knows of itself, in the field names of Weave Net.

`/report` serves it as JSON, templates are filled from it, and the status texts are written from it, so that all
of them say the same. Source: CLI spec §6.3.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mesh.names import format_peer_name
from mesh.status import MeshStatus

Document = dict[str, Any]
# Parts of the document that are there only where the service runs, and parts whose keys vary.
OPTIONAL = frozenset(("VersionCheck", "IPAM", "DNS", "Proxy", "Plugin"))
MAPS = frozenset(("Attrs", "OverlayDiagnostics", "CaptureStats"))


class VersionCheck(dict[str, Any]):
    """The version check, which is never made; as text it says so."""

    def __str__(self) -> str:
        return "version check update disabled"


def build(status: MeshStatus, router_fields: Mapping[str, Any], version: str) -> Document:
    """The report of a router; `router_fields` are Interface, CaptureStats and MACs."""
    return {
        "Ready": True,
        "Version": version,
        "VersionCheck": VersionCheck(
            Enabled=False, Success=False, NewVersion="", NextCheckAt="0001-01-01T00:00:00Z"
        ),
        "Router": {**router(status), **router_fields},
    }


def router(status: MeshStatus) -> Document:
    """The mesh's part. Empty lists are null, as Go's are."""
    return {
        "Protocol": "weave",
        "ProtocolMinVersion": status.protocol_min_version,
        "ProtocolMaxVersion": status.protocol_max_version,
        "Encryption": status.encryption,
        "PeerDiscovery": status.peer_discovery,
        "Name": format_peer_name(status.name),
        "NickName": status.nickname,
        "Port": status.port,
        "Peers": [
            {
                "Name": format_peer_name(peer.name),
                "NickName": peer.nickname,
                "UID": peer.uid,
                "ShortID": peer.short_id,
                "Version": peer.version,
                "Connections": [
                    {
                        "Name": format_peer_name(link.name),
                        "NickName": link.nickname,
                        "Address": link.address,
                        "Outbound": link.outbound,
                        "Established": link.established,
                    }
                    for link in peer.connections
                ]
                or None,
            }
            for peer in status.peers
        ],
        "UnicastRoutes": [
            {"Dest": format_peer_name(destination), "Via": format_peer_name(via)}
            for destination, via in status.unicast_routes
        ],
        "BroadcastRoutes": [
            {"Source": format_peer_name(source), "Via": [format_peer_name(hop) for hop in via] or None}
            for source, via in status.broadcast_routes
        ],
        "Connections": [
            {
                "Address": row.address,
                "Outbound": row.outbound,
                "State": row.state,
                "Info": row.info,
                "Attrs": None if row.attrs is None else dict(row.attrs),
            }
            for row in status.connections
        ]
        or None,
        "TerminationCount": status.termination_count,
        "Targets": list(status.targets) or None,
        "OverlayDiagnostics": dict(status.overlay_diagnostics),
        "TrustedSubnets": list(status.trusted_subnets),
    }


def moment(seconds: float) -> str:
    """A moment since the epoch as Go's JSON writes it: UTC, nanoseconds without zeros at the end."""
    whole, fraction = divmod(round(seconds * 1e9), 10**9)
    tail = f".{fraction:09d}".rstrip("0") if fraction else ""
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S") + tail + "Z"


_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def to_json(value: Any, *, indent: bool) -> str:
    """JSON with Go's escapes; four spaces of indentation or none."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, indent=4 if indent else None, separators=separators, ensure_ascii=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text
