"""The router's part of the report that the mesh does not know: frames, addresses seen, sleeve, traffic."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fastdp import diagnostics
from fastdp.datapath import FastDataPath
from fastdp.direct import DirectDataPath
from host.tap import TAP_NAME
from mesh.names import format_peer_name
from mesh.status import MeshStatus
from mesh.tcp import MeshService
from overlay.forwarding import FrameRouter
from sleeve.datapath import SleeveDataPath
from weave_py import report


def fields(
    service: MeshService, frames: FrameRouter, sleeve: SleeveDataPath, fast: FastDataPath | DirectDataPath | None
) -> dict[str, Any]:
    """`Interface`, `CaptureStats` and `MACs` as the reference has them; then ours."""
    now = asyncio.get_running_loop().time()
    addresses = [
        {
            "Mac": mac.hex(":"),
            "Name": format_peer_name(peer),
            "NickName": service.topology.nickname(peer),
            "LastSeen": report.moment(time.time() + seen - now),
        }
        for mac, peer, seen in frames.macs.rows()
    ]
    return {
        "Interface": f"{TAP_NAME} (via tap)",
        "CaptureStats": capture_counts(TAP_NAME),
        "MACs": addresses or None,
        "Frames": dict(sorted(frames.counts.items())),
        "Fastdp": None if fast is None else diagnostics.document(fast),
        "Sleeve": {
            "Implementation": sleeve.packets.name,
            "Counts": dict(sorted(sleeve.counts.items())),
            "Links": [
                {
                    "Peer": format_peer_name(link.peer),
                    "MTU": link.mtu.mtu,
                    "MTUVerified": link.mtu.verified,
                    "FragmentsPass": link.link.fragments_pass,
                    "Counts": dict(sorted(link.counts.items())),
                }
                for link in sleeve.links()
            ]
            or None,
        },
    }


def add_counters(
    rows: list[dict[str, Any]] | None,
    status: MeshStatus,
    sleeve: SleeveDataPath,
    fast: FastDataPath | DirectDataPath | None,
) -> None:
    """Give each live connection's row its traffic: frames, by whichever path, and bytes of the control connection."""
    counts = {link.peer: Counter(link.counts) for link in sleeve.links()}
    for link in () if fast is None else fast.links():
        kernel = link.traffic()
        # Here every packet of the underlay carries one frame.
        kernel["datagrams-in"], kernel["datagrams-out"] = kernel["frames-in"], kernel["frames-out"]
        counts[link.peer] = counts.get(link.peer, Counter()) + kernel
    for row, connection in zip(rows or (), status.connections, strict=True):
        if connection.peer is None:
            continue
        data = counts.get(connection.peer, Counter())
        row["Counters"] = {
            "Peer": format_peer_name(connection.peer),
            "BytesIn": data["bytes-in"],
            "BytesOut": data["bytes-out"],
            "PacketsIn": data["datagrams-in"],
            "PacketsOut": data["datagrams-out"],
            "FramesIn": data["frames-in"],
            "FramesOut": data["frames-out"],
            "ControlBytesIn": connection.bytes_in,
            "ControlBytesOut": connection.bytes_out,
        }


def capture_counts(interface: str) -> dict[str, int]:
    """What the kernel handed us at the TAP port, and what it dropped because we did not fetch it in time."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            # Eight numbers of what we gave, then packets, errors and drops of what the kernel gave.
            packets, errors, drops = map(int, numbers.split()[9:12])
            return {"PacketsDropped": drops, "PacketsIfDropped": errors, "PacketsReceived": packets}
    return {}
