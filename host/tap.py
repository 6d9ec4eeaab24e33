"""The bridge's TAP port, through which the sleeve data path takes and gives frames.

The device is not persistent: it goes with the process that holds its descriptor, so a killed router leaves nothing in
the way of the next one, and a second router finds the name taken. Overlay ports are isolated from each other: what
came over one is never bridged to another. Source: data plane spec §7; Linux tuntap documentation.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.bridge import error_text
from host.errors import HostError
from host.links import by_name
from host.sysctl import refuse_advertisements, silence

TAP_NAME = "vethwe-sleeve"
CONTROL_NAME = "vethwe-ctl"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")
_TX_QUEUE = 1000


def open_tap(bridge: str, mtu: int, name: str = TAP_NAME, *, unknown: bool = True) -> int:
    """A TAP port on the bridge, up, of this MTU (octets); its non-blocking descriptor. Raises HostError.

    Frames carry a virtio-net header of 10 octets; no offload is on, so the kernel hands over finished frames.
    `unknown`: whether the bridge floods frames for addresses that it does not know to it.
    """
    return _open(name, _IFF_VNET_HDR, lambda: _join(bridge, mtu, name, unknown))


def open_control(mtu: int, name: str = CONTROL_NAME) -> int:
    """A TAP outside the bridge, up, on which the kernel's programs hand frames to us; its descriptor. HostError."""
    return _open(name, 0, lambda: _stand_alone(mtu, name))


def _open(name: str, flags: int, settle: Callable[[], None]) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"unable to open /dev/net/tun: {error.strerror}; load the tun module") from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | flags))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
        settle()
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno == errno.EBUSY:
            raise HostError(f"{name} is in use: another router runs here") from error
        if isinstance(error, OSError | NetlinkError):
            raise HostError(f"unable to make {name}: {error_text(error)}") from error
        raise
    return descriptor


def _stand_alone(mtu: int, name: str) -> None:
    with IPRoute() as ip:
        silence(name)
        refuse_advertisements(name)
        ip.link("set", index=ip.link_lookup(ifname=name)[0], mtu=mtu, txqlen=_TX_QUEUE, state="up")


def _join(bridge: str, mtu: int, name: str, unknown: bool) -> None:
    with IPRoute() as ip:
        port, master = by_name(ip, name), by_name(ip, bridge)
        if master is None:
            raise HostError(f"bridge {bridge} does not exist")
        assert port is not None, "the device was made above"
        silence(name)
        refuse_advertisements(name)
        ip.link("set", index=port.index, mtu=mtu, txqlen=_TX_QUEUE, master=master.index)
        ip.brport("set", index=port.index, isolated=1, mode=0, unicast_flood=int(unknown))
        ip.link("set", index=port.index, state="up")
