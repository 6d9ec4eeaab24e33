"""The core beside plain Python: the same garbage and half-garbage to each, and what comes out must be the same.

    python -m tests.sleeve.differ --seconds 300 --seed 1
    python -m tests.sleeve.differ --core DIR            a core built elsewhere, with sanitizers for example

Three whole nodes (`tests.sleeve.stacks`: plain Python without offloads, the core, plain Python with them) get the same
datagrams of peers and strangers, and frames of the TAP, finished ones or not. Compared: frames on the bridge and at
each neighbour, with their path and in the order of their flow; and the counts. What is drawn depends on the seed alone.
"""

import argparse
import importlib.machinery
import importlib.util
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from mesh.names import PeerName
from sleeve.datagram import frame_header
from tests.sleeve.offload import UDP, Packet, Vnet, cut, ones_complement

if TYPE_CHECKING:
    from tests.sleeve.stacks import Sent, Stack

_EDGES = (0, 1, 2, 13, 14, 15, 20, 33, 34, 54, 59, 60, 64, 255, 256, 1386, 1400, 1414, 1415, 9000, 65463, 65487, 65535)


class Differ:
    """Two nodes and what they are fed with."""

    def __init__(self, seed: int, random: Random | None = None) -> None:
        from tests.sleeve import stacks

        self.stacks = stacks
        self.random = random or Random(seed)
        # Where addresses wander between peers, frames are Python's by turns and overtake each other: one at a time.
        self.calm = seed % 2 == 0
        passing = self.random.random() < 0.7
        self.plain = stacks.Stack("python", fragments_pass=passing)
        self.core = stacks.Stack("native", fragments_pass=passing)
        self.joining = stacks.Stack("python", fragments_pass=passing, offloads=True)
        self.macs = [stacks.LOCAL, stacks.LOCAL2, stacks.REMOTE, stacks.FAR, stacks.STRANGER, b"\xff" * 6]
        self.macs += [bytes(6), b"\x01\x80\xc2\0\0\0", b"\x33\x33\0\0\0\1"]
        self.kept: list[tuple[int, bytes]] = []

    def close(self) -> None:
        for stack in self.all():
            stack.close()

    def all(self) -> tuple["Stack", "Stack", "Stack"]:
        return self.plain, self.core, self.joining

    # --- what is drawn ---

    def mac(self, *likely: bytes) -> bytes:
        return self.random.choice(likely if self.calm or self.random.random() < 0.8 else self.macs)

    def size(self) -> int:
        draw = self.random.random()
        if draw < 0.2:
            return self.random.choice(_EDGES)
        return self.random.randrange(1500 if draw < 0.9 else 20000)

    def packet(self, destination: bytes, source: bytes, payload: int) -> Packet:
        random = self.random
        return Packet(
            destination,
            source,
            random.randbytes(payload),
            v6=random.random() < 0.3,
            udp=random.random() < 0.4,
            ident=random.choice((0, 5, 65535)),
            df=random.random() < 0.8,
            sequence=random.choice((0, 1000, 0xFFFFFF00)),
            flags=random.choice((0x10, 0x18, 0x11, 0x02, 0x50, 0x90, 0x30)),
            options=random.choice((b"", b"", b"\1\1\x08\x0a" + bytes(8), b"\1" * 40)),
            ports=(random.choice((1000, 1001)), 2000),
            tos=random.choice((0, 0, 3)),
            vlan=random.choice((b"", b"", b"", b"\x81\0\0\7")),
        )

    def frame(self, destination: bytes, source: bytes) -> bytes:
        """Any frame, mostly a sound one."""
        random = self.random
        draw = random.random()
        if draw < 0.1:
            return random.randbytes(self.size() % 1600)
        if draw < 0.15:
            return bytes(random.choice((14, 22, 100, 1414)))
        if draw < 0.2:
            return (b"\xff" * 6 + source + b"\x08\x06").ljust(60, b"\0")
        made = bytearray(self.packet(destination, source, self.size() % 9000).octets())
        if random.random() < 0.15:
            for _ in range(random.randrange(1, 4)):
                made[random.randrange(14 if self.calm else 0, len(made))] ^= 1 << random.randrange(8)
        if random.random() < 0.05:
            made += bytes(random.randrange(1, 30))
        if random.random() < 0.05:
            del made[random.randrange(len(made)) :]
        return bytes(made)

    def stream(self, destination: bytes, source: bytes) -> list[bytes]:
        """Frames of one flow, as a bulk transfer has them, with now and then one that is different."""
        random = self.random
        first = self.packet(destination, source, 0)
        size = random.choice((1, 64, 500, 1300))
        frames, sequence, ident = [], first.sequence, first.ident
        for number in range(random.randrange(2, 12)):
            changed: dict[str, object] = {"sequence": sequence & 0xFFFFFFFF, "ident": ident & 0xFFFF}
            length = size
            if random.random() < 0.15:
                changed |= random.choice(
                    ({"flags": 0x18}, {"flags": 0x11}, {"window": 7}, {"acknowledged": 9}, {"tos": 9}, {"sequence": 7},
                     {"ident": 77}, {"df": not first.df}, {"options": b"\1\1\1\1"}, {"ports": (7, 8)})
                )  # fmt: skip
            elif random.random() < 0.15:
                length = random.randrange(0, 2 * size)
            fields = {name: getattr(first, name) for name in first.__slots__}
            made = bytearray(Packet(**{**fields, "payload": bytes((number,)) * length, **changed}).octets())
            if first.udp and random.random() < 0.1:
                made[first.l4 + 6 : first.l4 + 8] = b"\0\0"
            if random.random() < 0.05:
                made[-1] ^= 1
            frames.append(bytes(made))
            sequence += length
            ident += random.choice((1, 1, 1, 1, 0))
        return frames

    # --- what is done ---

    def datagrams(self) -> None:
        """Datagrams of a neighbour, some of them damaged, repeated or a stranger's."""
        random, stacks = self.random, self.stacks
        peer = random.choice(list(stacks.NEIGHBOURS))
        for _ in range(random.randrange(1, 4) if self.calm else 1):
            body = b""
            while random.random() < 0.7 and len(body) < (30000 if self.calm else 1):
                source = random.choice((2, 4) if self.calm else (2, 2, 3, 4, 4, 5, 9, 1))
                to = random.choice((1, 1, 1, 1, 2, 3, 5, 9))
                mac = {2: stacks.REMOTE, 4: stacks.FAR}.get(source, stacks.STRANGER)
                destination, sender = self.mac(stacks.LOCAL, stacks.LOCAL2, b"\xff" * 6), self.mac(mac)
                draw = random.random()
                made = self.stream(destination, sender) if draw < 0.5 else [self.frame(destination, sender)]
                for frame in made:
                    body += frame_header(PeerName(source), PeerName(to), len(frame)) + frame
            if random.random() < 0.05:
                body += random.randbytes(random.randrange(20))
            self._deliver(peer, body[:60000])

    def _deliver(self, peer: int, body: bytes) -> None:
        random = self.random
        df = random.random() < 0.5
        datagram = b""
        for stack in self.all():
            datagram = stack.ears[peer].session.seal(body, df)
        draw = random.random()
        if draw < 0.1 and not (self.calm and self.stacks.NEIGHBOURS[peer] is None):
            # Nobody sees that a plain one was damaged: its frames may come from elsewhere then.
            damaged = bytearray(datagram)
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
            datagram = bytes(damaged)
        elif draw < 0.15:
            datagram = datagram[: random.randrange(len(datagram) + 1)]
        elif draw < 0.2 and any(of == peer for of, _ in self.kept):
            datagram = random.choice([kept for of, kept in self.kept if of == peer])
        elif draw < 0.25:
            self.kept = [*self.kept[-20:], (peer, datagram)]
        for stack in self.all():
            stack.ears[peer].send_raw(datagram)

    def captures(self) -> None:
        """Frames from the bridge: to the plain node as the kernel finishes them, to the core as it hands them over."""
        random, stacks = self.random, self.stacks
        for _ in range(random.randrange(1, 6)):
            destination = self.mac(stacks.REMOTE, stacks.FAR, b"\xff" * 6)
            source = self.mac(stacks.LOCAL, stacks.LOCAL2)
            if random.random() < 0.5:
                frame = self.frame(destination, source)
                self._capture(Vnet(), frame)
                continue
            packet = self.packet(destination, source, random.randrange(1, 20000))
            fields = {name: getattr(packet, name) for name in packet.__slots__}
            packet = Packet(**{**fields, "checksum": False})
            gso = random.choice((0, 1300, 1346, 1388, 1400, 4000))
            if gso and len(packet.payload) // gso > 60:
                gso = 0
            raw = packet.unfinished(gso)
            self._capture(Vnet.read(raw), raw[Vnet.SIZE :])

    def _capture(self, head: Vnet, frame: bytes) -> None:
        for stack in (self.core, self.joining):
            if stack is self.core or head.gso_type != UDP:
                stack.tap.send(head.octets() + frame)
            else:
                # Plain Python asks the kernel for no such frames.
                for piece in cut(head, frame):
                    stack.tap.send(Vnet().octets() + piece)
            # At most so much is read at a time.
            if stack is self.joining or not self.calm:
                stack.settle()
        for piece in cut(head, frame):
            self.plain.tap.send(Vnet().octets() + piece)
            self.plain.settle()

    def step(self) -> None:
        """One round. Raises AssertionError where the nodes differ."""
        if self.random.random() < 0.6:
            self.datagrams()
        else:
            self.captures()
        for stack in self.all():
            stack.settle()
        plain, core, joining = ([_settled(frame) for frame in stack.injected()] for stack in self.all())
        sent, core_sent, joining_sent = (stack.heard() for stack in self.all())
        self._same("core", self.core, core, plain, core_sent, sent)
        self._same("joining", self.joining, joining, plain, joining_sent, sent)

    def _same(
        self,
        who: str,
        stack: "Stack",
        bridge: list[bytes],
        plain: list[bytes],
        sent: "list[Sent]",
        expected: "list[Sent]",
    ) -> None:
        assert Counter(bridge) == Counter(plain), _difference(f"{who}, bridge", bridge, plain)
        assert _by_flow(bridge) == _by_flow(plain), f"{who}: the order of a flow on the bridge"
        assert Counter(sent) == Counter(expected), _difference(f"{who}, neighbours", sent, expected)
        assert stack.counts == self.plain.counts, (who, stack.counts, self.plain.counts)
        for mac, owner, _ in self.plain.router.macs.rows():
            assert stack.router.macs.owner(mac) == owner, f"{who}: {mac.hex(':')}"
        assert len(stack.router.macs) == len(self.plain.router.macs)

    def junk(self) -> None:
        """Virtio-net headers that no kernel writes: they must cost nothing but themselves."""
        random = self.random
        kinds, numbers = [random.choice((0, 1, 5, 0x80, 0x84)) for _ in "12"], [random.choice(_EDGES) for _ in "1234"]
        head = Vnet(*kinds, *numbers)
        frame = head.octets()[: random.choice((3, 10, 10, 10))] + self.frame(self.macs[2], self.macs[0])
        for stack in (self.core, self.joining):
            stack.tap.send(frame)
            stack.settle()
            stack.injected()
            stack.heard()


def _settled(frame: bytes) -> bytes:
    """A frame without what merging may change: the identification of a packet that is never fragmented (RFC 6864)."""
    if frame[12:15] != b"\x08\0\x45" or frame[20:22] != b"\x40\0" or ones_complement(frame[14:34]) != 0xFFFF:
        return frame
    return frame[:18] + bytes(2) + frame[20:24] + bytes(2) + frame[26:]


def _by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    """Frames by Ethernet header and, where they are IP's, protocol, addresses and what follows: ports, mostly."""
    flows: dict[bytes, list[bytes]] = defaultdict(list)
    for frame in frames:
        if len(frame) > 1414:
            # Where it is to be flooded further, Python must say how: it may be late.
            continue
        key = {b"\x08\0": frame[23:24] + frame[26:38], b"\x86\xdd": frame[20:21] + frame[22:58]}.get(frame[12:14], b"")
        flows[frame[:14] + key].append(frame)
    return flows


def _difference(where: str, core: Sequence[Hashable], plain: Sequence[Hashable]) -> str:
    more, less = Counter(core) - Counter(plain), Counter(plain) - Counter(core)
    shown = [repr(item)[:300] for found in (more, less) for item in list(found)[:1]]
    return f"{where}: {sum(more.values())} more, {sum(less.values())} less than plain Python: {shown}"


def load_core(directory: str) -> None:
    """Use the core of this directory instead of the installed one."""
    path = next(Path(directory).glob("sleeve/_sleeve*.so"))
    loader = importlib.machinery.ExtensionFileLoader("sleeve._sleeve", str(path))
    spec = importlib.util.spec_from_file_location("sleeve._sleeve", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["sleeve._sleeve"] = module


def run(seed: int, steps: int) -> None:
    """So many rounds on two fresh nodes."""
    differ = Differ(seed)
    try:
        for number in range(steps):
            try:
                differ.step()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, step {number}: {error}") from error
        # Last: these change what the core counts.
        for _ in range(steps // 4):
            differ.junk()
    finally:
        differ.close()


def main() -> None:
    """Seeds one after another, for as long as said."""
    parser = argparse.ArgumentParser(prog="tests.sleeve.differ")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--core", default="")
    options = parser.parse_args()
    if options.core:
        load_core(options.core)
    begun, seed = time.monotonic(), options.seed
    while time.monotonic() - begun < options.seconds:
        run(seed, options.steps)
        seed += 1
    print(f"{seed - options.seed} seeds of {options.steps} rounds: no difference")


if __name__ == "__main__":
    main()
