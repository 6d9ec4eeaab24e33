"""This host's own addresses in the overlay, and the packet rules that go with them, over the life of a router.

What was exposed is stored before it is done, with whether it is masqueraded, so a restart or a reboot finds it again.
An address that is on the bridge without our having put it there was exposed by Weave Net 2.8, with NAT. The address on
which names are served is none of those: it is on the bridge, but containers reach only names there until somebody
exposes it. Rules that somebody flushes come back. Source: CLI spec §2, §5.2, §11; DNS spec §1.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Interface, IPv4Network, NetmaskValueError
from typing import Any

from host import expose as host_expose
from host.bridge import pin_mac
from host.errors import HostError
from host.rules import DockerBridge, Plan, Rules
from weave_py.settings import Settings
from weave_py.store import Store, StoreError

_INTERVAL = 10.0
_LOOPBACK = "127.0.0.1"
_NAMES = "address of names"


class ExposeError(Exception):
    """What was asked for cannot be done: one line, and the status of the answer that says so."""

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


def plan_of(settings: Settings) -> Plan:
    """The rules that follow from the flags alone."""
    host, _, port = settings.http_address.rpartition(":")
    return Plan(
        settings.bridge,
        control_port=int(port) if host == _LOOPBACK and port.isdecimal() else None,
        expect_npc=settings.expect_npc,
        no_masq_local=settings.no_masq_local,
    )


def find_docker(settings: Settings) -> DockerBridge | None:
    """Docker's bridge, once it has an address: Docker may start after us."""
    addresses = host_expose.on_bridge(settings.docker_bridge) if settings.docker_bridge else ()
    return DockerBridge(settings.docker_bridge, str(addresses[0].ip), settings.port) if addresses else None


class Exposure:
    """What is exposed. Requests are served one after the other. `docker` finds the bridge of Docker, if one counts."""

    def __init__(
        self, plan: Plan, store: Store, log: logging.Logger, docker: Callable[[], DockerBridge | None] = lambda: None
    ) -> None:
        self._rules = Rules(plan)
        self._docker = docker
        self._store = store
        self._log = log
        self._turn = asyncio.Lock()
        self._obstacles: list[str] = []

    # --- life ---

    async def start(self) -> None:
        """Put back what was exposed, and write the rules; what cannot be done is said, rules are tried again later."""
        try:
            await asyncio.to_thread(self._restore)
        except (HostError, StoreError) as error:
            self._log.error("%s", error)

    async def watch(self, interval: float = _INTERVAL) -> None:
        """Look after the rules every `interval` seconds, until cancelled."""
        said = ""
        while True:
            await asyncio.sleep(interval)
            try:
                missing, obstacles = await asyncio.to_thread(self._check)
            except (HostError, OSError) as error:
                if str(error) != said:
                    self._log.error("%s", error)
                said = str(error)
                continue
            said = ""
            if missing:
                self._log.info("Reloading after iptables flush: %s", ", ".join(missing))
            for line in obstacles:
                if line not in self._obstacles:
                    self._log.warning("%s", line)
            self._obstacles = obstacles

    def _check(self) -> tuple[tuple[str, ...], list[str]]:
        """What was missing, and what stands in the way."""
        docker = self._docker()
        if docker != self._rules.plan.docker:
            if docker is not None:
                # Containers learn it, and else it follows the ports.
                pin_mac(docker.name)
            self._rules.change(docker=docker)
        return self._rules.check(), self._rules.obstacles()

    def _restore(self) -> None:
        bridge = self._rules.plan.bridge
        names = self._names()
        stored = {IPv4Interface(row.cidr): row.masquerade for row in self._store.exposed()}
        found = {address: True for address in host_expose.on_bridge(bridge) if address != names}
        self._rules = Rules(replace(self._rules.plan, exposed={**found, **stored}, dns_only=names))
        try:
            self._rules.apply()
            self._check()
        finally:
            for address in [*stored, *([] if names is None else [names])]:
                host_expose.add_address(bridge, address)

    # --- requests ---

    async def expose(self, cidr: str, *, masquerade: bool) -> None:
        """Give this host an address in the overlay. Raises ExposeError."""
        address = _parse(cidr)
        await self._do("expose", lambda: self._expose(address, masquerade))

    async def hide(self, cidr: str) -> str:
        """Take it back; why the address stays, if it does. Raises ExposeError, 404 where it serves names only."""
        address = _parse(cidr)
        if address == self._rules.plan.dns_only and address not in (self._rules.plan.exposed or {}):
            raise ExposeError(f"{address} is not exposed: names are served there", 404)
        await self._do("hide", lambda: self._hide(address))
        return f"{address} stays on the bridge: names are served there" if address == self._names() else ""

    async def serve_names(self, cidr: str) -> None:
        """Put the address on the bridge on which names are served. Raises ExposeError."""
        address = _parse(cidr)
        await self._do("serve names on", lambda: self._serve_names(address))

    async def withdraw_names(self) -> None:
        """Take the address from the bridge on which names were served. Raises ExposeError."""
        await self._do("withdraw the address of names", self._withdraw_names)

    async def local(self, networks: Sequence[IPv4Network]) -> None:
        """What lives on this host, for `--no-masq-local`. Raises ExposeError."""
        await self._do("write the rules for", lambda: self._rules.change(local=tuple(networks)))

    def docker_address(self) -> str:
        """The address of Docker's bridge, if there is one."""
        docker = self._rules.plan.docker
        return "" if docker is None else docker.address

    def report(self) -> dict[str, Any]:
        """What is exposed, and what else on this host stands in the way."""
        exposed = (self._rules.plan.exposed or {}).items()
        names = self._rules.plan.dns_only
        return {
            "Addresses": [{"Address": str(address), "Masquerade": nat} for address, nat in exposed],
            "NamesAddress": "" if names is None else str(names),
            "Obstacles": self._obstacles,
        }

    async def _do(self, what: str, work: Callable[[], None]) -> None:
        async with self._turn:
            try:
                await asyncio.to_thread(work)
            except (HostError, StoreError) as error:
                raise ExposeError(f"unable to {what}: {error}") from error

    # --- in a thread ---

    def _expose(self, address: IPv4Interface, masquerade: bool) -> None:
        self._store.set_exposed(str(address), masquerade)
        host_expose.expose(self._rules, address, masquerade)

    def _hide(self, address: IPv4Interface) -> None:
        self._store.remove_exposed(str(address))
        if address == self._names():
            exposed = {**(self._rules.plan.exposed or {})}
            exposed.pop(address, None)
            self._rules.change(exposed=exposed)
        else:
            host_expose.hide(self._rules, address)

    def _serve_names(self, address: IPv4Interface) -> None:
        before = self._names()
        self._store.set_flag(_NAMES, str(address))
        self._rules.change(dns_only=address)
        host_expose.add_address(self._rules.plan.bridge, address)
        if before not in (None, address, *(self._rules.plan.exposed or {})):
            assert before is not None, "looked at above"
            host_expose.remove_address(self._rules.plan.bridge, before)

    def _withdraw_names(self) -> None:
        before = self._names()
        self._store.remove_flag(_NAMES)
        self._rules.change(dns_only=None)
        if before is not None and before not in (self._rules.plan.exposed or {}):
            host_expose.remove_address(self._rules.plan.bridge, before)

    def _names(self) -> IPv4Interface | None:
        stored = self._store.flag(_NAMES)
        return None if stored is None else IPv4Interface(stored)


def _parse(cidr: str) -> IPv4Interface:
    try:
        if "/" not in cidr:
            raise ValueError
        return IPv4Interface(cidr)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise ExposeError(f"unable to parse ip addr: invalid CIDR address: {cidr}", 400) from None
