"""Addresses of an interface, in the namespace of the calling thread. Source: data plane spec §8, rtnetlink(7)."""

import errno
import socket
import threading
from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

Address = IPv4Interface | IPv6Interface
_ETH_P_ARP = 0x0806
_IFA_F_NODAD = 0x02


def add(ip: IPRoute, index: int, address: Address) -> bool:
    """Give an interface an address; whether it is new. Raises NetlinkError."""
    extra: dict[str, object] = {}
    if isinstance(address, IPv6Interface):
        extra["flags"] = _IFA_F_NODAD
    elif address.network.prefixlen < 31:
        extra["broadcast"] = str(address.network.broadcast_address)
    try:
        ip.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **extra)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return False
    return True


def remove(ip: IPRoute, index: int, text: str) -> None:
    """Take an address, `ip/prefix`, away; no error if it is not there. Raises NetlinkError."""
    host, _, prefix = text.partition("/")
    try:
        ip.addr("delete", index=index, address=host, prefixlen=int(prefix))
    except NetlinkError as error:
        # It went with another of its subnet.
        if error.code != errno.EADDRNOTAVAIL:
            raise


def keep(ip: IPRoute, index: int, staying: Iterable[str]) -> None:
    """Put back what the kernel took along: with an address go those that came after it in its subnet."""
    for text in staying:
        add(ip, index, ip_interface(text))


def announce(interface: str, mac: str, address: IPv4Interface) -> None:
    """A gratuitous ARP request: whoever knew this address elsewhere learns better (RFC 5227 §3). Raises OSError."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    broadcast = b"\xff" * 6
    arp = b"\0\1\x08\0\6\4\0\1" + hardware + address.ip.packed + broadcast + address.ip.packed
    frame = broadcast + hardware + _ETH_P_ARP.to_bytes(2, "big") + arp
    # No protocol: it is there to send. To close one takes the kernel a grace period, for which nobody has to wait.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.sendto(frame, (interface, _ETH_P_ARP))
    finally:
        threading.Thread(target=sock.close, name="close").start()
