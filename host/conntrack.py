"""The kernel's memory of connections: what it knows of the mesh's UDP is forgotten when the router stops.

Else NAT that appears meanwhile would not be asked about the next router's datagrams. Source: CLI spec §11.
"""

import contextlib
import socket

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

_FAMILIES = {socket.AF_INET: "CTA_IP_V4", socket.AF_INET6: "CTA_IP_V6"}


def forget_udp(port: int) -> int:
    """Forget every UDP connection to this port; how many those were.

    Where nothing is tracked, or without the right to look, that is none.
    """
    count = 0
    with contextlib.suppress(NetlinkError, OSError), NFCTSocket() as tracker:
        for connection in list(tracker.dump()):
            flow = _flow(connection)
            if flow is None or (flow.proto, flow.dport) != (socket.IPPROTO_UDP, port):
                continue
            # It may have ended by itself.
            with contextlib.suppress(NetlinkError):
                tracker.entry("del", tuple_orig=flow)
                count += 1
    return count


def _flow(connection: object) -> NFCTAttrTuple | None:
    """The first packet's addresses and ports."""
    origin = connection.get_attr("CTA_TUPLE_ORIG")  # type: ignore[attr-defined]
    family = connection["nfgen_family"]  # type: ignore[index]
    if origin is None or family not in _FAMILIES:
        return None
    address, transport = origin.get_attr("CTA_TUPLE_IP"), origin.get_attr("CTA_TUPLE_PROTO")
    prefix = _FAMILIES[family]
    return NFCTAttrTuple(
        family=family,
        saddr=address.get_attr(f"{prefix}_SRC"),
        daddr=address.get_attr(f"{prefix}_DST"),
        proto=transport.get_attr("CTA_PROTO_NUM"),
        sport=transport.get_attr("CTA_PROTO_SRC_PORT"),
        dport=transport.get_attr("CTA_PROTO_DST_PORT"),
    )
