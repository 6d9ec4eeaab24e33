"""What `weave doctor` sees of this host. It changes nothing: what must be tried is tried in a namespace of its own."""

import glob
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute

from host.bridge import DATAPATH
from host.errors import HostError
from host.forward import obstacles
from host.links import links
from host.rules import TABLE
from nft.wire import NftError
from weave_py.doctor import Busy, Facts

_PROBE_LIMIT = 20.0
_LISTEN = {"tcp": "0A", "udp": "07"}


def gather(prefix: str, bridge: str, port: int, control: str) -> Facts:
    """Look at this host. `control` is `host:port` of the control API or the path of its socket."""
    root = os.geteuid() == 0
    found = Path(f"{prefix}data.sqlite")
    space = next((shutil.disk_usage(place).free for place in found.parents if place.is_dir()), None)
    with IPRoute() as ip:
        there = {link.name: link for link in links(ip)}
    return Facts(
        root=root,
        kernel=_kernel(),
        lacking=_probe() if root else {},
        busy=tuple(_busy(port, control)) if root else (),
        obstacles=_obstacles(bridge) if root else (),
        bridge_mtu=there[bridge].mtu if bridge in there else None,
        state_path=str(found),
        damaged=tuple(
            path for path in sorted(glob.glob(f"{glob.escape(str(found))}.damaged-*")) if not path.endswith("-wal")
        ),
        free_bytes=space,
        old_devices=tuple(
            name
            for name in (DATAPATH, "vethwe-datapath")
            if name in there and there[name].kind in ("openvswitch", "veth")
        ),
    )


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)


def _probe() -> dict[str, str]:
    """Features that this kernel lacks, and why; a program tries them where nothing else is."""
    command = ["unshare", "--net", sys.executable, "-P", "-m", "weave_py.doctor_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_LIMIT, check=True)
        lacking: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        # A host on which nothing can be tried is a container without rights, where the router says what it misses.
        return {}
    return lacking


def _obstacles(bridge: str) -> tuple[str, ...]:
    try:
        return tuple(obstacles(bridge, (TABLE,)))
    except (HostError, NftError, OSError):
        # Without nftables there is nothing to ask, which the probe says.
        return ()


def _busy(port: int, control: str) -> Iterator[Busy]:
    wanted = [("tcp", port), ("udp", port), ("udp", port + 1)]
    if not control.startswith("/"):
        wanted.append(("tcp", int(control.rpartition(":")[2])))
    for protocol, number in wanted:
        inode = _listener(protocol, number)
        if inode is not None:
            yield Busy(f"{protocol} port {number}", _holder(inode))


def _listener(protocol: str, number: int) -> int | None:
    """The socket that has a port, as an inode; the kernel's own has none (0)."""
    for family in ("", "6"):
        try:
            rows = Path(f"/proc/net/{protocol}{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTEN[protocol] and int(fields[1].rpartition(":")[2], 16) == number:
                return int(fields[9])
    return None


def _holder(inode: int) -> str:
    """The process behind a socket."""
    if inode:
        for path in glob.iglob("/proc/[0-9]*/fd/*"):
            try:
                if os.readlink(path) == f"socket:[{inode}]":
                    pid = path.split("/")[2]
                    return f"{Path('/proc', pid, 'comm').read_text().strip()} (pid {pid})"
            except OSError:
                continue
        return "a process of another namespace"
    return "the kernel (a VXLAN or other tunnel device)"
