"""A control API over a router that is a captured report with targets that can be changed."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

from mesh.tcp import split_peer
from tests.weave_py import captures
from weave_py import http, metrics
from weave_py.report import VersionCheck

LOG = logging.getLogger("test")


class Captured:
    """What the API controls: its report is a capture."""

    def __init__(self, name: str = "3-nodes-ready") -> None:
        self.document = captures.report(name)
        self.document["VersionCheck"] = VersionCheck(self.document["VersionCheck"])
        self.targets: list[str] = list(self.document["Router"]["Targets"] or ())

    def report(self) -> dict[str, Any]:
        return {**self.document, "Router": {**self.document["Router"], "Targets": self.targets or None}}

    async def connect(self, peers: list[str], replace: bool) -> list[str]:
        if replace:
            self.targets.clear()
        errors = []
        for peer in peers:
            problem = split_peer(peer)
            if isinstance(problem, str):
                errors.append(problem)
            elif peer == "nonexistent..name":
                errors.append(f"lookup {peer}: no such host")
            else:
                self.targets.append(peer)
        return errors

    def forget(self, peers: list[str]) -> None:
        self.targets = [target for target in self.targets if target not in peers]

    def metrics(self) -> bytes:
        return metrics.text(self.report, None, None)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def served(control: http.Control, *, read_only: bool = False) -> AsyncIterator[str]:
    """The API over this router; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    runner = await http.listen(http.Api(control, LOG).application(read_only=read_only), address)
    try:
        yield address
    finally:
        await runner.cleanup()


async def raw(address: str, request: bytes) -> bytes:
    """The bytes that answer these bytes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer
