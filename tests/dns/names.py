"""Name services without a mesh, and what tests say about entries in the words of the vectors."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from random import Random
from typing import Any

from dns.entries import Entry
from dns.service import NameService, NameSettings
from mesh.names import PeerName, parse_peer_name
from mesh.seams import Gossiper
from tests.vectors import ROOT

NOW = 1_700_000_000
LOG = logging.getLogger("dns")


def cases(file: str) -> list[dict[str, Any]]:
    """The cases of a file of vectors."""
    listed = json.loads((ROOT / "dns" / file).read_text())["cases"]
    assert listed
    return list(listed)


def entry(shown: Mapping[str, Any]) -> Entry:
    """An entry as a vector shows it."""
    return Entry(
        shown["hostname"],
        parse_peer_name(shown["origin"]),
        shown["container_id"],
        int(IPv4Address(shown["addr"])),
        shown["version"],
        shown["tombstone"],
    )


def entries(shown: Iterable[Mapping[str, Any]] | None) -> list[Entry]:
    return [entry(one) for one in shown or ()]


class Air:
    """A channel that remembers what was said on it (`mesh.seams.Gossip`)."""

    def __init__(self) -> None:
        self.broadcasts: list[bytes] = []

    def unicast(self, destination: PeerName, message: bytes) -> None:
        raise AssertionError("names send no unicasts")

    def broadcast(self, message: bytes) -> None:
        self.broadcasts.append(message)

    def neighbours(self, message: bytes) -> None:
        raise AssertionError("the mesh passes news on by itself")


class Rows:
    """A journal in memory (`dns.seams.NameJournal`)."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.broken = False

    def names(self) -> list[tuple[str, str, str]]:
        return list(self.rows)

    def add_name(self, hostname: str, container: str, address: str) -> None:
        if self.broken:
            raise OSError("no space left on device")
        self.rows.append((hostname, container, address))

    def remove_name(self, hostname: str, container: str, address: str) -> None:
        self.rows.remove((hostname, container, address))


class Node:
    """One service, with its channels and its clock."""

    def __init__(self, name: int, settings: NameSettings | None = None, journal: Rows | None = None) -> None:
        self.now = float(NOW)
        self.peers = {PeerName(number) for number in range(1, 10)}
        self.air: dict[str, Air] = {}
        self.service = NameService(
            PeerName(name),
            settings or NameSettings(),
            known=self.peers.__contains__,
            clock=lambda: self.now,
            rng=Random(1),
            journal=journal,
            log=LOG,
        )
        self.users: dict[str, Gossiper] = {}
        self.service.attach(self._open)

    def _open(self, name: str, user: Gossiper) -> Air:
        self.users[name] = user
        self.air[name] = Air()
        return self.air[name]

    async def said(self, channel: str = "nameserver") -> list[bytes]:
        """What was broadcast since the last call."""
        await asyncio.sleep(0)
        said, self.air[channel].broadcasts = self.air[channel].broadcasts, []
        return said

    def names(self) -> list[tuple[str, str]]:
        """Live (hostname, address) pairs, in table order."""
        return [(one.hostname, one.address) for one in self.service.entries() if not one.tombstone]


@asynccontextmanager
async def serving(
    settings: NameSettings | None = None, journal: Rows | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Node]:
    """A node that answers at a free port of `host`."""
    node = Node(1, settings, journal)
    await node.service.start((host, 0))
    try:
        yield node
    finally:
        await node.service.stop()
