"""What the plugin asks of the rest of the router."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from ipam.ranges import Subnet
from ipam.seams import Address, Cidr, Owned

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


class Addresses(Protocol):
    """Who gives addresses out (`ipam.service.Ipam`)."""

    @property
    def ready(self) -> bool: ...
    @property
    def default_subnet(self) -> Subnet: ...
    def cidr(self, text: str) -> Cidr: ...
    def subnet(self, text: str) -> Subnet: ...
    async def allocate(
        self, ident: str, subnet: Subnet | None = None, *, is_container: bool = False, timeout: float | None = None
    ) -> Cidr: ...
    async def claim(
        self,
        ident: str,
        cidr: Cidr,
        *,
        is_container: bool = False,
        no_error_on_unknown: bool = False,
        timeout: float | None = None,
    ) -> None: ...
    def owned(self) -> Mapping[str, Owned]: ...
    async def free(self, ident: str, address: Address) -> None: ...
    async def delete(self, ident: str) -> None: ...
