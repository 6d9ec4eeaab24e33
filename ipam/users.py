"""What every user of addresses asks of whoever gives them out: the HTTP API and the CNI plugin alike.

Errors are those of `ipam.service.Ipam`, which answers.
"""

from collections.abc import Mapping
from typing import Protocol

from ipam.ranges import Subnet
from ipam.seams import Address, Cidr, Owned


class Addresses(Protocol):
    """Who gives addresses out (`ipam.service.Ipam`)."""

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
