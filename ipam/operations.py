"""What may be asked of the allocator, and what it wants done: operations that wait, and effects for the shell.

An operation is answered by one `Answer`, at once or much later. Effects are released in their order, and only when what
they follow from is durable. Source: IPAM spec §11.
"""

from dataclasses import dataclass

from ipam.ranges import Range, Subnet
from ipam.seams import Cidr, IpamError
from ipam.wire import Kind
from mesh.names import PeerName


@dataclass(eq=False, slots=True)
class Prime:
    """Wait until there is a ring."""

    def cancelled(self) -> str:
        return "Waiting for the ring cancelled"


@dataclass(eq=False, slots=True)
class Claim:
    """Hold this very address. `lenient`: it counts as done where its owner cannot be asked, and is tried further.

    `found`: the address is on this host already. `attempts`: how often its owner could not be asked. `asked`: who was
    asked for it since the last tick.
    """

    ident: str
    cidr: Cidr
    is_container: bool = False
    lenient: bool = False
    found: bool = False
    answered: bool = False
    attempts: int = 0
    asked: PeerName | None = None

    def cancelled(self) -> str:
        return f"Claim request for {self.ident} cancelled"


@dataclass(eq=False, slots=True)
class Allocate:
    """Hold any address of a subnet."""

    ident: str
    subnet: Subnet
    is_container: bool = False

    def cancelled(self) -> str:
        return f"Allocate request for {self.ident} cancelled"


@dataclass(eq=False, slots=True)
class Order:
    """A change that is done at once in memory, and answered when it is durable."""

    def cancelled(self) -> str:
        return "The order was cancelled"


Operation = Prime | Claim | Allocate | Order


@dataclass(frozen=True, slots=True)
class Answer:
    """An operation is done: the address it got (only `Allocate`), or why not."""

    operation: Operation
    value: Cidr | None = None
    error: IpamError | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Tell one peer. `wanted` goes with requests and denials; a ring update says what is committed when it is sent."""

    peer: PeerName
    kind: Kind
    wanted: Range | None = None


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Tell everybody our state."""


Effect = Answer | Send | Broadcast
