"""What the kernel's data path does, for the report: links with their health, peers by short id, addresses, drops."""

from typing import Any

from fastdp.datapath import FastDataPath
from fastdp.direct import DirectDataPath
from fastdp.forwarder import FastForwarder
from fastdp.ipsec import IpsecError, dropped_in_clear
from fastdp.kernel import interface
from fastdp.maps import DROPS, NO_SHORT, host_text, unpack_address
from fastdp.wires import LIMIT
from fastdp.xfrm import State
from mesh.names import format_peer_name

_SHOWN_ADDRESSES = 1000


def document(path: FastDataPath | DirectDataPath) -> dict[str, Any]:
    """The report's `Fastdp`. Ages are in seconds; of very many addresses only some are listed."""
    if isinstance(path, DirectDataPath):
        return {
            "Mode": "a device per peer",
            "Problem": path.problem,
            "Ports": path.ports,
            "MTU": path.mtu,
            "Adopted": path.adopted,
            "Links": [_link(link) for link in path.links()] or None,
            "Peers": None,
            "MACs": None,
            "Transmit": None,
            "Counts": dict(sorted(path.counts.items())),
            "Drops": {},
        }
    kernel = path.kernel
    counts = kernel.counts()
    return {
        "Mode": "programs",
        "Problem": "",
        "Ports": kernel.ports,
        "MTU": path.mtu,
        "Adopted": kernel.adopted,
        "Links": [_link(link) for link in path.links()] or None,
        "Peers": [
            {
                "ShortID": short,
                "Name": "" if owner is None else format_peer_name(owner),
                "Path": route.kind.name.lower(),
                "Hop": host_text(route.hop) if any(route.hop) else "",
                "Device": interface(route.wired) if route.wired else "",
            }
            for short, owner, route in path.table.shown()
        ]
        or None,
        "MACs": _addresses(path) or None,
        "Transmit": {"Devices": len(path.wires.indices()), "Limit": LIMIT, "Problem": path.wires.problem},
        "Counts": {name: number for name, number in sorted((counts + path.counts).items()) if number},
        "Drops": {name: counts[name] for name in DROPS} | (dropped_in_clear() if path.ipsec is not None else {}),
    }


def _link(link: FastForwarder) -> dict[str, Any]:
    return {
        "Peer": format_peer_name(link.peer),
        "Address": host_text(link.route.hop),
        "Established": link.link.established,
        "Reason": link.link.trouble,
        "PathMTU": link.link.path_mtu or 0,
        "Needs": link.link.needs,
        "Changes": link.link.changes,
        "ESP": _esp(link),
        "Counts": dict(sorted(link.traffic().items())),
    }


def _esp(link: FastForwarder) -> dict[str, Any] | None:
    """An encrypted link's associations, by the kernel's own counters."""
    if link.esp is None:
        return None
    try:
        inward, outward = link.esp.found()
    except IpsecError as error:
        return {"Problem": str(error)}
    return {"In": _association(inward), "Out": _association(outward)}


def _association(state: State | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "SPI": f"{state.spi:08x}",
        "Packets": state.packets,
        "Bytes": state.octets,
        "Replayed": state.replayed,
        "Failed": state.failed,
    }


def _addresses(path: FastDataPath) -> list[dict[str, Any]]:
    found = []
    now = path.now()
    for name in ("locals", "remotes"):
        one = path.kernel.maps[name]
        for key in one.first_keys(_SHOWN_ADDRESSES):
            value = one.get(key)
            if value is None:
                continue
            seen, short = unpack_address(value)
            peer = path.ourself if name == "locals" else path.table.owners.get(short)
            found.append(
                {
                    "Mac": key[:6].hex(":"),
                    "Name": "" if peer is None else format_peer_name(peer),
                    "ShortID": None if short == NO_SHORT else short,
                    "Age": round(max(0.0, now - seen), 1),
                }
            )
    return found
