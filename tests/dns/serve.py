"""A name service in a process of its own: `python -m tests.dns.serve`, at 127.0.0.1:53, until it is ended."""

import asyncio
import logging
import random
import time

import uvloop

from dns.service import NameService, NameSettings
from mesh.names import PeerName

NAMES = [("web.weave.local", "10.32.0.1"), ("Db.weave.local", "10.32.0.2"), ("Db.weave.local", "10.32.0.3")]
NAMES += [("six.weave.local", "fd00::6"), ("both.weave.local", "10.32.0.4"), ("both.weave.local", "fd00::4")]
NAMES += [("a.b.weave.local", "10.32.0.5"), *(("many.weave.local", f"10.33.0.{n}") for n in range(1, 121))]


async def serve() -> None:
    service = NameService(
        PeerName(1),
        NameSettings(),
        known=lambda name: True,
        clock=time.time,
        rng=random.Random(),
        journal=None,
        log=logging.getLogger("dns"),
    )
    for name, address in NAMES:
        service.add(name, "c1", address)
    await service.start(("127.0.0.1", 53))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
