"""Try what the router needs of the kernel, in the network namespace that this program was started in.

Prints what is missing, and why, as JSON. The namespace, and with it all that is made here, ends with the program.
"""

import fcntl
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nft import readback
from nft.wire import NftError

_TUNSETIFF, _TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
_VXLAN: dict[str, Any] = {"vxlan_id": 1, "vxlan_port": 6784}


def _tun() -> None:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"probe-tap", _TAP_WITHOUT_HEADER))
    finally:
        os.close(descriptor)


def _link(kind: str, **options: Any) -> Callable[[], None]:
    def make() -> None:
        with IPRoute() as ip:
            ip.link("add", ifname=f"probe-{kind}", kind=kind, **options)

    return make


def main() -> None:
    """Try everything."""
    trials: dict[str, Callable[[], object]] = {
        "tun": _tun,
        "bridge": _link("bridge"),
        "veth": _link("veth", peer="probe-peer"),
        "vxlan": _link("vxlan", **_VXLAN),
        "nftables": readback.tables,
    }
    lacking = {}
    for feature, attempt in trials.items():
        try:
            attempt()
        except (OSError, NetlinkError, NftError) as error:
            reason = getattr(error, "strerror", None) or (error.args[-1] if error.args else error)
            lacking[feature] = str(reason).lower()
    json.dump(lacking, sys.stdout)


if __name__ == "__main__":
    main()
