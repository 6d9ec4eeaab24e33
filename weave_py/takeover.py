"""What a Weave Net 2.8 router left on this host, after its state: its packet rules go once ours are in force.

Links are taken over where they are made (`host.bridge`, `host.vxlan`), the state where it is opened. 2.8's rules lie
in iptables, in either kind; until they are gone they drop what they do not know. With network policy they are the only
ones that enforce it before ours are written, so they stay until then. Source: Kubernetes and CNI spec §6.
"""

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface
from typing import Protocol

from host.containers import Attached
from host.errors import HostError
from host.iptables import old_chains, pass_joined, remove_old
from host.links import ports
from host.rules import POLICY_TABLE, TABLE
from nft import readback
from nft.wire import NftError
from weave_py.settings import Settings

_PAUSE = 1.0
_PATIENCE = 60.0
_JOINED = "vethwebl"
_LOCK_POLL = 0.2


class _Held(Protocol):
    @property
    def cidrs(self) -> tuple[str, ...]: ...


async def follow(settings: Settings, log: logging.Logger, pause: float = _PAUSE) -> None:
    """Remove 2.8's rules as soon as ours are there; a task that ends then, at once where there are none."""
    deadline, said = time.monotonic() + _PATIENCE, ""
    while True:
        try:
            if await asyncio.to_thread(_step, settings, log):
                return
        except (HostError, NftError, OSError) as error:
            if str(error) != said:
                log.error("unable to remove Weave Net's packet rules: %s; trying again", error)
            said = str(error)
        if time.monotonic() > deadline:
            deadline, pause = math.inf, 10 * pause
            log.warning(
                "Weave Net's packet rules are still in force: they go when weave-npc has written its own; until then "
                "new pods may be cut off"
            )
        await asyncio.sleep(pause)


def _step(settings: Settings, log: logging.Logger) -> bool:
    """Whether nothing is left to do."""
    if not old_chains():
        return True
    if not {TABLE, *((POLICY_TABLE,) if settings.expect_npc else ())} <= set(readback.tables()):
        return False
    removed = remove_old(settings.bridge)
    if any(port.name.startswith(_JOINED) for port in ports(settings.bridge)):
        # Docker's containers on our bridge still need the rule that went along.
        pass_joined(settings.bridge)
    log.info("Removed Weave Net's packet rules: %s", ", ".join(removed))
    return not old_chains()


def differences(owned: Mapping[str, _Held], found: Iterable[Attached]) -> list[str]:
    """Where the state that was taken over and this host disagree, a line each.

    Who holds an address is known here by another name than to the runtime that asked for it, so addresses are compared.
    """
    kept = {str(ip_interface(cidr).ip): ident for ident, held in owned.items() for cidr in held.cidrs}
    there = {str(ip_interface(cidr).ip): one.ident for one in found for cidr in one.cidrs if ":" not in cidr}
    more = [f"{address} is in use here by {ident} and was nobody's" for address, ident in there.items()]
    less = [f"{address} is {ident}'s, who is not seen here" for address, ident in kept.items()]
    return sorted(line for line in (*more, *less) if line.partition(" ")[0] not in kept.keys() & there.keys())


@contextlib.contextmanager
def old_router_ended(path: str, log: logging.Logger, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold 2.8's file, if it is there, so that no router of 2.8 starts; one that still runs is waited for.

    A router of 2.8 locks it for as long as it runs, and waits for the lock. Raises HostError after `patience` seconds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise HostError(f"unable to open {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path, log, patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str, log: logging.Logger, patience: float) -> None:
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HostError(f"a Weave Net router still holds {path}: stop that one first") from None
        if not said:
            log.info("Waiting for the Weave Net router that holds %s to end", path)
            said = True
        time.sleep(_LOCK_POLL)
