"""What the plugin asks of the rest of the router."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from ipam.ranges import Subnet
from ipam.seams import Address, Cidr, Owned

# Addresses of a pod that was just made; returns when rules for them are in force, or it is known that none will be.
PolicyReady = Callable[[Sequence[str]], Awaitable[None]]
# The bridge and a pod's network; where this host is to be reached from there. Raises CniError.
Gateway = Callable[[str, IPv4Network], Awaitable[IPv4Address]]


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
