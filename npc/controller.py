"""Keeps the kernel's table what the cluster wants, on one event loop: events in, commits out.

    idle, something changed  -> commit at once
    changed again within 30 ms -> one commit for all of it, when they are over
    the kernel refuses a change -> the whole table anew; if that is refused, too, again after 1 s, 2 s, ... 60 s
    somebody touched the table -> compared, written anew where it differs; and so every ten minutes, asked or not

Nothing is ever cleared: until the first full knowledge of the cluster, and while the API server is away, the table that
is there goes on judging. Source: NPC spec §4.1, §4.4 - §4.7.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial

from nft.wire import NftError
from npc import bridge, flows
from npc.admitted import Admitted, Interfaces
from npc.base import Options
from npc.kernel import Table
from npc.model import Model
from npc.objects import Document, Pod
from npc.planner import Planner
from npc.verdict import Connection, judge

_GATHER = 0.03
_SMALL = 500
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0
_AUDIT = 600.0
_SETTLE = 0.2
_CUT = 1.0
KINDS = ("Namespace", "Pod", "NetworkPolicy", "Node")
# Of times that are shown: so many commits back.
_REMEMBERED = 2000


@dataclass(slots=True)
class Figures:
    """What there is to count. Times in seconds: `took` of commits, `latency` from an event to its rules in force."""

    commits: int = 0
    took: deque[float] = field(default_factory=partial(deque, maxlen=_REMEMBERED))
    latency: deque[float] = field(default_factory=partial(deque, maxlen=_REMEMBERED))
    failures: dict[str, int] = field(default_factory=dict)
    flows_cut: int = 0
    repairs: int = 0
    handler_errors: int = 0


class Controller:
    """One node's policy. `observe` is told the seconds of each commit and whether it was a full one."""

    def __init__(
        self,
        model: Model,
        node: str,
        options: Options,
        table: Table,
        log: logging.Logger,
        *,
        keep_established: bool = False,
        admitted: Admitted | None = None,
        fetch: Callable[[str, str], Awaitable[Document | None]] | None = None,
        observe: Callable[[float, bool], None] = lambda seconds, full: None,
    ) -> None:
        self.model = model
        self.node = node
        self.planner = Planner(model, node, options)
        self.table = table
        self.figures = Figures()
        self.degraded: dict[str, str] = {}
        self.warnings: dict[str, str] = {}
        self.cleared = False
        self._log = log
        self._options = options
        self._keep_established = keep_established
        self._fetch = fetch
        self._observe = observe
        self._admitted = admitted or Admitted(None)
        self._commits: set[asyncio.Task[bool]] = set()
        self._missing = set(KINDS)
        self._synced = asyncio.Event()
        self._changed = asyncio.Event()
        self._suspect = asyncio.Event()
        self._review = asyncio.Event()
        self._reviewed: set[bytes] = set()
        self._turn = asyncio.Lock()
        self._first: float | None = None
        self._written = False
        self._whole = True
        self._retry = _FIRST_RETRY
        self._commit_over = 0.0

    # --- what the cluster says ---

    @property
    def ready(self) -> bool:
        """Whether policy is in force as it should be."""
        return self._written and not self.degraded

    @property
    def synced(self) -> bool:
        """Whether every kind of object was listed once, and the rules that follow are in the kernel."""
        return self._written

    def apply(self, kind: str, document: Document) -> None:
        """An object is new or changed."""
        self.model.apply(kind, document)
        self._touch()

    def put(self, pod: Pod) -> None:
        """A pod is new or changed."""
        self.model.put(pod)
        self._touch()

    def drop(self, pod: Pod) -> None:
        """A pod is gone."""
        self.model.delete("Pod", pod.name, pod.namespace, pod.uid)
        self._touch()

    def delete(self, kind: str, document: Document) -> None:
        """An object is gone."""
        metadata = document["metadata"]
        self.model.delete(kind, metadata["name"], metadata.get("namespace") or "", metadata.get("uid") or "")
        self._touch()

    def complete(self, kind: str) -> None:
        """All objects of a kind were told once."""
        self._missing.discard(kind)
        if not self._missing:
            self._synced.set()
        self._touch()

    def awaited(self) -> list[str]:
        """Of which kinds not all objects were told yet."""
        return sorted(self._missing)

    def _touch(self) -> None:
        if self._first is None:
            self._first = time.monotonic()
        self._changed.set()

    def rebuild(self) -> None:
        """Write the whole table at the next opportunity."""
        self._whole = True
        self._touch()

    def move(self, options: Options) -> None:
        """Stand at another hook."""
        planner = Planner(self.model, self.node, options)
        planner.update(self.model.everything())
        self.planner, self._options = planner, options
        self.rebuild()

    # --- what pods wait for ---

    async def admit(self, namespace: str, name: str, uid: str, addresses: Iterable[bytes], interface: str = "") -> bool:
        """The rules for a pod that is about to start are in the kernel. False if nobody knows such a pod.

        A pod may have several interfaces in our network; their addresses add up.
        """
        await self._synced.wait()
        known = self._admitted.pods.get((namespace, name))
        if known is None or known.uid != uid:
            known = self._admitted.pods[namespace, name] = Interfaces(uid)
        known.addresses[interface] = tuple(addresses)
        addresses = known.all()
        if not self.model.admit(namespace, name, uid, addresses):
            document = None if self._fetch is None else await self._fetch(namespace, name)
            if document is None:
                return False
            self.model.apply("Pod", document)
            if not self.model.admit(namespace, name, uid, addresses):
                return False
        self._touch()
        self._admitted.changed = True
        while not await self.commit():
            await asyncio.sleep(_GATHER)
        return True

    async def release(self, namespace: str, name: str, uid: str, interface: str = "") -> None:
        """A pod of this node has lost an interface.

        What ends late, when the pod has another one of that name already, or what this process never heard of,
        changes nothing: a pod that lives must not lose its rules.
        """
        known = self._admitted.pods.get((namespace, name))
        if known is None or known.uid != uid or known.addresses.pop(interface, None) is None:
            return
        for other, addresses in known.addresses.items():
            await self.admit(namespace, name, uid, addresses, other)
            return
        del self._admitted.pods[namespace, name]
        self._admitted.changed = True
        if self.model.release(namespace, name, uid):
            self._touch()
            await self.commit()

    # --- commits ---

    async def run(self) -> None:
        """Follow what changes until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.table.events.fileno(), self._told)
        tasks = [asyncio.create_task(one()) for one in (self._committing, self._auditing, self._cutting)]
        try:
            await asyncio.gather(*tasks)
        finally:
            loop.remove_reader(self.table.events.fileno())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _committing(self) -> None:
        await self._synced.wait()
        while True:
            # What could not be kept is tried again though nothing changes.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_RETRY if self._admitted.changed else None):
                    await self._changed.wait()
            await asyncio.sleep(max(0.0, self._commit_over + _GATHER - time.monotonic()))
            if not await self.commit():
                await asyncio.sleep(self._retry)
                self._retry = min(2 * self._retry, _LAST_RETRY)
                self._touch()

    async def commit(self) -> bool:
        """What is known now is in the kernel; False if the kernel refused. Who gives up waiting does not stop it."""
        task = asyncio.create_task(self._commit())
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return await asyncio.shield(task)

    async def _commit(self) -> bool:
        async with self._turn:
            if self.cleared:
                return True
            if not self._written:
                self._recall()
            first, self._first = self._first, None
            self._changed.clear()
            started = time.monotonic()
            change = self.planner.update(self.model.take())
            full = self._whole
            self._keep()
            try:
                if not full and change:
                    full = not await self._incremental(
                        partial(self.table.apply, change, self.planner.plan), change.size()
                    )
                if full:
                    await self._replace()
            except (NftError, OSError) as error:
                self._refused(error)
                return False
            over = self._commit_over = time.monotonic()
            if full or change:
                self._count(over - started, full)
                if first is not None and not full:
                    self.figures.latency.append(over - first)
            self._to_review(change.review)
            self._retry = _FIRST_RETRY
            return True

    def _keep(self) -> None:
        """Who was admitted, for the next process. Rules do not wait for a disk that is full."""
        try:
            self._admitted.keep()
        except OSError as error:
            text = f"{error}: a pod that has just started loses its rules for a while if weave-npc ends now"
            if self.warnings.get("admitted") != text:
                self._log.error("unable to keep which pods started: %s", text)
            self.warnings["admitted"] = text
        else:
            if self.warnings.pop("admitted", ""):
                self._log.info("which pods started is kept again")

    def _recall(self) -> None:
        """Pods that an earlier process admitted, as far as they are still there."""
        for (namespace, name), known in list(self._admitted.pods.items()):
            if not self.model.admit(namespace, name, known.uid, known.all()):
                del self._admitted.pods[namespace, name]

    async def _incremental(self, write: Callable[[], None], size: int) -> bool:
        """Whether the kernel took the change."""
        try:
            # A thread costs more than a small change.
            await asyncio.to_thread(write) if size > _SMALL else write()
        except NftError as error:
            self._fail(error)
            self._log.warning("%s; the whole table is written anew", error)
            return False
        return True

    async def _replace(self) -> None:
        plan = self.planner.plan
        adopted = not self._written and not await asyncio.to_thread(self.table.audit, plan)
        if adopted:
            self._log.info("the table of an earlier run is as it should be, and stays")
        else:
            await asyncio.to_thread(self.table.replace, plan)
        self._whole, self._written = False, True
        self.degraded.pop("kernel", None)
        for name, text in self.table.refused.items():
            self._log.error("left out, its pods stay isolated: %s: %s", name, text)
        if self.table.refused:
            self.degraded["refused"] = "; ".join(self.table.refused.values())
        else:
            self.degraded.pop("refused", None)
        self._to_review(key for mapped in plan.maps.values() for key in mapped.chains)

    def _refused(self, error: Exception) -> None:
        self._fail(error)
        self._whole = True
        self.degraded["kernel"] = str(error)
        self._log.error("%s; the rules from before stay, next attempt in %.0f s", error, self._retry)

    def _fail(self, error: Exception) -> None:
        reason = str(getattr(error, "errno", 0) or "other")
        self.figures.failures[reason] = self.figures.failures.get(reason, 0) + 1

    def _count(self, seconds: float, full: bool) -> None:
        self.figures.commits += 1
        self.figures.took.append(seconds)
        self._observe(seconds, full)

    async def clear(self) -> bool:
        """No table, and none again before the next start; whether there was one. Raises NftError."""
        async with self._turn:
            self.cleared = True
            self.degraded["cleared"] = "rules were removed by hand: nothing is filtered until weave-npc starts again"
            return await asyncio.to_thread(self.table.remove)

    # --- foreign changes ---

    def _told(self) -> None:
        if any(change.table in ("", self.table.name) for change in list(self.table.events.read())):
            self._suspect.set()

    async def _auditing(self) -> None:
        await self._synced.wait()
        while True:
            try:
                await asyncio.wait_for(self._suspect.wait(), _AUDIT)
                await asyncio.sleep(_SETTLE)
            except TimeoutError:
                # What the kernel refused once it may take now.
                self._whole = self._whole or bool(self.table.refused)
                self._touch()
            self._suspect.clear()
            await self.audit()

    async def audit(self, *, repair: bool = True) -> list[str]:
        """What of the table is not as it was meant; with `repair` it is written anew."""
        if not self._written or self.cleared:
            return []
        async with self._turn:
            try:
                found = [] if self._whole else await asyncio.to_thread(self.table.audit, self.planner.plan)
            except (NftError, OSError) as error:
                self._fail(error)
                self._log.error("unable to audit the table: %s", error)
                return [str(error)]
        if found and repair:
            self.figures.repairs += 1
            self._log.error("somebody else changed the rules of network policy: %s; written anew", "; ".join(found[:5]))
            self.rebuild()
            await self.commit()
        return found

    # --- established flows ---

    def _to_review(self, addresses: Iterable[bytes]) -> None:
        if not self._keep_established:
            self._reviewed.update(addresses)
            if self._reviewed:
                self._review.set()

    async def _cutting(self) -> None:
        while True:
            await self._review.wait()
            self._review.clear()
            addresses, self._reviewed = self._reviewed, set()
            try:
                await self._cut(addresses)
            except (NftError, OSError) as error:
                self._fail(error)
                self._log.error("%s; connections that policy no longer allows may go on", error)
                self._reviewed |= addresses
                self._review.set()
            await asyncio.sleep(_CUT)

    async def _cut(self, addresses: set[bytes]) -> None:
        """Judge the connections of these addresses again, and end those that are not allowed."""
        ours, known = await asyncio.to_thread(lambda: (bridge.addresses(), flows.known(addresses)))
        stale = [one for one in known if not self._allowed(one.flow, ours)]
        if stale:
            cut = await asyncio.to_thread(flows.forget, stale)
            self.figures.flows_cut += cut
            self._log.info("%d connections that policy no longer allows were ended", cut)

    def _allowed(self, flow: flows.Flow, ours: Collection[bytes]) -> bool:
        """Whether policy allows a connection; this node and its pods always reach each other."""
        if flow.source in ours or flow.destination in ours:
            return True
        connection = Connection(flow.source, flow.destination, flow.protocol, flow.port)
        return judge(self.model, connection, multicast=self._options.multicast, closed=self._options.closed).allowed
