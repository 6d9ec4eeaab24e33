"""Settings of an interface below /proc/sys/net, of the namespace that the calling thread is in.

A setting that this kernel does not have is left out. One that cannot be written (a read-only /proc/sys, as in an
unprivileged container) is said once in the log and does not stop anything. Source: data plane spec §9.
"""

import logging
from pathlib import Path

_NEIGHBOUR = {"base_reachable_time": "5", "delay_first_probe_time": "2", "ucast_solicit": "1"}
_ROOT = Path("/proc/sys/net")
# Settings that could not be written once: for further interfaces this is no news.
_said: set[str] = set()
log = logging.getLogger("weave.host")


def tune_neighbours(interface: str) -> None:
    """Neighbours that moved to another host are found quickly; router advertisements are not for us."""
    for setting, value in _NEIGHBOUR.items():
        _write(_ROOT / "ipv4/neigh" / interface / setting, value)
    refuse_advertisements(interface)


def refuse_advertisements(interface: str) -> None:
    """No addresses or routes by IPv6 router advertisement."""
    _write(_ROOT / "ipv6/conf" / interface / "accept_ra", "0")


def hears_advertisements(interface: str) -> bool:
    """Whether addresses or routes come by advertisement all the same, since the setting could not be written."""
    try:
        return (_ROOT / "ipv6/conf" / interface / "accept_ra").read_text().strip() != "0"
    except OSError:
        return False


def silence(interface: str) -> None:
    """An interface that is only a wire: the kernel itself says nothing on it."""
    _write(_ROOT / "ipv6/conf" / interface / "disable_ipv6", "1")


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except FileNotFoundError:
        pass
    except OSError as error:
        if path.name not in _said:
            _said.add(path.name)
            log.warning("unable to set %s to %s: %s", path, value, error.strerror)
