"""What a node needs before the router's container starts: kernel modules, settings, the CNI plugin in its place.

Needs more rights than the router does, so it has a container of its own. A module that cannot be loaded may be built
in, or may not be missed; whoever misses it says so. Source: Kubernetes and CNI spec §3.
"""

import ctypes
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cni.install import InstallError, install
from host.errors import HostError
from weave_py import __version__

_MODULES = (
    "tun",
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "cls_bpf",
    "sch_ingress",
    "nf_tables",
    "esp4",
    "esp6",
    "gcm",
    "seqiv",
)
_LOAD_LIMIT = 20.0
_BRIDGED = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
_SETTINGS = Path("/proc/sys")
_ELSEWHERE = "home/kubernetes/bin"
_MS_REMOUNT, _MS_BIND, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x20, 0x1000, 0x2, 0x4, 0x8


def prepare(environment: Mapping[str, str], log: logging.Logger) -> None:
    """Do all of it. Raises HostError where containers could not be connected afterwards."""
    load_modules(log)
    open_settings(log)
    _filter_bridged(log)
    install_plugin(environment, log)


def install_plugin(environment: Mapping[str, str], log: logging.Logger) -> None:
    """The CNI plugin and its configuration, as `weave setup-cni` does it. Raises HostError."""
    configurations = environment.get("WEAVE_CNI_CONF_DIR") or _root(environment) / "etc/cni/net.d"
    hairpin = {"true": True, "false": False}.get(environment.get("HAIRPIN_MODE", ""))
    try:
        for line in install(plugin_directory(environment), Path(configurations), __version__, hairpin):
            log.info("%s", line)
    except InstallError as error:
        raise HostError(f"Failed to install the Weave CNI plugin: {error}") from error


def load_modules(log: logging.Logger) -> None:
    """Load what the kernel has as modules and we use."""
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        log.info("No modprobe here: kernel modules are left as they are")
        return
    for module in _MODULES:
        try:
            done = subprocess.run((program, module), capture_output=True, text=True, timeout=_LOAD_LIMIT, check=False)
            problem = done.stderr.strip()
        except (OSError, subprocess.SubprocessError) as error:
            done, problem = None, str(error)
        if done is None or done.returncode:
            log.debug("module %s was not loaded: %s", module, problem)


def open_settings(log: logging.Logger) -> None:
    """Make /proc/sys of this container writable, if it is not and we may: it is the node's, by the node's namespace."""
    if not os.statvfs(_SETTINGS).f_flag & os.ST_RDONLY:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if libc.mount(None, str(_SETTINGS).encode(), None, flags, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        log.warning("%s cannot be written (%s): interfaces keep the kernel's defaults", _SETTINGS, reason)


def _filter_bridged(log: logging.Logger) -> None:
    """What passes between containers of this node goes through packet rules as well, as services' addresses need."""
    for name in _BRIDGED:
        path = _SETTINGS / "net/bridge" / name
        try:
            path.write_text("1")
        except OSError as error:
            log.warning(
                "Cannot detect bridge-nf support - network policy and iptables mode kubeproxy may not work reliably "
                "(%s: %s)",
                *(path, error.strerror),
            )
            return


def plugin_directory(environment: Mapping[str, str]) -> Path:
    """Where the node's runtime looks for plugins, as seen from here. Raises HostError where there is no such place."""
    if environment.get("WEAVE_CNI_PLUGIN_DIR"):
        return Path(environment["WEAVE_CNI_PLUGIN_DIR"])
    root = _root(environment)
    for place in (root / "opt/cni/bin", root / _ELSEWHERE):
        if place.is_dir():
            return place
    raise HostError(
        f"Failed to install the Weave CNI plugin: there is neither {root}/opt/cni/bin nor {root}/{_ELSEWHERE}"
    )


def _root(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOST_ROOT", "/host") or "/")
