"""What the overlay's tests put around it: data paths that do as told, and whole meshes joined in memory."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from mesh.names import PeerName
from mesh.seams import AttrValue, ConnectionParams
from overlay.forwarding import FrameRouter
from overlay.seams import Forwarder, ForwarderEvents
from tests.vectors import ROOT

LOG = logging.getLogger("test")


def document(file: str) -> dict[str, Any]:
    """A vector file that is not a plain list."""
    return dict(json.loads((ROOT / "overlay" / file).read_text()))


def mac(number: int) -> bytes:
    """A unicast address."""
    return b"\2\0\0\0\0" + bytes((number,))


BROADCAST = b"\xff" * 6


def arp(source: bytes) -> bytes:
    """A broadcast frame from an address."""
    return BROADCAST + source + b"\x08\x06" + bytes(28)


def ip(destination: bytes, source: bytes) -> bytes:
    """A unicast frame."""
    return destination + source + b"\x08\x00" + bytes(40)


class FakePath:
    """A data path, and its only forwarder, that does what the test says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: ForwarderEvents | None = None
        self.calls: list[tuple[Any, ...]] = []

    def prepare(self, params: ConnectionParams, events: ForwarderEvents) -> Forwarder:
        self.events = events
        return self

    def confirm(self) -> None:
        self.calls.append(("confirm",))

    def control_message(self, tag: int, payload: bytes) -> None:
        self.calls.append(("control", tag, payload))

    def stop(self) -> None:
        self.calls.append(("stop",))

    def accepts(self, source: PeerName, destination: PeerName) -> bool:
        return not (self.name == "fastdp" and source == 99)

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        self.calls.append(("send", frame))

    def attrs(self) -> Mapping[str, AttrValue]:
        return {"name": self.name}

    @property
    def in_kernel(self) -> bool:
        return self.name == "fastdp"

    @property
    def reason(self) -> str:
        return "silence"

    def diagnostics(self) -> object:
        return None


class Recorder:
    """The mesh's ear."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def established(self) -> None:
        self.heard.append("established")

    def failed(self, error: Exception) -> None:
        self.heard.append(str(error))

    def send_control(self, tag: int, payload: bytes) -> None:
        self.heard.append((tag, payload))


def params(features: dict[str, str]) -> ConnectionParams:
    """A connection to peer 2."""
    return ConnectionParams(PeerName(2), "two", 5, None, ("10.0.0.1", 1), ("10.0.0.2", 6783), True, features)


class World:
    """Frame routers joined by links in memory; floods follow trees that the test computes."""

    def __init__(self, links: dict[int, set[int]]) -> None:
        self.links = links
        self.now = 0.0
        self.delivered: list[tuple[int, bytes]] = []
        self.carried = 0
        self.routers = {
            name: FrameRouter(
                View(self, name),
                Tap(self, name),
                lambda hop, name=name: Wire(self, hop) if hop in self.links[name] else None,  # type: ignore[misc]
                clock=lambda: self.now,
                log=LOG,
            )
            for name in links
        }

    def captured(self, name: int, frame: bytes) -> list[int]:
        """Let a frame come from a peer's bridge; returns on whose bridges it was put, in order of names."""
        self.delivered.clear()
        self.carried = 0
        self.routers[name].captured(frame)
        assert all(delivered == frame for _, delivered in self.delivered), "frames travel unchanged"
        return sorted(to for to, _ in self.delivered)

    def tree(self, source: int) -> tuple[dict[int, int], dict[int, set[int]]]:
        """The tree of a source, breadth first: parents of whoever is reached, and children."""
        children: dict[int, set[int]] = {name: set() for name in self.links}
        parent: dict[int, int] = {source: 0}
        level = [source]
        while level:
            following = []
            for peer in sorted(level):
                for remote in sorted(self.links[peer]):
                    if remote not in parent:
                        parent[remote] = peer
                        children[peer].add(remote)
                        following.append(remote)
            level = following
        return parent, children


class View:
    """The topology, as one peer of a world sees it."""

    def __init__(self, world: World, name: int) -> None:
        self._world = world
        self.ourself = PeerName(name)

    def knows(self, name: PeerName) -> bool:
        return name in self._world.links

    def names(self) -> list[PeerName]:
        return [PeerName(name) for name in self._world.links]

    def unicast(self, destination: PeerName) -> PeerName | None:
        parent, _ = self._world.tree(self.ourself)
        hop = destination
        while parent.get(hop, 0) not in (0, self.ourself):
            hop = PeerName(parent[hop])
        return hop if destination in parent else None

    def broadcast(self, source: PeerName) -> list[PeerName]:
        _, children = self._world.tree(source)
        return [PeerName(name) for name in sorted(children[self.ourself])]

    def nickname(self, name: PeerName) -> str:
        return ""

    def short_id(self, name: PeerName) -> int | None:
        return None


class Tap:
    """The bridge of one peer of a world."""

    def __init__(self, world: World, name: int) -> None:
        self._world = world
        self._name = name

    def inject(self, frame: bytes) -> None:
        self._world.delivered.append((self._name, frame))


class Wire:
    """A link: what goes in comes out at once. A loop would never end, so it is counted."""

    def __init__(self, world: World, to: int) -> None:
        self._world = world
        self._to = to

    def send(self, source: PeerName, destination: PeerName, frame: bytes, broadcast: bool) -> None:
        self._world.carried += 1
        assert self._world.carried <= 2 * len(self._world.links) ** 2, "a frame goes in circles"
        self._world.routers[self._to].received(source, destination, frame)
