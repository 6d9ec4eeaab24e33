"""The way back to Weave Net 2.8: what we hold in the kernel goes, what containers stand on stays.

Our VXLAN devices have the name and the UDP port of 2.8's own, and outlive the router with their programs; our packet
rules would go on besides 2.8's. Bridge, its addresses and the containers' veths are what 2.8 finds and reuses. Where
it captures frames (its bridge type `bridge`), it sends them as they are, so containers must hand over finished ones:
no checksum is left to the card any more. Source: Kubernetes and CNI spec §6; data plane spec §8.
"""

import contextlib
import ctypes
import fcntl
import socket
import struct
from functools import partial

from pyroute2.netlink.exceptions import NetlinkError

from host import netns, peer_vxlan, rules
from host.bridge import BridgeType, bridge_type, error_text
from host.containers import containers, unseen
from host.errors import HostError
from host.vxlan import remove_vxlans
from nft import readback
from nft.ruleset import Transaction
from nft.wire import NftError

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_IFREQ = struct.Struct("16sP16x")


def hand_back(bridge: str, proc: str = "/proc") -> list[str]:
    """Do all of it, with no router running; what was done and what is left to do, a line each. Raises HostError."""
    devices = *remove_vxlans(bridge), *peer_vxlan.remove_all(bridge)
    done = [f"removed {name}" for name in (*devices, *rules.remove(), *_remove_policy())]
    if bridge_type(bridge) is not BridgeType.BRIDGE:
        # Nothing to hand over, or a datapath that finishes frames itself.
        return done
    try:
        checksums_in_software(bridge)
        found = containers(bridge, proc)
        for one in found:
            # A container that ends meanwhile sends nothing more.
            with contextlib.suppress(HostError, NetlinkError, OSError):
                netns.inside(one.namespace, partial(checksums_in_software, one.interface))
                done.append(f"checksums of container {one.ident} are its own")
    except OSError as error:
        raise HostError(f"unable to change {bridge}: {error_text(error)}") from error
    for port in unseen(bridge, found):
        done.append(f"unable to find the container behind {port}: 'ethtool -K eth0 tx off' is to be done in it")
    done.append("the device 'datapath' is not there: start Weave Net with --no-fastdp (WEAVE_NO_FASTDP=1)")
    return done


def checksums_in_software(interface: str) -> None:
    """An interface of the calling thread's namespace hands over finished frames from now on. Raises OSError."""
    value = struct.pack("II", _ETHTOOL_STXCSUM, 0)
    buffer = ctypes.create_string_buffer(value, len(value))
    request = _IFREQ.pack(interface.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _remove_policy() -> list[str]:
    """The tables of network policy: their controller goes with the router."""
    try:
        present = [name for name in rules.POLICY_TABLES if name in readback.tables()]
        for name in present:
            with Transaction(name) as change:
                change.delete_table()
    except (NftError, OSError) as error:
        raise HostError(f"unable to remove the tables of network policy: {error}") from error
    return [f"table inet {name}" for name in present]
