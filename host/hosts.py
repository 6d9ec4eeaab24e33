"""A container's own name, and its /etc/hosts.

The name is what its processes see (the UTS namespace); the file is opened step by step without following links, since a
container decides what lies there. Source: CLI spec §2 (`attach --rewrite-hosts`, `--add-host`).
"""

import contextlib
import os
import stat
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from host import netns
from host.containers import pids_of
from host.errors import HostError

_BEGIN, _END = "# created by Weave - BEGIN", "# created by Weave - END"
_DEFAULTS = (
    "127.0.0.1       localhost",
    "::1             ip6-localhost ip6-loopback localhost",
    "fe00::0         ip6-localnet",
    "ff00::0         ip6-mcastprefix",
    "ff02::1         ip6-allnodes",
    "ff02::2         ip6-allrouters",
)
_UNKNOWN = "(none)"


def full_name(target: str) -> str:
    """A container's host name with its domain; nothing where it has the host's name, or no domain. Raises HostError."""
    ours = os.stat(f"/proc/self/task/{threading.get_native_id()}/ns/uts").st_ino
    for pid in pids_of(target):
        # A process that ended meanwhile says nothing.
        with contextlib.suppress(OSError, HostError):
            if os.stat(f"/proc/{pid}/ns/uts").st_ino != ours:
                name, domain = netns.inside(f"/proc/{pid}/ns/uts", _names)
                return name if "." in name else f"{name}.{domain}" if domain != _UNKNOWN else ""
    return ""


def _names() -> tuple[str, str]:
    """Host name and domain, of the calling thread's UTS namespace."""
    names = [Path("/proc/sys/kernel", what).read_text().strip() for what in ("hostname", "domainname")]
    return names[0], names[1]


def rewrite(target: str, fqdn: str, addresses: Sequence[str], further: Sequence[str]) -> None:
    """Make a container's /etc/hosts anew: its name at these addresses, and `further` lines.

    Raises HostError, also where no process of the container is seen.
    """
    lines = [_BEGIN]
    if fqdn:
        lines += ["# container hostname", *(f"{one:<15} {fqdn} {fqdn.partition('.')[0]}" for one in addresses)]
    if further:
        lines += ["# static names added with --add-host", *further]
    text = "\n".join([*lines, "# default localhost entries", *_DEFAULTS, _END, ""])
    pids = pids_of(target)
    if not pids:
        raise HostError(f"no process of {target} is seen: its /etc/hosts cannot be found")
    try:
        _write(f"/proc/{pids[0]}/root", text.encode())
    except OSError as error:
        raise HostError(f"unable to write /etc/hosts of {target}: {error.strerror}") from error


def entry(text: str) -> str:
    """The line of a `name:address`. Raises HostError."""
    name, _, address = text.partition(":")
    try:
        return f"{ip_address(address)!s:<15} {name}"
    except ValueError:
        raise HostError(f"--add-host {text}: give a name and an address, as in db:10.32.0.9") from None


def _write(root: str, content: bytes) -> None:
    follow_none = os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as opened:

        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        top = keep(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        etc = keep(os.open("etc", os.O_PATH | os.O_DIRECTORY | follow_none, dir_fd=top))
        hosts = keep(os.open("hosts", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | follow_none, 0o644, dir_fd=etc))
        if not stat.S_ISREG(os.fstat(hosts).st_mode):
            raise OSError(0, "it is no file")
        os.ftruncate(hosts, 0)
        os.write(hosts, content)
