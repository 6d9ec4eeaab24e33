"""The demonstration: a mesh of hosts on this machine, carrying pings between containers, to look at and to enter.

script/demo              make it and leave it running
script/demo --down       remove it
script/demo --check      make it, verify it, remove it; the exit code says how it went
"""

import argparse
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.net import LabError, Underlay, inside, require_root, run
from lab.router import Router, wait_until, weave

PREFIX = "weavedemo"
_STATE = Path("/run/weave-demo")
_PASSWORD = "demo-password"
_LIMIT = 60.0


def _say(text: str = "") -> None:
    print(text, flush=True)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def _container_address(number: int) -> str:
    return f"10.32.0.{number}"


def up(count: int) -> list[Router]:
    """Make the hosts, start the routers, attach the containers, wait for the mesh."""
    down(quiet=True)
    underlay = Underlay(PREFIX)
    _STATE.mkdir(parents=True, exist_ok=True)
    _say(_bold(f"Making {count} hosts as network namespaces"))
    routers = []
    for number in range(1, count + 1):
        host = underlay.host(number)
        router = Router(host, _STATE / f"h{number}", password=_PASSWORD)
        router.start([f"10.99.0.{other}" for other in range(1, number)])
        routers.append(router)
        # At once, so that whatever interrupts this leaves nothing that --down does not find.
        (_STATE / "pids").write_text(json.dumps([router.pid for router in routers]))
        _say(f"  host {number}: {host.address}, router pid {router.pid}")
    for router in routers:
        wait_until(f"router of host {router.host.number} answers", router.answers, _LIMIT)
        number = router.host.number
        container = underlay.container(number)
        weave(router.host, "attach", f"{_container_address(number)}/12", container)
        _say(f"  container {container}: {_container_address(number)}")
    _await_mesh(routers)
    return routers


def _await_mesh(routers: list[Router]) -> None:
    _say(_bold("Waiting for the mesh"))
    begun = time.monotonic()
    expected = len(routers) * (len(routers) - 1)
    shown = -1
    while True:
        established = sum(len(router.established()) for router in routers)
        if established != shown:
            _say(f"  {time.monotonic() - begun:4.1f} s: {established} of {expected} connections established")
            shown = established
        if established >= expected:
            return
        if time.monotonic() - begun > _LIMIT:
            raise LabError(f"after {_LIMIT:.0f} s only {established} of {expected} connections are established")
        time.sleep(0.2)


def pings(count: int) -> bool:
    """Ping between all containers; prints a table, tells whether all answered."""
    _say(_bold("Pings between containers (milliseconds)"))
    _say("  from \\ to " + "".join(f"{_container_address(number):>12}" for number in range(1, count + 1)))
    numbers = range(1, count + 1)
    good = True
    with ThreadPoolExecutor(max_workers=4) as pool:
        for source in numbers:
            means = pool.map(lambda target, source=source: _round_trip(source, target), numbers)
            cells = ["-" if target == source else mean or "lost" for target, mean in zip(numbers, means, strict=True)]
            good = good and "lost" not in cells
            _say(f"  {_container_address(source):<10}" + "".join(f"{cell:>12}" for cell in cells))
    return good


def _round_trip(source: int, target: int) -> str:
    """Mean milliseconds of three pings as `ping` prints them; empty where none was answered, or for oneself."""
    if source == target:
        return ""
    command = ("ping", "-c", "3", "-i", "0.2", "-W", "2", _container_address(target))
    output = run(*inside(f"{PREFIX}-c{source}", *command), check=False)
    summary = next((line for line in output.splitlines() if line.startswith("rtt")), "")
    return summary.split("/")[4] if summary else ""


def down(*, quiet: bool = False) -> None:
    """Stop the routers that the demonstration started and remove its namespaces."""
    try:
        pids = json.loads((_STATE / "pids").read_text())
    except (OSError, ValueError):
        pids = []
    ours = [pid for pid in pids if _is_router(pid)]
    for pid in ours:
        os.kill(pid, signal.SIGTERM)
    wait_until("routers stop", lambda: not any(map(_is_router, ours)), 15)
    removed = Underlay(PREFIX).remove()
    for path in sorted(_STATE.rglob("*"), reverse=True) if _STATE.exists() else []:
        path.rmdir() if path.is_dir() else path.unlink()
    if not quiet:
        _say(f"stopped {len(ours)} routers, removed {len(removed)} namespaces")


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


def _farewell(count: int) -> None:
    _say(_bold("The mesh is running"))
    enter = f"sudo ip netns exec {PREFIX}"
    programs = Path(sys.executable).parent
    _say(f"  ask host 1:         {enter}-h1 {programs}/weave status peers")
    _say(f"  enter host 1:       {enter}-h1 env PATH={programs}:$PATH bash")
    _say(f"  enter a container:  {enter}-c1 bash     (there: ping {_container_address(count)})")
    _say(f"  logs:               {_STATE}/h1/weaver.log")
    _say("  stop and remove:    sudo script/demo --down")


def main() -> int:
    """The command line of the demonstration."""
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="how many hosts, 2 to 20 (default 3)")
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
        try:
            routers = up(options.nodes)
            good = pings(options.nodes)
            _say(_bold("weave status connections, on host 1"))
            _say(weave(routers[0].host, "status", "connections"))
        except BaseException:
            if options.check:
                _last_words()
                down(quiet=True)
            raise
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; sudo script/demo --down removes what was made", file=sys.stderr)
        return 128 + signal.SIGINT
    if options.check:
        down()
        _say("check passed" if good else "check FAILED: pings were lost")
        return 0 if good else 1
    _farewell(options.nodes)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
