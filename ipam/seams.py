"""Where address allocation meets its neighbours: the journal that survives us, the mesh that we ask, who asks us.

Calls of `Mesh` are made on the event loop's thread and must not block. A `Journal` is called on a worker thread, one
call at a time, and blocks until the disk has what it was given. Source: IPAM spec §2, §11, §13, §14.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol

from mesh.names import PeerName

Address = IPv4Address | IPv6Address


class IpamError(Exception):
    """An operation is refused: one line for whoever asked (HTTP 400)."""


class Unavailable(IpamError):  # noqa: N818
    """An operation ended without an answer, with the reason: it may work later or elsewhere (HTTP 503)."""


class JournalError(Exception):
    """What was to be kept cannot be: one line."""


class Cidr(NamedTuple):
    """An address and the length of its network's prefix; host bits are kept."""

    addr: Address
    prefix_len: int

    def __str__(self) -> str:
        return f"{self.addr}/{self.prefix_len}"

    @classmethod
    def parse(cls, text: str) -> "Cidr":
        """`10.32.0.1/12`, of either family. Raises IpamError with the reference's text."""
        address, slash, length = text.partition("/")
        try:
            made = cls(ip_address(address), int(length))
        except ValueError:
            made = None
        strict = slash and length.isascii() and length.isdecimal() and "%" not in address
        if made is None or not strict or made.prefix_len > made.addr.max_prefixlen:
            raise IpamError(f"invalid CIDR address: {text}")
        return made


@dataclass(frozen=True, slots=True)
class Owned:
    """The addresses that one identifier holds. `is_container`: it ends with its container."""

    is_container: bool
    cidrs: tuple[Cidr, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a journal holds: the ring as the gob value of §14, and who holds what."""

    ring: bytes | None
    owned: Mapping[str, Owned]


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction. `ring` None: unchanged. In `owned`, None: that identifier holds nothing any more.

    `rejoins`: our ring was dropped; until another is known, each start waits for the ring of others.
    """

    ring: bytes | None = None
    owned: Mapping[str, Owned | None] = field(default_factory=dict)
    rejoins: bool = False

    def __bool__(self) -> bool:
        return self.ring is not None or bool(self.owned)


class Journal(Protocol):
    """What survives a restart. Both calls raise JournalError."""

    def load(self) -> Saved | None:
        """What was committed last; None where nothing ever was, or it was another peer's."""

    def commit(self, change: Change) -> None:
        """Keep a change: all of it or nothing, durable on return."""


class Mesh(Protocol):
    """What allocation asks the mesh (`mesh.router.Router` answers the first three)."""

    def knows(self, name: PeerName) -> bool:
        """Whether the peer is in our topology, directly or through others."""

    def nickname(self, name: PeerName) -> str:
        """Empty for a peer that is not known."""

    def names(self) -> Iterable[PeerName]:
        """All known peers, ourselves among them."""

    def target_count(self) -> int:
        """How many addresses we are connected to or trying to reach: what an unset quorum is guessed from."""
