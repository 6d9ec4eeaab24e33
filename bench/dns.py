"""Names: queries a second, CPU of the server per query, and how long the slowest hundredth waits.

    python -m bench.dns                              ours, beside knot, CoreDNS and a 2.8 router where they can be had
    python -m bench.dns --only ours --seconds 2
    WEAVE_NET_ROUTER=... python -m bench.dns

All of it runs in one network namespace: the servers in turn, and an upstream server of our own whose answers must not
be kept. dnsperf asks; server and dnsperf share the machine's cores. CPU is user and system time of the server alone.
Waiting is measured apart, at 2,000 queries a second. Rounds are interleaved; the table shows medians, and their ratio
to the 2.8 router with as many names. It takes minutes to learn 10,000: `--sizes 100` leaves that out.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.net import LabError, Underlay, inside, require_root
from lab.router import Router, wait_until

SIZES = (100, 10_000)
_UPSTREAM = "127.0.0.2"
_OUTSIDE = "example.com"
_KINDS = ("A", "PTR", "NXDOMAIN", "forwarded")


def address(number: int) -> str:
    """The address of name `number`."""
    return f"10.32.{number // 250}.{number % 250 + 1}"


def questions(kind: str, size: int, rng: random.Random) -> str:
    """What dnsperf asks: lines of name and type."""
    numbers = rng.choices(range(size), k=20_000)
    if kind == "A":
        lines = [f"host{number}.weave.local A" for number in numbers]
    elif kind == "PTR":
        lines = [".".join(reversed(address(number).split("."))) + ".in-addr.arpa PTR" for number in numbers]
    elif kind == "NXDOMAIN":
        lines = [f"none{number}.weave.local A" for number in range(20_000)]
    else:
        lines = [f"n{number}.{_OUTSIDE} A" for number in range(20_000)]
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Server:
    """A DNS server under test, at 127.0.0.1:53 of the namespace while it runs."""

    name: str
    size: int
    cpu: Any
    stop: Any
    kinds: tuple[str, ...] = _KINDS
    figures: dict[str, list[float]] = field(default_factory=dict)


def process_cpu(pid: int) -> float:
    """User and system time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- what runs in processes of its own ---


async def serve_upstream() -> None:
    """Answers every A question at once, with an answer that nobody may keep."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((_UPSTREAM, 53))

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                query, source = sock.recvfrom(1500)
                end = query.index(b"\0", 12) + 5
                answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x0a\1\2\3"
                sock.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:end] + answer, source)

    asyncio.get_running_loop().add_reader(sock.fileno(), readable)
    await asyncio.Event().wait()


async def serve_ours(size: int, resolv_conf: str) -> None:
    """The router's name service without the rest of the router."""
    from dns.service import NameService, NameSettings
    from mesh.names import PeerName

    service = NameService(
        PeerName(1),
        NameSettings(resolv_conf=resolv_conf),
        known=lambda name: True,
        clock=time.time,
        rng=random.Random(),
        journal=None,
        log=logging.getLogger("dns"),
    )
    for number in range(size):
        service.add(f"host{number}.weave.local", "0123456789ab" * 5, address(number))
    await service.start(("127.0.0.1", 53))
    await asyncio.Event().wait()


def child(words: list[str]) -> None:
    """One of the servers above, in this process."""
    import uvloop

    uvloop.run(serve_upstream() if words[0] == "upstream" else serve_ours(int(words[1]), words[2]))


# --- servers under test ---


class Bench:
    """The namespace, and what is started in it."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds
        self.underlay = Underlay(f"wd{os.getpid()}")
        self.host = self.underlay.host(1)
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {_UPSTREAM}\n")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start(sys.executable, "-m", "bench.dns", "--child", "upstream")

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            inside(self.host.namespace, *command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(self.directory / "stderr").open("ab"),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def close(self) -> None:
        for process in list(self.processes):
            self.end(process)
        self.underlay.remove()

    def ours(self, size: int) -> Server:
        process = self.start(sys.executable, "-m", "bench.dns", "--child", "ours", str(size), str(self.resolv_conf))
        return Server("ours", size, lambda: process_cpu(process.pid), lambda: self.end(process))

    def weave_net(self, size: int) -> Server:
        """A 2.8 router, told its names as its command line does it."""
        router = Router(self.host, self.directory / f"real{size}", foreign=os.environ["WEAVE_NET_ROUTER"], dns=True)
        router.start([], "--dns-listen-address", "127.0.0.1:53", "--resolv-conf", str(self.resolv_conf))
        wait_until("the router answers", router.answers, 30)
        for number in range(size):
            name = f"/name/{'0123456789ab' * 5}/{address(number)}?fqdn=host{number}.weave.local"
            router.ask("PUT", name)

        def stop() -> None:
            router.stop()
            router.forget()

        return Server("2.8", size, router.cpu_seconds, stop)

    def knot(self, size: int) -> Server:
        """Knot DNS, authoritative, one worker."""
        zones = {"weave.local": [f"host{number} 1 A {address(number)}" for number in range(size)]}
        zones["10.in-addr.arpa"] = [
            ".".join(reversed(address(number).split(".")[1:])) + f" 1 PTR host{number}.weave.local."
            for number in range(size)
        ]
        own = self.directory / f"knot{size}"
        own.mkdir()
        listed = []
        for zone, records in zones.items():
            soa = "@ 1 SOA ns hostmaster 1 3600 600 86400 1\n@ 1 NS ns\n"
            (own / zone).write_text(f"$ORIGIN {zone}.\n{soa}" + "\n".join(records) + "\n")
            listed.append(f"  - domain: {zone}\n    file: {own / zone}\n")
        server = f"server:\n  listen: 127.0.0.1@53\n  rundir: {own}\n  udp-workers: 1\n  tcp-workers: 1\n"
        (own / "conf").write_text(f"{server}database:\n  storage: {own}\nzone:\n" + "".join(listed))
        process = self.start("knotd", "-c", str(own / "conf"))
        cpu, stop = lambda: process_cpu(process.pid), lambda: self.end(process)
        return Server("knot", size, cpu, stop, ("A", "PTR", "NXDOMAIN"))

    def coredns(self, size: int) -> Server:
        """CoreDNS with its hosts plugin."""
        own = self.directory / f"coredns{size}"
        own.mkdir()
        (own / "hosts").write_text("".join(f"{address(n)} host{n}.weave.local\n" for n in range(size)))
        forward = f"forward . {_UPSTREAM}"
        zones = "weave.local:53 10.in-addr.arpa:53"
        (own / "Corefile").write_text(
            f"{zones} {{\n bind 127.0.0.1\n hosts {own}/hosts\n}}\n.:53 {{\n bind 127.0.0.1\n {forward}\n}}\n"
        )
        process = self.start("coredns", "-conf", str(own / "Corefile"))
        return Server("CoreDNS", size, lambda: process_cpu(process.pid), lambda: self.end(process))

    # --- measuring ---

    def dnsperf(self, file: Path, *flags: str) -> str:
        command = inside(self.host.namespace, "dnsperf", "-s", "127.0.0.1", "-d", str(file), "-c", "8", *flags)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def await_answer(self, server: Server) -> None:
        """Until it knows its last name."""
        file = self.directory / "questions"
        file.write_text(f"host{server.size - 1}.weave.local A\n")
        wait_until(f"{server.name} answers", lambda: "NOERROR 1 " in self.dnsperf(file, "-n", "1", "-t", "1"), 60)

    def measure(self, server: Server, rng: random.Random) -> None:
        """One round of one server."""
        for kind in server.kinds:
            file = self.directory / "questions"
            file.write_text(questions(kind, server.size, rng))
            self.dnsperf(file, "-l", "0.5")
            before = server.cpu()
            output = self.dnsperf(file, "-l", str(self.seconds), "-q", "100")
            used = server.cpu() - before
            completed = int(_found(r"Queries completed:\s+(\d+)", output))
            wrong = "NXDOMAIN" if kind == "NXDOMAIN" else "NOERROR"
            if not completed or f"{wrong} {completed} " not in output:
                raise LabError(f"{server.name} did not answer all {kind} questions with {wrong}:\n{output}")
            figures = server.figures
            figures.setdefault(f"{kind} cpu", []).append(used / completed * 1e6)
            figures.setdefault(f"{kind} qps", []).append(float(_found(r"Queries per second:\s+([\d.]+)", output)))
            slow = self.dnsperf(file, "-l", str(max(1.0, self.seconds / 2)), "-Q", "2000", "-v")
            waits = sorted(float(wait) for wait in re.findall(r"^> \w+ .* ([\d.]+)$", slow, re.MULTILINE))
            if waits:
                figures.setdefault(f"{kind} p99", []).append(waits[len(waits) * 99 // 100] * 1e3)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise LabError(f"dnsperf did not say {pattern}:\n{text}")
    return match[1]


def table(rounds: dict[tuple[str, int], dict[str, list[float]]]) -> Iterator[str]:
    """Lines of what was measured."""
    yield f"{'server':10} {'names':>6}  " + "  ".join(f"{kind + ' us/query  qps  p99 ms':>38}" for kind in _KINDS)
    medians = {key: {what: statistics.median(v) for what, v in figures.items()} for key, figures in rounds.items()}
    for (name, size), figures in medians.items():
        cells = []
        for kind in _KINDS:
            if f"{kind} cpu" not in figures:
                cells.append(" " * 38)
                continue
            cpu = figures[f"{kind} cpu"]
            base = medians.get(("2.8", size), {}).get(f"{kind} cpu")
            ratio = f"({cpu / base:4.2f}x)" if base else ""
            cells.append(f"{cpu:9.1f} {ratio:8} {figures[f'{kind} qps']:9.0f} {figures.get(f'{kind} p99', 0):8.2f}  ")
        yield f"{name:10} {size:6}  " + "  ".join(cells)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="DNS: queries a second and CPU per query")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="how many names there are")
    parser.add_argument("--only", nargs="+", choices=["ours", "2.8", "knot", "coredns"], help="these servers alone")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    require_root()
    if shutil.which("dnsperf") is None:
        raise SystemExit("bench.dns: dnsperf is not installed (Debian: dnsperf)")
    chosen = options.only or ["ours", "2.8", "knot", "coredns"]
    absent = {
        "2.8": "WEAVE_NET_ROUTER" not in os.environ,
        "knot": shutil.which("knotd") is None,
        "coredns": shutil.which("coredns") is None,
    }
    for name in [name for name in chosen if absent.get(name)]:
        print(f"not measured: {name} is not here")
    rng = random.Random(7)
    figures: dict[tuple[str, int], dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as made:
        bench = Bench(Path(made), options.seconds)
        starts = {"ours": bench.ours, "2.8": bench.weave_net, "knot": bench.knot, "coredns": bench.coredns}
        try:
            for number in range(options.rounds):
                bench.directory = Path(made) / str(number)
                bench.directory.mkdir()
                for size in options.sizes:
                    for name in chosen:
                        if absent.get(name):
                            continue
                        server = starts[name](size)
                        try:
                            bench.await_answer(server)
                            server.figures = figures.setdefault((server.name, size), {})
                            bench.measure(server, rng)
                        finally:
                            server.stop()
        finally:
            bench.close()
    for line in table(figures):
        print(line)


if __name__ == "__main__":
    main()
