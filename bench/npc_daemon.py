"""weave-npc of a large cluster as a process: until it is ready, its memory, a burst of changes, and doing nothing.

    python -m bench.npc_daemon              10,000 pods, 100 of them ours, 1,000 policies, 100 namespaces

The API server is a stand-in in a process of its own; both are in a network namespace that goes when it ends.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import npc_objects
from bench.npc_objects import NODE
from host.netns import inside
from lab.net import run
from lab.router import wait_until

_QUIET = 10.0
_ALONE, _APART = 300, 0.06
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("pods", 10_000), ("local", 100), ("policies", 1_000), ("namespaces", 100), ("burst", 500)):
        parser.add_argument(f"--{name}", type=int, default=count)
    wanted = parser.parse_args()
    name = f"bench-npc{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "link", "add", "weave", "type", "bridge")
        with tempfile.TemporaryDirectory(prefix="bench-npc-") as directory:
            inside(f"/run/netns/{name}", lambda: measure(wanted, Path(directory)))
    finally:
        run("ip", "netns", "del", name)


def measure(wanted: argparse.Namespace, directory: Path) -> None:
    """All of it, in the namespace of the calling thread."""
    objects = {
        "nodes": [{"metadata": {"name": NODE}, "status": {"addresses": []}}],
        "namespaces": list(npc_objects.namespaces(wanted.namespaces)),
        "networkpolicies": list(npc_objects.policies(wanted.policies, wanted.namespaces)),
        "pods": list(npc_objects.pods(wanted.pods, wanted.namespaces, wanted.local)),
    }
    listed = directory / "objects.json"
    listed.write_text(json.dumps(objects))
    path = str(directory / "npc.sock")
    with server(listed) as url, (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "weave_py.npc", "--node-name", NODE, "--api-server", url, "--socket", path]
        started = time.monotonic()
        with subprocess.Popen(command, stdout=log, stderr=log) as daemon:
            try:
                wait_until("weave-npc is ready", lambda: bool(status(path).get("ready")), 120, 0.02)
                print(f"{wanted.pods} pods ({wanted.local} here), {wanted.policies} policies")
                took, memory = time.monotonic() - started, resident(daemon.pid)
                print(f"  ready {took:.2f} s after its start, resident {memory:.0f} MB")
                one_by_one(wanted, url, path)
                burst(wanted, url, path)
                before = processor(daemon.pid)
                time.sleep(_QUIET)
                used, memory = processor(daemon.pid) - before, resident(daemon.pid)
                print(f"  doing nothing takes {100 * used / _QUIET:.2f} % of a processor, resident {memory:.0f} MB")
            finally:
                daemon.terminate()


def burst(wanted: argparse.Namespace, url: str, path: str) -> None:
    """Many pods change their labels at once."""
    before = status(path)["commits"]
    last, started = 0, time.monotonic()
    for number in range(wanted.burst):
        relabel(wanted, url, number, "burst")
    sent = time.monotonic()

    def settled() -> bool:
        nonlocal last
        former, last = last, status(path)["commits"]
        return bool(last == former != before)

    wait_until("all is in the kernel", settled, 30, 0.1)
    print(f"  {wanted.burst} changes, sent in {sent - started:.2f} s, make {last - before} commits, "
          f"over {time.monotonic() - sent:.2f} s after the last")  # fmt: skip


def one_by_one(wanted: argparse.Namespace, url: str, path: str) -> None:
    """Pods that change when nothing else does: from the event to the rules in force."""
    for number in range(_ALONE):
        relabel(wanted, url, number, f"app-{number % 7}")
        time.sleep(_APART)
    known = status(path)["latencySeconds"]
    print(f"  an event's rules are in force after {known['median'] * 1e3:.1f} ms, p99 {known['p99'] * 1e3:.1f} ms")


def relabel(wanted: argparse.Namespace, url: str, number: int, app: str) -> None:
    """Another label for a pod."""
    node = NODE if number < wanted.local else "node-1"
    metadata = npc_objects.pod(number, wanted.namespaces, node, app=app)["metadata"]
    patch = json.dumps({"metadata": {"labels": metadata["labels"]}}).encode()
    path = f"{url}/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
    request = urllib.request.Request(path, patch, method="PATCH")
    request.add_header("Content-Type", "application/merge-patch+json")
    with urllib.request.urlopen(request) as answer:
        answer.read()


def status(path: str) -> dict[str, Any]:
    """What weave-npc says of itself; nothing where it does not answer yet."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
        sock.sendall(b'{"ask": "status"}\n')
        with sock.makefile("rb") as lines:
            found: dict[str, Any] = json.loads(lines.readline())["answer"]
            return found
    return {}


@contextlib.contextmanager
def server(listed: Path) -> Iterator[str]:
    """The stand-in API server with these objects; its URL."""
    command = [sys.executable, "-m", "tests.kube.api_server", "--load", str(listed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def resident(pid: int) -> float:
    """Memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def processor(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    main()
