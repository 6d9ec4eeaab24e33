"""What runs above the mesh: address allocation and names, and how both follow what is on this host.

What is stored is read before the mesh starts, so that no peer hears less of us than we told it before. Names are
served on the bridge's own address unless another is given; that address comes from the ring, once there is one: a
router that is alone must not begin a ring before its operator wants it. Source: IPAM spec §12, §13; DNS spec §1, §7.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_interface, summarize_address_range
from typing import Any

from dns.service import NameFigures, NameService
from host.containers import EXPOSED, Attached, scan, unseen
from host.errors import HostError
from ipam.seams import Address, Cidr, IpamError, JournalError
from ipam.service import CHANNEL, Ipam
from mesh.names import PeerName, format_peer_name
from mesh.tcp import MeshService
from weave_py.agreement import Digest, neighbour_ring, ring_digest
from weave_py.exposure import ExposeError, Exposure
from weave_py.log import prefixed
from weave_py.settings import Settings
from weave_py.store import Store, StoreError
from weave_py.store_ipam import IpamJournal
from weave_py.takeover import differences

# Seconds between two looks at what is on the bridge, and at whether there is a ring.
_LOOK = 10.0
_RING = 0.5
_DNS_PORT = 53
_ANYWHERE = "0.0.0.0"


class ServiceError(Exception):
    """A service cannot start: one line for a person."""


@dataclass(slots=True)
class _Mesh:
    """The mesh as address allocation sees it (`ipam.seams.Mesh`)."""

    service: MeshService
    given: Callable[[], int]

    def knows(self, name: PeerName) -> bool:
        return self.service.router.knows(name)

    def nickname(self, name: PeerName) -> str:
        return self.service.topology.nickname(name)

    def names(self) -> Iterable[PeerName]:
        return self.service.topology.names()

    def target_count(self) -> int:
        """Peers whose names are not resolved yet count as well: the quorum must not shrink with a slow resolver."""
        return self.service.router.maker.tried_direct_peers() + self.given()


class Services:
    """Address allocation (`ipam`) and names (`names`); None for what is off."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        exposure: Exposure,
        mesh: MeshService,
        name: PeerName,
        *,
        uid: int,
        unresolved: Callable[[], int],
        log: logging.Logger,
    ) -> None:
        self._settings = settings
        self._store = store
        self._exposure = exposure
        self._mesh = mesh
        self._name = name
        self._log = log
        self._seen: set[str] = set()
        self._local: tuple[IPv4Network, ...] = ()
        rng = random.Random(secrets.randbits(256))
        self.ipam: Ipam | None = None
        if settings.ipalloc_range is not None:
            self.ipam = Ipam(
                name,
                settings.nickname,
                settings.ipalloc_range,
                settings.ipalloc_default_subnet,
                settings.ipalloc_init,
                uid=uid,
                mesh=_Mesh(mesh, unresolved),
                journal=IpamJournal(store),
                rng=rng,
                log=prefixed(log, f"[allocator {format_peer_name(name)}]"),
                lost=store.lost is not None,
                reclaim=settings.ipalloc_reclaim,
            )
        self.names: NameService | None = None
        if settings.names is not None:
            self.names = NameService(
                name,
                settings.names,
                known=mesh.router.knows,
                clock=time.time,
                rng=rng,
                journal=store,
                log=prefixed(log, f"[nameserver {format_peer_name(name)}]"),
            )

    # --- life ---

    async def start(self) -> None:
        """Before the mesh starts: take part in its gossip, with what is stored and found. Raises ServiceError."""
        try:
            if self.ipam is not None:
                await self.ipam.start(self._mesh.channel(CHANNEL, self.ipam))
                await self._claim_found(self.ipam)
            if self.names is not None:
                self.names.attach(self._mesh.channel)
                address = self._listen_address()
                await self.names.start(address)
                if address is not None:
                    self._log.info("Listening for DNS queries on %s:%d", *address)
        except (JournalError, IpamError) as error:
            raise ServiceError(str(error)) from error
        except OSError as error:
            raise ServiceError(_no_names(self._listen_address() or ("", 0), error)) from error

    async def stop(self) -> None:
        """Answer whoever waits, keep what is to be kept."""
        if self.names is not None:
            await self.names.stop()
        if self.ipam is not None:
            await self.ipam.stop()

    async def follow(self) -> None:
        """Follow what happens on this host, until cancelled: the outermost edge of that, which nothing ends."""
        await asyncio.gather(*(self._repeat(step, pause) for step, pause in self._steps()))

    def _steps(self) -> list[tuple[Callable[[], Any], float]]:
        steps: list[tuple[Callable[[], Any], float]] = []
        if self.ipam is not None or self.names is not None:
            steps.append((self._look, _LOOK))
        if self.ipam is not None:
            steps.append((self._watch_ring, _RING))
        return steps

    async def _repeat(self, step: Callable[[], Any], pause: float) -> None:
        said = ""
        while True:
            try:
                await step()
                said = ""
            except (HostError, StoreError, ExposeError, IpamError, ServiceError, OSError) as error:
                if str(error) != said:
                    self._log.error("%s; trying again", error)
                said = str(error)
            except Exception:
                self._log.exception("unexpected error while looking after addresses and names")
            await asyncio.sleep(pause)

    def peer_gone(self, name: PeerName) -> None:
        """The mesh forgot a peer."""
        if self.ipam is not None:
            self.ipam.peer_gone(name)
        if self.names is not None:
            self.names.peer_gone(name)

    # --- what is on this host ---

    async def _claim_found(self, ipam: Ipam) -> None:
        """Addresses that somebody here holds already are nobody else's, whatever is stored."""
        try:
            found = await asyncio.to_thread(scan, self._settings.bridge, self._settings.proc_path)
        except HostError as error:
            self._log.error("%s; addresses of containers on this host are not claimed", error)
            return
        self._seen = {one.ident for one in found if one.ident != EXPOSED}
        if self._store.imported is not None:
            for line in differences(self._store.owned(), found):
                self._log.warning("Taken over: %s", line)
        claims = [
            (one.ident, Cidr.parse(text), one.ident != EXPOSED)
            for one in found
            for text in one.cidrs
            if ":" not in text
        ]
        if claims:
            self._log.info("Claiming %d addresses that are in use on this host", len(claims))
            ipam.pre_claim(claims)

    async def _look(self) -> None:
        """Containers that are gone give back their addresses, and their names go."""
        bridge, proc = self._settings.bridge, self._settings.proc_path
        found = await asyncio.to_thread(scan, bridge, proc)
        # A port that leads to where we cannot look may be any container's: nobody is taken for gone then.
        if await asyncio.to_thread(unseen, bridge, found):
            return
        live = _addresses(found)
        if self.ipam is not None:
            self.ipam.reconcile(live)
        containers = {ident for ident in live if ident != EXPOSED}
        if self.names is not None:
            for ident in self._seen - containers:
                self.names.container_died(ident)
            self.names.reconcile(containers, {str(address) for held in live.values() for address in held})
        self._seen = containers

    # --- what follows from the ring ---

    async def rejoin(self) -> None:
        """Drop our ring and wait for that of others. Raises IpamError where its addresses are in use.

        Only the address on which names are served is given back: they are served again once there is a ring.
        """
        ipam = self.ipam
        assert ipam is not None, "asked only where addresses are allocated"
        exposure = self._exposure.report()
        exposed = {row["Address"] for row in exposure["Addresses"]}
        served = exposure["NamesAddress"]
        spared = {str(cidr) for cidr in ipam.lookup(EXPOSED, ipam.universe)} <= {served} - exposed
        await ipam.rejoin(EXPOSED if spared else None)
        if served and self._listen_address() is None and self.names is not None:
            self.names.silence()
            try:
                await self._exposure.withdraw_names()
            except ExposeError as error:
                # The next address of names takes its place.
                self._log.error("%s", error)

    async def _watch_ring(self) -> None:
        ipam = self.ipam
        if ipam is None or not ipam.ready:
            return
        if self._store.lost is not None and not ipam.report()["PendingClaims"]:
            self._store.clear_lost()
            self._log.info("The ring is known again, and who holds what on this host")
        if self.names is not None and self.names.address is None:
            await self._serve_names(ipam, self.names)
        if self._settings.no_masq_local:
            await self._follow_ranges(ipam.report())

    async def _serve_names(self, ipam: Ipam, names: NameService) -> None:
        cidrs = ipam.lookup(EXPOSED)
        cidr = cidrs[0] if cidrs else await ipam.allocate(EXPOSED)
        await self._exposure.serve_names(str(cidr))
        address = (str(cidr.addr), _DNS_PORT)
        try:
            await names.listen(address)
        except OSError as error:
            raise ServiceError(_no_names(address, error)) from error
        self._log.info("Listening for DNS queries on %s:%d", cidr.addr, _DNS_PORT)

    async def _follow_ranges(self, document: Mapping[str, Any]) -> None:
        networks: list[IPv4Network] = []
        for entry in document["Entries"] or ():
            if entry["Peer"] == format_peer_name(self._name) and entry["Size"]:
                first = IPv4Address(entry["Token"])
                networks += summarize_address_range(first, first + entry["Size"] - 1)
        if tuple(networks) != self._local:
            await self._exposure.local(networks)
            self._local = tuple(networks)

    def _listen_address(self) -> tuple[str, int] | None:
        """Where names are served from the start; None for the bridge's own address, later."""
        settings = self._settings
        if settings.dns_address is not None:
            return settings.dns_address
        if settings.docker_bridge and (address := self._exposure.docker_address()):
            return address, _DNS_PORT
        return None if self.ipam is not None else (_ANYWHERE, _DNS_PORT)

    # --- for status ---

    def report(self) -> dict[str, Any]:
        """The objects IPAM and DNS of the report, where the services run."""
        document: dict[str, Any] = {}
        if self.ipam is not None:
            document["IPAM"] = self.ipam.report()
        if self.names is not None:
            document["DNS"] = self.names.report()
        return document

    def figures(self) -> tuple[dict[str, float] | None, NameFigures | None]:
        """Figures of addresses and of names, for metrics."""
        addresses = None if self.ipam is None else self.ipam.metrics()
        return addresses, None if self.names is None else self.names.metrics()

    def holding(self) -> dict[str, Digest]:
        """What all peers should hold alike of ring and names."""
        holding = {}
        if self.ipam is not None:
            holding["ring"] = ring_digest(self.ipam.report())
        if self.names is not None:
            holding["names"] = Digest(*self.names.digest())
        return holding

    def neighbour_ring(self, message: bytes) -> Digest | None:
        """What a neighbour's gossip about addresses says of the ring that it holds."""
        universe = self._settings.ipalloc_range
        return None if universe is None else neighbour_ring(message, universe)


def _no_names(address: tuple[str, int], error: OSError) -> str:
    host, port = address
    return (
        f"Unable to start dns server: listen {host}:{port}: {error.strerror or error}; is there another DNS server? "
        "Choose --dns-listen-address, or --no-dns"
    )


def _addresses(found: Iterable[Attached]) -> dict[str, list[Address]]:
    live: dict[str, list[Address]] = {}
    for one in found:
        live.setdefault(one.ident, []).extend(ip_interface(text).ip for text in one.cidrs)
    return live
