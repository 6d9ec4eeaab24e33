"""Nodes of Weave Net 2.8 and ours in one cluster: one list of peers, one who removes a departed peer.

Its `kube-utils` runs as in its pod: token and authority are mounted, in a mount namespace of its own; its router is one
that only notes what it is asked. Source: Kubernetes and CNI spec §4.2-§4.5.
"""

import asyncio
import contextlib
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest

from kube.client import Client
from kube.config import Config
from kube.peers import CONDITION, condition_of
from kube.reclaim import Registry
from kube.registry import Listed
from lab.router import wait_until
from tests.kube.api_server import ApiServer, serving
from tests.kube.certificate import self_signed
from tests.kube.nodes import node

KUBE_UTILS = os.environ.get("WEAVE_NET_KUBE_UTILS", "")
pytestmark = [
    pytest.mark.skipif(not KUBE_UTILS, reason="WEAVE_NET_KUBE_UTILS names no kube-utils of Weave Net 2.8 to run"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed"),
]

PRESENT = 9
_MOUNTS = """set -e
mount -t tmpfs none /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
cp "$1/ca.crt" "$1/token" /run/secrets/kubernetes.io/serviceaccount/
shift
exec "$@"
"""


class Routers:
    """The control API of a router of 2.8: says which peers were removed, and holds answers back while `held`."""

    def __init__(self) -> None:
        self.removed: Counter[str] = Counter()
        self.forms: list[str] = []
        self.under_way: Counter[str] = Counter()
        self.collisions = 0
        self.free = threading.Event()
        self.free.set()
        self._lock = threading.Lock()
        routers = self

        class Handler(BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                peer = self.path.removeprefix("/peer/")
                routers.begin(peer)
                routers.free.wait(30)
                routers.end(peer)
                self._answer(b"1 IPs taken over\n")

            def do_POST(self) -> None:
                routers.forms.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def begin(self, peer: str) -> None:
        with self._lock:
            self.under_way[peer] += 1
            self.collisions += self.under_way[peer] > 1

    def end(self, peer: str) -> None:
        with self._lock:
            self.under_way[peer] -= 1
            self.removed[peer] += 1


@pytest.fixture
def routers() -> Iterator[Routers]:
    made = Routers()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.free.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    _, context = self_signed(tmp_path)
    (tmp_path / "token").write_text("secret")
    with serving(tls=context) as made:
        made.allow("secret")
        yield made


class Pods:
    """Runs `kube-utils` of nodes of 2.8 and registries of ours against one cluster."""

    def __init__(self, server: ApiServer, routers: Routers, directory: Path) -> None:
        self.server = server
        self.routers = routers
        self._directory = directory

    @contextlib.asynccontextmanager
    async def running(self, own: Listed, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
        where = urlsplit(self.server.url)
        environ = os.environ | {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(where.port)}
        environ["WEAVE_HTTP_ADDR"] = self.routers.address
        named = [f"-peer-name={own.peer}", f"-node-name={own.node}", "-log-level=debug"]
        inside = ["sh", "-c", _MOUNTS, "sh", str(self._directory), KUBE_UTILS, *named, *flags]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", *inside, env=environ, stdout=pipe, stderr=pipe
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def kube_utils(self, own: Listed, *flags: str) -> int:
        async with self.running(own, *flags) as process:
            _, log = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode in (0, PRESENT), log.decode()
            return process.returncode

    @contextlib.asynccontextmanager
    async def ours(self, own: Listed) -> AsyncIterator[Registry]:
        config = Config(self.server.url, token="secret", ca_file=self._directory / "ca.crt")
        async with Client(config) as client:
            yield Registry(client, own, rng=Random(own.peer), sleep=lambda seconds: asyncio.sleep(seconds / 20))

    async def remove(self, peer: str) -> None:
        """What our router does, so long as theirs would take."""
        self.routers.begin(peer)
        await asyncio.sleep(0.02)
        self.routers.end(peer)

    def annotations(self) -> dict[str, str]:
        held = self.server.objects.get("configmaps", "weave-net", "kube-system")
        return dict(held["metadata"].get("annotations", {}))

    def listed(self) -> list[Listed]:
        peers = json.loads(self.annotations()["kube-peers.weave.works/peers"])["Peers"]
        return [Listed(entry["PeerName"], entry["NodeName"]) for entry in peers]


@pytest.fixture
def pods(server: ApiServer, routers: Routers, tmp_path: Path) -> Pods:
    return Pods(server, routers, tmp_path)


def named(number: int) -> Listed:
    return Listed(f"00:00:00:00:00:{number:02x}", f"node-{number}")


def put(pods: Pods, *numbers: int) -> None:
    for number in numbers:
        pods.server.objects.put("nodes", node(f"node-{number}", ("InternalIP", f"203.0.113.{number}")))


async def test_both_write_the_same(pods: Pods) -> None:
    """What theirs wrote, ours reads, and the other way; what is ours alone, theirs keep."""
    put(pods, 1, 2)
    async with pods.ours(named(1)) as ours:
        await ours.consensus(pods.server.objects.all("nodes"))
        await ours.add()
        assert await pods.kube_utils(named(1), "-check-peer-new") == PRESENT
        assert await pods.kube_utils(named(2), "-check-peer-new") == 0
        assert await pods.kube_utils(named(2), "-reclaim") == 0
        assert await pods.kube_utils(named(2), "-check-peer-new") == PRESENT
        assert pods.listed() == [named(1), named(2)]
        by_theirs = pods.annotations()["kube-peers.weave.works/peers"]
        assert pods.annotations()["weave-py/ring"] == '{"Nodes":2,"Founded":false}'
        async with pods.ours(named(2)) as other:
            assert not await other.lacks_us()
            await other.add()
        assert pods.annotations()["kube-peers.weave.works/peers"] == by_theirs


async def test_theirs_make_the_object_where_there_is_none(pods: Pods) -> None:
    assert await pods.kube_utils(named(1), "-check-peer-new") == 0
    async with pods.ours(named(1)) as ours:
        assert not await ours.lacks_us()


async def test_ours_leave_a_peer_to_theirs_that_is_at_it(pods: Pods) -> None:
    put(pods, 1, 2)
    async with pods.ours(named(1)) as ours, pods.ours(named(9)) as gone:
        await gone.add()
        await ours.add()
        pods.routers.free.clear()
        theirs = asyncio.create_task(pods.kube_utils(named(2), "-reclaim"))
        await asyncio.to_thread(wait_until, "theirs begins", lambda: pods.routers.under_way[named(9).peer] == 1, 30)
        assert pods.annotations()["kube-peers.weave.works/00_00_00_00_00_09"] == named(2).peer
        assert not await ours.reclaim(pods.remove)
        pods.routers.free.set()
        assert await theirs == 0
        assert await ours.reclaim(pods.remove)
    assert pods.routers.removed == {named(9).peer: 1}


async def test_theirs_leave_a_peer_to_ours_that_is_at_it(pods: Pods) -> None:
    put(pods, 1, 2)
    done: list[int] = []

    async def slowly(peer: str) -> None:
        done.append(await pods.kube_utils(named(2), "-reclaim"))
        await pods.remove(peer)

    async with pods.ours(named(1)) as ours, pods.ours(named(9)) as gone:
        await gone.add()
        await ours.add()
        assert await ours.reclaim(slowly)
    assert done == [0] and pods.routers.removed == {named(9).peer: 1} and not pods.routers.collisions
    assert pods.listed() == [named(1), named(2)]


@pytest.mark.parametrize("seed", range(5))
async def test_two_of_each_race(pods: Pods, seed: int) -> None:
    """Three peers are gone, two of theirs and two of ours start at once: each is removed, by one at a time."""
    put(pods, 1, 2, 3, 4)
    for number in (20, 21, 22):
        async with pods.ours(named(number)) as gone:
            await gone.add()

    async def one_of_ours(number: int) -> None:
        async with pods.ours(named(number)) as ours:
            await asyncio.sleep(Random(seed * 10 + number).random() / 10)
            await ours.add()
            while not await ours.reclaim(pods.remove):
                await asyncio.sleep(0.01)

    theirs = [pods.kube_utils(named(number), "-reclaim") for number in (3, 4)]
    await asyncio.gather(one_of_ours(1), one_of_ours(2), *theirs)
    assert sorted(pods.listed()) == [named(number) for number in (1, 2, 3, 4)]
    assert set(pods.annotations()) == {"kube-peers.weave.works/peers"}
    assert pods.routers.removed == {named(number).peer: 1 for number in (20, 21, 22)}
    assert not pods.routers.collisions


async def test_theirs_follow_nodes_of_the_stand_in(pods: Pods) -> None:
    """Their informer lists and watches; a node that goes has its peer removed, and the rest is dialled."""
    put(pods, 1, 2, 3)
    for number in (2, 3):
        async with pods.ours(named(number)) as ours:
            await ours.add()
    assert await pods.kube_utils(named(1), "-reclaim") == 0
    async with pods.running(named(1), "-run-reclaim-daemon"):
        await asyncio.to_thread(wait_until, "a watch", lambda: pods.server.watching == 1, 30)
        pods.server.objects.remove("nodes", "node-2")
        await asyncio.to_thread(wait_until, "a list of peers", lambda: bool(pods.routers.forms), 30)
    assert pods.routers.removed == {named(2).peer: 1}
    assert "203.0.113.3" in pods.routers.forms[0] and "replace=true" in pods.routers.forms[0]


async def test_the_condition_is_the_same(pods: Pods) -> None:
    put(pods, 1)
    assert await pods.kube_utils(named(1), "-set-node-status") == 0
    theirs = condition_of(pods.server.objects.get("nodes", "node-1"), CONDITION)
    assert theirs is not None
    said = {key: theirs[key] for key in ("status", "reason", "message")}
    assert said == {"status": "False", "reason": "WeaveIsUp", "message": "Weave pod has set this"}
