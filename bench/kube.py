"""The Kubernetes client: a list of 10,000 pods in pages, then 2,000 events of a watch, kept as weave-npc keeps them.

    python -m bench.kube                      three rounds each
    python -m bench.kube --pods 1000 --rounds 1

Beside it the same bytes over a plain asyncio stream and `json.loads`, which is what Python needs at least. Every round
is a process of its own, so that memory is its own too; the server is another, and has all answers ready.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

_EVENTS = 2000
_PAGE = 500
_POD_SIZE = 2000


def pod(number: int, version: int) -> dict[str, Any]:
    """Of about 2 KB, most of which nobody keeps."""
    namespace = f"team-{number % 40}"
    labels = {"app": f"app-{number % 500}", "tier": "web", "pod-template-hash": f"{number:010x}", "v": str(version)}
    pod_ip = f"10.{32 + number // 65536}.{number // 256 % 256}.{number % 256}"
    document: dict[str, Any] = {
        "metadata": {
            "name": f"app-{number % 500}-{number:06x}",
            "namespace": namespace,
            "uid": f"{number:08x}-0000-4000-8000-000000000000",
            "resourceVersion": str(version),
            "labels": labels,
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "nodeName": f"node-{number % 100}",
            "containers": [{"name": "c", "image": "registry.example/app:1", "ports": [{"containerPort": 80}]}],
        },
        "status": {"phase": "Running", "podIP": pod_ip, "podIPs": [{"ip": pod_ip}], "hostIP": "192.0.2.1"},
    }
    document["metadata"]["annotations"] = {"filler": "x" * (_POD_SIZE - len(json.dumps(document)))}
    return document


# --- the server, in a process of its own ---


async def serve(pods: int) -> None:
    pages = []
    for start in range(0, pods, _PAGE):
        meta = {"resourceVersion": "1000000"} | ({"continue": str(start + _PAGE)} if start + _PAGE < pods else {})
        items = [pod(number, number + 1) for number in range(start, min(start + _PAGE, pods))]
        pages.append(json.dumps({"kind": "PodList", "metadata": meta, "items": items}).encode())
    rng = Random(1)
    events = b""
    for number in range(_EVENTS):
        found = {"kind": "Pod", "apiVersion": "v1"} | pod(rng.randrange(pods), 1000001 + number)
        line = json.dumps({"type": "MODIFIED", "object": found}).encode() + b"\n"
        events += b"%x\r\n%s\r\n" % (len(line), line)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                query = parse_qs(urlsplit(head.split()[1].decode()).query)
                common = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                if "watch" in query:
                    writer.write(common + b"Transfer-Encoding: chunked\r\n\r\n" + events)
                else:
                    page = pages[int(query.get("continue", ["0"])[0]) // _PAGE]
                    writer.write(common + b"Content-Length: %d\r\n\r\n" % len(page) + page)
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- a round, in a process of its own ---


class Round:
    """What is measured: seconds, bytes, and seconds of the processor an event."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = 0.0
        self._events = 0
        self.figures: dict[str, float] = {"import": _resident()}

    def listed(self) -> None:
        self.figures |= {"list": time.monotonic() - self._wall, "list cpu": time.process_time(), "rss": _resident()}
        self._cpu = time.process_time()

    def event(self) -> bool:
        """Whether that was the last one."""
        self._events += 1
        if self._events < _EVENTS:
            return False
        self.figures["event"] = (time.process_time() - self._cpu) / _EVENTS
        self.figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
        return True


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return float(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def ours(port: int) -> dict[str, float]:
    from kube.client import Client
    from kube.config import Config
    from kube.resource import PODS
    from kube.watch import Applied, Synced, watch
    from npc.objects import TRIM

    figures = Round()
    async with Client(Config(f"http://127.0.0.1:{port}")) as client:
        synced = False
        async with contextlib.aclosing(watch(client, PODS, TRIM["Pod"])) as events:
            async for event in events:
                if isinstance(event, Synced):
                    figures.listed()
                    synced = True
                elif isinstance(event, Applied) and synced and figures.event():
                    break
    return figures.figures


async def bare(port: int) -> dict[str, float]:
    from npc.objects import TRIM

    figures, trim = Round(), TRIM["Pod"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    kept: dict[tuple[str, str], Any] = {}
    token = "0"
    while token:
        writer.write(f"GET /?continue={token} HTTP/1.1\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        page = json.loads(await reader.readexactly(int(head.rpartition(b"Length: ")[2])))
        kept |= {(item["metadata"]["namespace"], item["metadata"]["name"]): trim(item) for item in page["items"]}
        token = page["metadata"].get("continue", "")
    figures.listed()
    writer.write(b"GET /?watch=1 HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    while True:
        size = int(await reader.readline(), 16)
        found = json.loads(await reader.readexactly(size + 2))["object"]
        kept[found["metadata"]["namespace"], found["metadata"]["name"]] = trim(found)
        if figures.event():
            writer.close()
            return figures.figures


# --- all rounds ---


@contextlib.contextmanager
def server(pods: int) -> Iterator[int]:
    command = [sys.executable, "-m", "bench.kube", "--serve", "--pods", str(pods)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.pods))
    elif arguments.measure:
        import uvloop

        who, port = arguments.measure
        print(json.dumps(uvloop.run({"ours": ours, "bare": bare}[who](int(port)))))
    else:
        _compare(arguments.pods, arguments.rounds)


def _compare(pods: int, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    with server(pods) as port:
        for _ in range(rounds):
            for who, figures in found.items():
                command = [sys.executable, "-m", "bench.kube", "--measure", who, str(port)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
                figures.append(json.loads(done.stdout))
    print(f"{pods} pods in pages of {_PAGE}, {_EVENTS} events; medians of {rounds}; load {os.getloadavg()[0]:.1f}\n")
    print("client  import MB  list s  list cpu s  RSS after MB  peak MB  cpu an event us")
    medians = {}
    for who, figures in found.items():
        middle = medians[who] = {name: statistics.median(round_[name] for round_ in figures) for name in figures[0]}
        print(
            f"{who:<6}{middle['import'] / 1e6:>11.0f}{middle['list']:>8.2f}{middle['list cpu']:>12.2f}"
            f"{middle['rss'] / 1e6:>14.0f}{middle['peak'] / 1e6:>9.0f}{middle['event'] * 1e6:>17.0f}"
        )
    ratios = {name: medians["ours"][name] / medians["bare"][name] for name in ("list", "rss", "event")}
    print(f"\nours / bare: list {ratios['list']:.2f}, RSS {ratios['rss']:.2f}, an event {ratios['event']:.2f}")


if __name__ == "__main__":
    main()
