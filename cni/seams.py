"""What the plugin asks of the rest of the router."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from ipam import users

# The bridge and a pod's network; where this host is to be reached from there. Raises CniError.
Gateway = Callable[[str, IPv4Network], Awaitable[IPv4Address]]


class Policy(Protocol):
    """Network policy, as far as a pod that starts or ends waits for it.

    A pod is what CNI_ARGS say of it, and `interface`, which one of it is meant, by sandbox and name.
    """

    async def ready(self, addresses: Sequence[str], pod: Mapping[str, str]) -> None:
        """Returns when the rules for a pod with these addresses are in force. Raises CniError where they are not."""
        ...

    async def gone(self, pod: Mapping[str, str]) -> None:
        """An interface of a pod was taken down; whoever has its addresses next is not that pod."""
        ...


class Addresses(users.Addresses, Protocol):
    """Who gives addresses out, and whether it can yet (`ipam.service.Ipam`)."""

    @property
    def ready(self) -> bool: ...
