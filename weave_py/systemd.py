"""What systemd is told of the router, where it asked: ready, stopping, and that it is alive.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import asyncio
import contextlib
import os
import socket

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


def notify(state: str) -> None:
    """Say it, if somebody listens; that nobody hears it is no error."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)


def watchdog_interval() -> float | None:
    """How often a sign of life is due, in seconds: half of what systemd waits. None where it does not wait for any."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(limit) / 2e6 if meant and limit.isdecimal() and int(limit) else None


async def show_life() -> None:
    """Signs of life from the event loop, so that a loop that hangs gives none. Ends at once if none are wanted."""
    interval = watchdog_interval()
    while interval is not None:
        notify(ALIVE)
        await asyncio.sleep(interval)
