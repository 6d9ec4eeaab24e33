"""Whether the kernel is to encrypt what it carries, and whether it can; what it holds for that is removed here, too.

Source: data plane spec §5.
"""

import logging
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address

from fastdp import ipsec
from fastdp.ipsec import IpsecError, Security
from host.errors import HostError
from weave_py.settings import Settings


def security(settings: Settings, log: logging.Logger) -> Security:
    """What settings and kernel say. Where nothing is to be encrypted, what an earlier router left for it goes."""
    if settings.passwords and settings.fastdp:
        return Security(True, ipsec.problem(), _within(settings.trusted_subnets))
    try:
        removed = ipsec.clean()
    except IpsecError as error:
        log.error("what an earlier router encrypted by is not removed: %s", error)
    else:
        if removed:
            log.info("Removed %s", ", ".join(removed))
    return Security(False)


def remove() -> list[str]:
    """Take all of it from the kernel; what it was. Raises HostError."""
    try:
        return ipsec.clean()
    except IpsecError as error:
        raise HostError(str(error)) from error


def _within(subnets: tuple[IPv4Network | IPv6Network, ...]) -> Callable[[str], bool]:
    return lambda address: any(ip_address(address) in subnet for subnet in subnets)
