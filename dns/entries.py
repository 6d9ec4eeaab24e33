"""One registered name, and how two views of it become one.

An entry is identified by hostname, origin, container and address, compared exactly; only version and tombstone
change, and only its origin changes them. The view with the higher (version, tombstone) wins everywhere, in whatever
order views meet. An address of 32 bits is an integer, as is one of 128; a table holds one kind only.
Source: DNS spec §2, §4.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from mesh.names import PeerName

TOMBSTONE_LIFE = 1800
MAX_SKEW = 900


class Identity(NamedTuple):
    """What makes two entries the same one."""

    hostname: str
    origin: PeerName
    container: str
    address: int


class Entry(NamedTuple):
    """A name as its origin registered it: fully qualified, with its dot, in its spelling.

    `tombstone`: Unix seconds of its removal, 0 while it lives.
    """

    hostname: str
    origin: PeerName
    container: str
    address: int
    version: int = 0
    tombstone: int = 0

    @property
    def identity(self) -> Identity:
        return Identity(*self[:4])

    @property
    def live(self) -> bool:
        return not self.tombstone

    @property
    def fingerprint(self) -> int:
        """64 bits of what it says, but for a removal."""
        text = f"{self.hostname} {self.origin} {self.container} {self.address} {self.version}"
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

    def beats(self, other: "Entry") -> bool:
        """Whether this view of an entry replaces the other."""
        return self[4:] > other[4:]

    def buried(self, now: int) -> "Entry":
        """Removed at `now`."""
        return self._replace(version=self.version + 1, tombstone=now)


def table_order(entry: Entry) -> tuple[str, int, str, int, str]:
    """The order that status shows and that decides which name an address has."""
    return entry.hostname.lower(), entry.origin, entry.container, entry.address, entry.hostname


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """One view of each entry, the winning one, in the order of the wire.

    No message may name an entry twice: a Weave Net router that reads one dies (DNS spec §3).
    """
    best: dict[Identity, Entry] = {}
    for entry in entries:
        known = best.setdefault(entry.identity, entry)
        if entry.beats(known):
            best[entry.identity] = entry
    return sorted(best.values())


def qualified(name: str) -> str:
    """With its final dot."""
    return name if name.endswith(".") else name + "."


def is_below(name: str, domain: str) -> bool:
    """Whether a qualified name is the domain, or below it."""
    name, domain = name.lower(), domain.lower()
    return name == domain or name.endswith("." + domain)
