"""What this node is to network policy: where the rules stand, whether packets pass them, and which ones were dropped.

    every 10 s   the attributes of the bridge are looked at, and put right; kube-proxy's mode decides the hook
    always       dropped packets are read, told in the log and kept for whoever asks

What is wrong is said in `Controller.degraded`, loudly once, and takes readiness away. Source: NPC spec §3, §7.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

from nft.wire import NftError
from npc import bridge
from npc.base import Options
from npc.controller import Controller
from npc.drops import Drop, Drops, Judged
from npc.model import Model
from npc.nflog import PacketLog
from npc.plan import Direction, Hook

_LOOK = 10.0


class Node:
    """The bridge and the log of drops. `hook` empty: as kube-proxy's mode wants it."""

    def __init__(self, controller: Controller, options: Options, hook: str, log: logging.Logger) -> None:
        self.options = options
        self.drops = Drops(self.who)
        self.per_minute = 0.0
        self.followers: set[asyncio.Queue[Drop]] = set()
        self._controller = controller
        self._hook = hook
        self._log = log
        self._packets: PacketLog | None = None
        self._dropped: tuple[float, int] | None = None

    # --- who is who ---

    def who(self, direction: Direction, address: bytes) -> Judged:
        """Who has an address, and what isolates it in a direction."""
        return who(self._controller.model, direction, address)

    # --- the loop ---

    async def run(self) -> None:
        """Look after it until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(_LOOK)
        finally:
            if self._packets is not None:
                asyncio.get_running_loop().remove_reader(self._packets.fileno())
                self._packets.close()

    async def look(self) -> None:
        """One look at the bridge, the mode of kube-proxy, the log and the counters."""
        await self.look_at_bridge()
        await self._choose_hook()
        self._open_log()
        self._rate()

    async def look_at_bridge(self) -> str:
        """Packets between its ports pass the rules; why not, if they do not."""
        if bridge.is_ensured(self.options.bridge):
            self._mark("bridge", "")
            return ""
        repaired, wrong = await asyncio.to_thread(bridge.ensure, self.options.bridge)
        if repaired:
            self._log.info("packets between ports of bridge %s pass the rules now", self.options.bridge)
        self._mark("bridge", wrong)
        return wrong

    async def _choose_hook(self) -> None:
        if self._hook:
            return
        wanted = Hook.POSTROUTING if await asyncio.to_thread(bridge.ipvs) else Hook.FORWARD
        if wanted is not self.options.hook:
            self._log.warning("kube-proxy's mode changed: rules move to %s", wanted.value)
            self.options = replace(self.options, hook=wanted)
            self._controller.move(self.options)

    def _mark(self, reason: str, text: str) -> None:
        if text and self._controller.degraded.get(reason) != text:
            self._log.error("%s", text)
        if text:
            self._controller.degraded[reason] = text
        elif self._controller.degraded.pop(reason, None):
            self._log.info("%s: right again", reason)

    # --- drops ---

    def _open_log(self) -> None:
        if self._packets is not None:
            return
        try:
            self._packets = PacketLog()
        except (NftError, OSError) as error:
            # Rules are in force all the same; only nobody hears of drops.
            self._controller.warnings["log"] = f"{error}: drops are counted, not told (another program, ulogd, has it?)"
            return
        self._controller.warnings.pop("log", None)
        asyncio.get_running_loop().add_reader(self._packets.fileno(), self._read)

    def _read(self) -> None:
        assert self._packets is not None
        for logged in self._packets.read():
            drop = self.drops.see(logged.prefix, logged.packet, time.time())
            if drop is None:
                continue
            self._log.warning("%s", drop)
            for follower in self.followers:
                with suppress(asyncio.QueueFull):
                    follower.put_nowait(drop)

    def _rate(self) -> None:
        try:
            total = sum(packets for packets, _ in self._controller.table.counters().values())
        except (NftError, OSError):
            return
        now = time.monotonic()
        if self._dropped is not None:
            before, then = self._dropped
            self.per_minute = 60.0 * max(0, total - then) / max(now - before, 1e-3)
        self._dropped = (now, total)


def who(model: Model, direction: Direction, address: bytes) -> Judged:
    """A pod with the policies that isolate it, a node, or the bare address."""
    pod = model.owner(address)
    if pod is not None:
        policies = (str(policy) for policy in model.selecting(pod) if direction in policy.rules)
        return Judged(str(pod), tuple(policies))
    node = model.node_of(address)
    return Judged(f"node:{node}" if node else str(ip_address(address)))


def best_hook(wanted: str, look: Callable[[], bool] = bridge.ipvs) -> Hook:
    """Where rules stand: where it was asked for, else behind routing if kube-proxy is in its IPVS mode."""
    if wanted:
        return Hook(wanted)
    return Hook.POSTROUTING if look() else Hook.FORWARD
