"""One idle router: how soon it answers, and what it holds.

    python -m bench.start

Time is from the start of the process to the first answer of the control API, which opens last.
"""

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

from lab.net import LabError, Underlay, require_root
from lab.router import Router, socket_in

ROUNDS = 5
LIMIT = 20.0


def first_answer(router: Router) -> float:
    """Seconds until the router answers; it is asked every few milliseconds over sockets made beforehand."""
    waiting = [socket_in(router.host.namespace) for _ in range(3)]
    begun = time.monotonic()
    router.start([])
    while time.monotonic() - begun < LIMIT:
        sock = waiting.pop() if waiting else socket_in(router.host.namespace)
        with sock:
            if sock.connect_ex(("127.0.0.1", 6784)) == 0:
                sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
                if sock.recv(64, socket.MSG_WAITALL).startswith(b"HTTP/1"):
                    return time.monotonic() - begun
        time.sleep(0.05)
    raise LabError(f"no answer within {LIMIT:.0f} s")


def main() -> None:
    """The command line."""
    require_root()
    underlay = Underlay(f"wt{os.getpid()}")
    answers, resident, cpu = [], [], []
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as directory:
        try:
            for number in range(ROUNDS):
                router = Router(underlay.host(1), Path(directory) / str(number))
                try:
                    answers.append(first_answer(router))
                    time.sleep(2)
                    resident.append(router.resident_bytes() / 1e6)
                    cpu.append(router.cpu_seconds())
                finally:
                    router.stop()
        finally:
            underlay.remove()
    print(f"first answer      {statistics.median(answers):6.2f} s   (slowest {max(answers):.2f}; target 0.70)")
    print(f"resident          {statistics.median(resident):6.1f} MB  (target 60; 2.8: 50)")
    print(f"CPU of a start    {statistics.median(cpu):6.2f} s")


if __name__ == "__main__":
    main()
