"""The demonstration: a mesh of hosts on this machine whose containers get addresses and names, to look at and enter.

script/demo              make it and leave it running
script/demo --watch      the same, and show what the hosts say of themselves, every second
script/demo --down       remove it
script/demo --check      make it, verify it, remove it; the exit code says how it went
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.hosts_table import watch
from lab.net import LabError, Underlay, inside, require_root, run
from lab.router import RANGE, Router, wait_until
from lab.traffic import lookup

PREFIX = "weavedemo"
SERVICE = "web"
_STATE = Path("/run/weave-demo")
_PASSWORD = "demo-password"
_LIMIT = 90.0
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the demonstration: its namespace, its address and its name below the domain."""

    number: int
    namespace: str
    address: str
    name: str


def _say(text: str = "") -> None:
    print(text, flush=True)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def up(count: int) -> tuple[list[Router], list[Container]]:
    """Make the hosts, launch the routers, attach and name the containers, wait for the mesh."""
    down(quiet=True)
    underlay = Underlay(PREFIX)
    _STATE.mkdir(parents=True, exist_ok=True)
    _say(_bold(f"Making {count} hosts as network namespaces"))
    hosts = [underlay.host(number) for number in range(1, count + 1)]
    routers = [Router(host, _STATE / f"h{host.number}", password=_PASSWORD, ipam=RANGE, dns=True) for host in hosts]
    addresses = [host.address for host in hosts]

    def launch(router: Router) -> None:
        others = [address for address in addresses if address != router.host.address]
        router.launch(others, "--ipalloc-init", f"consensus={count}")
        _say(f"  host {router.host.number}: {router.host.address}, router pid {router.pid}")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(launch, routers))
    _await_mesh(routers)
    _say(_bold("Attaching a container to each host"))
    containers = [_container(underlay, router) for router in routers]
    _await_names(routers, containers)
    return routers, containers


def _container(underlay: Underlay, router: Router) -> Container:
    number = router.host.number
    namespace = underlay.container(number)
    made = Container(number, namespace, router.weave("attach", namespace).strip(), f"c{number}")
    router.weave("dns-add", namespace, "-h", f"{made.name}.weave.local")
    router.weave("dns-add", namespace, "-h", f"{SERVICE}.weave.local")
    _say(f"  container {namespace}: {made.address}, {made.name}.weave.local and {SERVICE}.weave.local")
    return made


def _await_mesh(routers: list[Router]) -> None:
    _say(_bold("Waiting for the mesh"))
    expected = len(routers) * (len(routers) - 1)
    _await_count("connections established", expected, lambda: sum(len(router.established()) for router in routers))


def _await_names(routers: list[Router], containers: list[Container]) -> None:
    _say(_bold("Waiting until every host knows every name"))
    expected = len(routers) * len(containers) * 2
    _await_count("names known", expected, lambda: sum(_names(router) for router in routers))


def _names(router: Router) -> int:
    return len(router.get("/status/dns").splitlines())


def _await_count(what: str, expected: int, count: Callable[[], int]) -> None:
    """Wait until there are so many, saying how many there are whenever that changes."""
    begun, shown = time.monotonic(), -1
    while (now := count()) < expected:
        if now != shown:
            _say(f"  {time.monotonic() - begun:4.1f} s: {now} of {expected} {what}")
            shown = now
        if time.monotonic() - begun > _LIMIT:
            raise LabError(f"after {_LIMIT:.0f} s only {now} of {expected} {what}")
        time.sleep(0.2)
    _say(f"  {time.monotonic() - begun:4.1f} s: all {expected} {what}")


def _table(
    title: str, containers: list[Container], headings: list[str], cell: Callable[[Container, int], str]
) -> list[str]:
    """Print a row for each container with a cell for each heading; returns the cells."""
    _say(_bold(title))
    _say("  from \\ to " + "".join(f"{heading:>14}" for heading in headings))
    cells: list[str] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for source in containers:
            row = list(pool.map(lambda place, source=source: cell(source, place), range(len(headings))))
            _say(f"  {source.address:<10}" + "".join(f"{text:>14}" for text in row))
            cells += row
    return cells


def pings(containers: list[Container]) -> bool:
    """Ping between all containers; prints a table, tells whether all answered."""

    def cell(source: Container, place: int) -> str:
        target = containers[place]
        return "-" if target == source else _round_trip(source, target) or "lost"

    headings = [container.address for container in containers]
    return "lost" not in _table("Pings between containers (milliseconds)", containers, headings, cell)


def _round_trip(source: Container, target: Container) -> str:
    """Mean milliseconds of three pings as `ping` prints them; empty where none was answered."""
    command = ("ping", "-c", "3", "-i", "0.2", "-W", "2", target.address)
    output = run(*inside(source.namespace, *command), check=False)
    summary = next((line for line in output.splitlines() if line.startswith("rtt")), "")
    return summary.split("/")[4] if summary else ""


def resolutions(routers: list[Router], containers: list[Container]) -> bool:
    """Resolve every name with `dig` in every container, at its own host; tells whether all was found."""
    servers = {router.host.number: router.name_server() for router in routers}
    names = [*(container.name for container in containers), SERVICE]

    def cell(source: Container, place: int) -> str:
        found = lookup(source.namespace, f"{names[place]}.weave.local", servers[source.number])
        every = sorted(container.address for container in containers)
        if found != (every if names[place] == SERVICE else [containers[place].address]):
            return "wrong" if found else "none"
        return found[0] if len(found) == 1 else f"all {len(found)}"

    cells = _table("Names as `dig` finds them from inside the containers", containers, names, cell)
    return not {"wrong", "none"} & set(cells)


def down(*, quiet: bool = False) -> None:
    """Stop the routers that the demonstration started and remove its namespaces."""
    pids = [int(path.read_text()) for path in _STATE.glob("h*/weaver.pid")]
    ours = [pid for pid in pids if _is_router(pid)]
    for pid in ours:
        os.kill(pid, signal.SIGTERM)
    wait_until("routers stop", lambda: not any(map(_is_router, ours)), 15)
    removed = Underlay(PREFIX).remove()
    for path in sorted(_STATE.rglob("*"), reverse=True) if _STATE.exists() else []:
        path.rmdir() if path.is_dir() else path.unlink()
    if not quiet:
        _say(f"stopped {len(ours)} routers, removed {len(removed)} namespaces")


def _running() -> list[Router]:
    """The routers of the demonstration that runs. Raises LabError where none does."""
    underlay = Underlay(PREFIX)
    numbers = sorted(int(path.parent.name[1:]) for path in _STATE.glob("h*/weaver.pid"))
    if not numbers:
        raise LabError("no demonstration runs here: start one with sudo script/demo")
    return [Router(underlay.host(number), _STATE / f"h{number}") for number in numbers]


def _is_router(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"weave_py" in command and state != "Z"


def _last_words() -> None:
    """What the routers said last: their logs are about to be removed."""
    for log in sorted(_STATE.glob("*/weaver.log")):
        lines = log.read_text(errors="replace").splitlines()
        print("\n".join([f"--- {log}", *lines[-5:]]), file=sys.stderr)


def _farewell(containers: list[Container]) -> None:
    _say(_bold("The mesh is running"))
    enter = f"sudo ip netns exec {PREFIX}"
    programs = Path(sys.executable).parent
    last = containers[-1]
    _say(f"  ask host 1:         {enter}-h1 {programs}/weave status ipam     (or dns, peers, connections)")
    _say(f"  enter host 1:       {enter}-h1 env PATH={programs}:$PATH bash")
    _say(f"  enter a container:  {enter}-c1 bash     (there: ping {last.address})")
    _say("  watch all hosts:    sudo script/demo --watch")
    _say(f"  logs:               {_STATE}/h1/weaver.log")
    _say("  stop and remove:    sudo script/demo --down")


def _show(routers: list[Router], containers: list[Container]) -> bool:
    """What there is to see; tells whether all was well."""
    good = pings(containers)
    good = resolutions(routers, containers) and good
    for part in ("connections", "ipam", "dns"):
        _say(_bold(f"weave status {part}, on host 1"))
        _say(routers[0].weave("status", part))
    return good


def main() -> int:
    """The command line of the demonstration."""
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="how many hosts, 2 to 20 (default 3)")
    parser.add_argument("--watch", action="store_true", help="show what the hosts of the running one say, every second")
    parser.add_argument("--down", action="store_true", help="stop and remove a running demonstration")
    parser.add_argument("--check", action="store_true", help="run, verify, remove; exit code 0 if all was well")
    options = parser.parse_args()
    if not 2 <= options.nodes <= 20:
        parser.error(f"--nodes {options.nodes} is out of range: choose from 2 to 20")
    try:
        require_root()
        if options.down:
            down()
            return 0
        if options.watch:
            watch(_running())
            return 0
        try:
            routers, containers = up(options.nodes)
            good = _show(routers, containers)
        except BaseException:
            if options.check:
                _last_words()
                down(quiet=True)
            raise
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.watch:
            return 0
        print("demo: interrupted; sudo script/demo --down removes what was made", file=sys.stderr)
        return 128 + signal.SIGINT
    if options.check:
        down()
        _say("check passed" if good else "check FAILED: pings were lost or names not found")
        return 0 if good else 1
    _farewell(containers)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
