"""The name service: tables, their gossip, the server, and what the rest of the router asks of them.

Two gossip channels: Weave Net's `nameserver` for IPv4, and one of our own for IPv6. What is said in one turn of the
event loop goes out as one message. A message that a peer's wrong clock makes useless costs that message only.
Source: DNS spec §3-§7, §10, §14 (F4, F5, F6).
"""

import asyncio
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random
from typing import Any, NamedTuple

from dns.answers import Answers, NotOurs
from dns.entries import TOMBSTONE_LIFE, Entry, qualified
from dns.forwarder import BUCKETS, Forwarder
from dns.gossip_wire import Family
from dns.journal import Keeper
from dns.message import FORMERR, MessageError, error_reply, parse_query, wire_name
from dns.names_channel import NameChannel
from dns.resolv_conf import Server, parse_servers
from dns.seams import Client, Known, NameJournal
from dns.table import NameTable
from dns.tcp import TcpServer
from dns.udp import UdpServer, server_sockets
from dns.upstream import ResolvConf, UpstreamSockets
from mesh.names import PeerName, format_peer_name
from mesh.seams import Gossip, Gossiper
from mesh.tcp import LoopScheduler

# Containers whose names have no container: what is registered for them stays until it is removed.
_RESERVED = "weave:"
# RFC 2181 §8.
_MAX_TTL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class NameSettings:
    """What `--dns-*` and `--resolv-conf` say. `timeout`: seconds to wait for upstream servers in all.

    Raises ValueError with the line to show.
    """

    domain: str = "weave.local."
    ttl: int = 1
    timeout: float = 5.0
    resolv_conf: str = ""
    upstream: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wire_name(qualified(self.domain)) is None:
            raise ValueError(f'invalid DNS domain "{self.domain}": labels have 1 to 63 bytes, all of it at most 255')
        if not 0 <= self.ttl <= _MAX_TTL:
            raise ValueError(f"invalid DNS TTL {self.ttl}: it is 0 to {_MAX_TTL} seconds")
        parse_servers(self.upstream)


class Listed(NamedTuple):
    """An entry as it is shown; the address is text."""

    hostname: str
    origin: PeerName
    container: str
    address: str
    version: int
    tombstone: int


@dataclass(slots=True)
class NameFigures:
    """For metrics: live entries of our own and of all, and what the server did since it started.

    `pending`: questions that upstream servers are being asked; `latency`: how many they answered within so many seconds
    (the last are above all bounds), `latency_sum` the seconds of all answers.
    """

    own: int
    live: int
    counts: dict[str, int]
    pending: int
    latency: list[tuple[float, int]]
    latency_sum: float


def listen_address(text: str) -> tuple[str, int]:
    """`IP:PORT`, `[IP6]:PORT` or `:PORT`. Raises ValueError with the line to show."""
    invalid = f'invalid DNS listen address "{text}": '
    host, colon, port = text.rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        raise ValueError(f"{invalid}address {text}: missing port in address")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{invalid}port {port} is none")
    host = host.removeprefix("[").removesuffix("]") or "0.0.0.0"
    try:
        ip_address(host)
    except ValueError:
        raise ValueError(f"{invalid}{host} is no IP address") from None
    return host, int(port)


class NameService:
    """Names of this host and of the mesh; itself the user of the channel `nameserver` (`mesh.seams.Gossiper`).

    `known` says which peers are in the mesh, `clock` is Unix time in seconds. Order of calls: construct, `attach`,
    `start`; made and used on the event loop's thread.
    """

    def __init__(
        self,
        ourself: PeerName,
        settings: NameSettings,
        *,
        known: Known,
        clock: Callable[[], float],
        rng: Random,
        journal: NameJournal | None,
        log: logging.Logger,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._log = log
        self._loop = asyncio.get_running_loop()
        self.counts: Counter[str] = Counter()
        self.answers = Answers(settings.domain, settings.ttl, rng, self._probed)
        self.domain = self.answers.domain
        self._v4 = NameTable(ourself, self.domain, known, lambda name, address: self.answers.changed(name, address, 4))
        self._v6 = NameTable(ourself, self.domain, known, lambda name, address: self.answers.changed(name, address, 16))
        self.answers.serve(self._v4, self._v6)
        self._channel = NameChannel(Family.V4, self._v4, self._now, self._loop.call_soon, log)
        self._channel6 = NameChannel(Family.V6, self._v6, self._now, self._loop.call_soon, log)
        self._keeper = Keeper(journal, log)
        # Rows of the journal that nobody has registered again.
        self._brought: set[tuple[str, str, str]] = set()
        self._sockets = UpstreamSockets(self._loop, settings.timeout)
        self._forwarder = Forwarder(
            self._sockets,
            LoopScheduler(self._loop),
            timeout=settings.timeout,
            domain=self.answers.wire,
            entropy=os.urandom,
            counts=self.counts,
            log=log,
        )
        self._sockets.serve(self._forwarder)
        self._resolv_conf: ResolvConf | None = None
        self._udp: UdpServer | None = None
        self._tcp: TcpServer | None = None
        self._listener: asyncio.Server | None = None
        self._purging: asyncio.TimerHandle | None = None
        self.address: tuple[str, int] | None = None

    # --- life ---

    def attach(self, open_channel: Callable[[str, Gossiper], Gossip]) -> None:
        """Open our gossip channels (`MeshService.channel`)."""
        self._channel.speak(open_channel(Family.V4.value, self))
        self._channel6.speak(open_channel(Family.V6.value, self._channel6))

    async def start(self, address: tuple[str, int] | None) -> None:
        """Bring back kept names, then answer at (ip, port), or nowhere yet. Before the mesh starts: what its peers
        know of ours would be buried otherwise. Raises OSError where the address cannot be had."""
        for hostname, container, text in await self._keeper.load():
            table, value = self._table(text)
            self._channel_of(table).say(table.add(hostname, container, value))
            self._brought.add((hostname, container, text))
        self._purge_later()
        if address is not None:
            await self.listen(address)

    async def listen(self, address: tuple[str, int]) -> None:
        """Answer at (ip, port), over UDP and TCP. Raises OSError where the address cannot be had."""
        udp, tcp = server_sockets(*address)
        self.address = (address[0], udp.getsockname()[1])
        self._choose_upstream(address[0])
        self._udp = UdpServer(self._loop, udp, self.answers.quick, self._ask, self.counts)
        self._tcp = TcpServer(self._ask, self.counts)
        self._listener = await self._loop.create_server(self._tcp, sock=tcp)

    def silence(self) -> None:
        """Answer nobody until `listen` is called again."""
        for each in (self._udp, self._listener, self._tcp):
            if each is not None:
                each.close()
        self._udp = self._listener = self._tcp = self.address = None

    async def stop(self) -> None:
        """Answer no more; what is to be kept is kept when this returns."""
        if self._purging is not None:
            self._purging.cancel()
        self.silence()
        self._forwarder.stop()
        self._sockets.close()
        await self._keeper.settled()

    def follow(self, servers: Sequence[Server]) -> None:
        """Ask these upstream servers from now on."""
        self._forwarder.set_servers(servers)

    def _choose_upstream(self, own_host: str) -> None:
        if self._settings.upstream:
            self.follow(parse_servers(self._settings.upstream))
        elif self._settings.resolv_conf:
            self._resolv_conf = ResolvConf(self._settings.resolv_conf, own_host, self._log)
            self._refresh()

    def _refresh(self) -> None:
        """Follow the file that names upstream servers."""
        if self._resolv_conf is not None and self._resolv_conf.check(self._loop.time()):
            self.follow(self._resolv_conf.servers)

    # --- names of this host ---

    def add(self, hostname: str, container: str, address: str) -> bool:
        """Register a name; False where it was ignored, since it is not below the domain. Raises ValueError."""
        table, value = self._table(address)
        touched = table.add(hostname, container, value)
        if not touched:
            self._log.info(
                "Ignoring registration %s %s %s (not a subdomain of %s)", hostname, address, container, self.domain
            )
            return False
        self._channel_of(table).say(touched)
        for entry in touched:
            row = entry.hostname, entry.container, _text(entry, table is self._v6)
            self._brought.discard(row)
            self._keeper.add(*row)
        return True

    def delete(self, *, hostname: str | None = None, container: str | None = None, address: str | None = None) -> int:
        """Bury our live names that all given selectors match; how many there were. Raises ValueError."""
        value: int | None = None
        tables = [self._v4, self._v6]
        if address is not None:
            table, value = self._table(address)
            tables = [table]
        buried = 0
        for table in tables:
            entries = table.delete(self._now(), hostname=hostname, container=container, address=value)
            buried += self._bury(table, entries)
        return buried

    def container_died(self, container: str) -> int:
        """A container ended, and its names with it."""
        return self.delete(container=container)

    def reconcile(self, containers: Collection[str], addresses: Collection[str]) -> int:
        """Bury names of former runs whose container ended while nobody looked; how many there were.

        `containers` and `addresses` are what this host holds now. Names for `weave:…`, and names that were registered
        since the start, stay.
        """
        buried = 0
        for hostname, container, text in list(self._brought):
            if not container.startswith(_RESERVED) and container not in containers and text not in addresses:
                self._brought.discard((hostname, container, text))
                buried += self.delete(hostname=hostname, container=container, address=text)
        return buried

    async def settled(self) -> str | None:
        """Wait until what was registered and removed so far is kept; the line that says why it could not be."""
        return await self._keeper.settled()

    def _bury(self, table: NameTable, entries: list[Entry]) -> int:
        self._channel_of(table).say(entries)
        for entry in entries:
            self._keeper.remove(entry.hostname, entry.container, _text(entry, table is self._v6))
        return len(entries)

    # --- gossip ---

    def on_unicast(self, sender: PeerName, message: bytes) -> None:
        """Nobody sends any."""

    def on_broadcast(self, source: PeerName, message: bytes) -> bytes | None:
        return self._channel.on_broadcast(source, message)

    def on_gossip(self, message: bytes) -> bytes | None:
        return self._channel.on_gossip(message)

    def gossip(self) -> bytes | None:
        return self._channel.gossip()

    def peer_gone(self, name: PeerName) -> None:
        """A peer left the mesh."""
        for channel in (self._channel, self._channel6):
            channel.peer_gone(name)

    def purge(self) -> None:
        """Forget what was removed long ago."""
        for table in (self._v4, self._v6):
            table.purge(self._now())

    def _purge_later(self) -> None:
        def purge() -> None:
            self.purge()
            self._purge_later()

        self._purging = self._loop.call_later(TOMBSTONE_LIFE, purge)

    # --- questions ---

    def _ask(self, datagram: bytes, client: Client) -> None:
        """A query that no kept answer serves."""
        try:
            query = parse_query(datagram)
        except MessageError:
            self.counts["malformed"] += 1
            client.send(error_reply(datagram, FORMERR))
            return
        if query is None:
            self.counts["no-query"] += 1
            return
        answer = self.answers.answer(query, client.tcp)
        if isinstance(answer, NotOurs):
            self._refresh()
            self._forwarder.ask(query, client, answer.rcode)
        else:
            client.send(answer)

    def _probed(self, name: bytes) -> None:
        """A question may have come back to us that we had sent to an upstream server."""
        self._forwarder.probed(name)

    # --- for status ---

    def entries(self) -> list[Listed]:
        """All of the mesh, tombstones too, in table order."""
        listed = [(e, _text(e, False)) for e in self._v4.entries()] + [(e, _text(e, True)) for e in self._v6.entries()]
        if len(self._v6):
            listed.sort(key=lambda pair: (pair[0].hostname.lower(), pair[0].origin, pair[0].container))
        return [Listed(e.hostname, e.origin, e.container, text, e.version, e.tombstone) for e, text in listed]

    def digest(self) -> tuple[int, int]:
        """64 bits of all names that answer, alike wherever they are the same, and how many they are.

        Removed ones do not count: each node forgets them in its own time.
        """
        # Addresses of the two families would be the same numbers.
        value = self._v4.digest + 3 * self._v6.digest
        return value & 0xFFFFFFFFFFFFFFFF, self._v4.live + self._v6.live

    def report(self) -> dict[str, Any]:
        """The report's `DNS` object."""
        host, port = self.address or ("", 0)
        entries = [
            {
                "Hostname": entry.hostname,
                "Origin": format_peer_name(entry.origin),
                "ContainerID": entry.container,
                "Address": entry.address,
                "Version": entry.version,
                "Tombstone": entry.tombstone,
            }
            for entry in self.entries()
        ]
        skews = self._channel.skews | self._channel6.skews
        return {
            "Domain": self.domain,
            "Upstream": self.upstream(),
            "Address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "TTL": self._settings.ttl,
            "Entries": entries or None,
            "ClockSkews": {format_peer_name(name): skew for name, skew in sorted(skews.items())},
            "UpstreamLoops": [str(server) for server in self._forwarder.loops] or None,
            "Counts": dict(sorted(self.counts.items())),
        }

    def upstream(self) -> list[str]:
        """The upstream servers, as status shows them."""
        self._refresh()
        return [str(server) for server in self._forwarder.servers]

    def metrics(self) -> NameFigures:
        """Figures for metrics."""
        own = sum(entry.live for table in (self._v4, self._v6) for entry in table.own())
        live = sum(entry.live for table in (self._v4, self._v6) for entry in table.entries())
        forwarder = self._forwarder
        latency = list(zip((*BUCKETS, math.inf), forwarder.latency, strict=True))
        return NameFigures(own, live, dict(self.counts), forwarder.pending, latency, forwarder.latency_sum)

    # ---

    def _now(self) -> int:
        return int(self._clock())

    def _table(self, address: str) -> tuple[NameTable, int]:
        """Where names of an address are, and its value. Raises ValueError."""
        try:
            ip = ip_address(address)
        except ValueError:
            raise ValueError(f"invalid IP Address: {address}") from None
        if isinstance(ip, IPv6Address):
            if ip.ipv4_mapped is None:
                return self._v6, int(ip)
            ip = ip.ipv4_mapped
        return self._v4, int(ip)

    def _channel_of(self, table: NameTable) -> NameChannel:
        return self._channel if table is self._v4 else self._channel6


def _text(entry: Entry, v6: bool) -> str:
    return str(IPv6Address(entry.address) if v6 else IPv4Address(entry.address))
