"""The entry point `weave-npc`: Kubernetes network policy for the pods of this node.

In order: what another run left in the kernel stays and judges; the cluster is listed; the rules that follow are written
in one transaction, or what is there is adopted; then every change follows. It ends without touching the rules.
Source: NPC spec §1.1, §4.1, §4.7.
"""

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from kube.client import Client
from kube.config import Config, in_cluster
from kube.errors import ApiError, ConfigError, KubeError
from kube.resource import NAMESPACES, NETWORK_POLICIES, NODES, PODS, Object, Resource
from kube.watch import Applied, Deleted, Event, Follower, Synced, Trim, watch
from nft.wire import NftError
from npc import settings as npc_settings
from npc.admitted import Admitted
from npc.answers import Answers
from npc.base import Options
from npc.controller import Controller
from npc.kernel import Table
from npc.metrics import CONTENT_TYPE, Metrics
from npc.model import Model
from npc.node import Node, best_hook
from npc.objects import TRIM, Document, Pod, pod
from npc.plan import Hook
from npc.server import Server
from npc.settings import Settings, UsageError
from weave_py import __version__
from weave_py.http import listen
from weave_py.log import set_up

_RESOURCES: Mapping[str, Resource] = {
    "Namespace": NAMESPACES,
    "Pod": PODS,
    "NetworkPolicy": NETWORK_POLICIES,
    "Node": NODES,
}
# Of pods there are many: they are kept once, as the model has them.
_KEPT: Mapping[str, Trim] = {**TRIM, "Pod": pod}
_FETCH = 3.0
# Seconds without a word before the API server counts as away; and how often one looks.
_AWAY, _LOOK = 60.0, 5.0
EXIT_USAGE = 2


def main() -> None:
    """Run until told to stop."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-version"]):
        print(f"weave-npc {__version__}")
        return 0
    try:
        settings = npc_settings.parse(arguments, os.environ)
        config = _config(settings)
    except (UsageError, ConfigError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    log = set_up(settings.level)
    log.info("Starting Weave NPC %s; node name %r", __version__, settings.node)
    for flag in settings.ignored:
        log.warning("%s means nothing to this version", flag)
    try:
        hook = best_hook(settings.hook)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, hook, config, log))
    except (NftError, OSError, ValueError) as error:
        log.critical("%s", error)
        return 1


def _config(settings: Settings) -> Config:
    if not settings.url:
        return in_cluster()
    token, authorities = (Path(path) if path else None for path in (settings.token, settings.ca))
    return Config(settings.url, token_file=token, ca_file=authorities)


async def _run(settings: Settings, hook: Hook, config: Config, log: logging.Logger) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if not settings.enforce:
        return await _idle(log, stop)
    async with Client(config, agent=f"weave-npc/{__version__}") as client:
        daemon = Daemon(settings, hook, client, log)
        try:
            await daemon.start()
            await _until(stop, daemon.jobs())
        finally:
            await daemon.stop()
    log.info("stopped; the rules stay")
    return 0


async def _until(stop: asyncio.Event, jobs: Sequence[Coroutine[None, None, None]]) -> None:
    """Do all of them until it is time to stop; what goes wrong with one ends all."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(job) for job in (stop.wait(), *jobs)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _idle(log: logging.Logger, stop: asyncio.Event) -> int:
    """EXPECT_NPC=0: no rules, but the container must not end."""
    table = Table()
    if table.remove():
        log.info("EXPECT_NPC=0: the rules are removed")
    table.close()
    await stop.wait()
    return 0


class _Heard(Follower):
    """A resource, and when the server last said anything of it."""

    def __init__(self, trim: Trim, rng: random.Random) -> None:
        super().__init__(trim, rng)
        self._at = time.monotonic()

    def age(self) -> float:
        """Seconds since."""
        return time.monotonic() - self._at

    def line(self, raw: bytes) -> Iterator[Event]:
        self._at = time.monotonic()
        return super().line(raw)

    def page(self, document: Object) -> Iterator[Event]:
        self._at = time.monotonic()
        return super().page(document)


class Daemon:
    """All that runs on a node."""

    def __init__(self, settings: Settings, hook: Hook, client: Client, log: logging.Logger) -> None:
        options = Options(hook, settings.bridge, settings.multicast, settings.closed)
        self._settings = settings
        self._client = client
        self._log = log
        self._metrics = Metrics()
        self._followers = {kind: _Heard(_KEPT[kind], random.Random()) for kind in _RESOURCES}
        self._table = Table()
        self.controller = Controller(
            Model(),
            settings.node,
            options,
            self._table,
            log,
            keep_established=settings.keep_established,
            admitted=Admitted(Path(settings.socket).with_suffix(".admitted.json")),
            fetch=self._fetch,
            observe=self._metrics.observe,
        )
        self._node = Node(self.controller, options, settings.hook, log)
        answers = Answers(self.controller, self._node, log, closed=settings.startup_closed)
        self._server = Server(settings.socket, answers.answer, answers.follow, log)
        self._web: web.AppRunner | None = None
        self._metrics.follow(self.controller, self._node, self._ages)

    async def start(self) -> None:
        """Listen, and look at the node. Raises OSError."""
        if self._table.exists():
            self._log.info("rules of an earlier run are in force until the cluster is known")
        await self._node.look()
        await self._server.start()
        if self._settings.metrics:
            self._web = await listen(self._application(), self._settings.metrics)

    def jobs(self) -> list[Coroutine[None, None, None]]:
        """What goes on until the end."""
        jobs = [self.controller.run(), self._node.run(), self._watch_over(), self._settle()]
        jobs += [self._follow(kind, resource) for kind, resource in _RESOURCES.items()]
        return jobs

    async def stop(self) -> None:
        """Listen no more; the table stays."""
        await self._server.stop()
        if self._web is not None:
            await self._web.cleanup()
        self._table.close()

    # --- the cluster ---

    async def _follow(self, kind: str, resource: Resource) -> None:
        """Every event of a kind; a bad object costs itself alone."""
        events = watch(self._client, resource, _KEPT[kind], follower=self._followers[kind], log=self._log)
        async with contextlib.aclosing(events):
            async for event in events:
                try:
                    self._take(kind, event)
                except Exception:
                    self.controller.figures.handler_errors += 1
                    self._log.exception("unable to follow %.300r", event)

    async def _watch_over(self) -> None:
        """Say so when the API server has been away for a while: changes are not followed, the rules stay."""
        while True:
            away = {kind: one.trouble for kind, one in self._followers.items() if one.trouble and one.age() > _AWAY}
            if away:
                kinds = ", ".join(away)
                self.controller.degraded["api"] = f"changes of {kinds} are not followed: {next(iter(away.values()))}"
            else:
                self.controller.degraded.pop("api", None)
            await asyncio.sleep(_LOOK)

    async def _settle(self) -> None:
        """Once the cluster is known, it is no garbage: a full collection amid a change would look at all of it."""
        while not self.controller.synced:
            await asyncio.sleep(_LOOK)
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()

    def _take(self, kind: str, event: object) -> None:
        match event:
            case Applied(Pod() as one):
                self.controller.put(one)
            case Deleted(Pod() as one):
                self.controller.drop(one)
            case Applied(document):
                self.controller.apply(kind, document)
            case Deleted(document):
                self.controller.delete(kind, document)
            case Synced():
                self.controller.complete(kind)

    async def _fetch(self, namespace: str, name: str) -> Document | None:
        """A pod that starts before its event came."""
        try:
            async with asyncio.timeout(_FETCH):
                found = await self._client.get(PODS, name, namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        except (KubeError, TimeoutError) as error:
            self._log.warning("unable to ask for pod %s/%s: %s", namespace, name, error)
            return None
        return TRIM["Pod"](found)

    def _ages(self) -> Mapping[str, float]:
        return {_RESOURCES[kind].plural: one.age() for kind, one in self._followers.items()}

    # --- metrics and readiness ---

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/healthz", self._healthy)
        application.router.add_get("/readyz", self._ready)
        return application

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        reasons = self.controller.degraded or dict.fromkeys(self.controller.awaited(), "not all known yet")
        text = "".join(f"{reason}: {text}\n" for reason, text in reasons.items())
        return web.Response(status=200 if self.controller.ready else 503, text=text or "ok\n")


if __name__ == "__main__":
    main()
