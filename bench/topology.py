"""A large topology in one router: merging, encoding, collecting and route tables.

    python -m bench.topology                     1,000 peers of degree 50, the size the targets are for
    python -m bench.topology --peers 300 --degree 16

Times are CPU milliseconds of one operation: the median of several, and the fastest. `same run` is the plain way of
doing it in this process on the same data (the general gob decoder; a search over dictionaries), `2.8` is what Weave
Net 2.8 took on a machine of this kind at 1,000 peers of degree 50.
"""

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from random import Random

from mesh.names import PeerName
from mesh.routes import Routes
from mesh.topology import Topology
from mesh.topology_wire import Described, Link, decode_stream, encode_messages, encode_pair, encode_stream

OURSELF = PeerName(1)
CHUNK = 4 << 20
CAP = 10 << 20


def milliseconds(
    work: Callable[[], object], prepare: Callable[[], object] | None = None, rounds: int = 15
) -> list[float]:
    """CPU time of each round; `prepare` runs before a round and is not counted."""
    times = []
    for _ in range(rounds):
        if prepare is not None:
            prepare()
        gc.collect()
        begun = time.process_time()
        work()
        times.append((time.process_time() - begun) * 1e3)
    return times


class Peers:
    """What a mesh of random links would gossip."""

    def __init__(self, count: int, degree: int, rng: Random) -> None:
        self._rng = rng
        # Ourselves are the last of them, with links like everybody's.
        names = [PeerName(0x020000000000 + rng.getrandbits(40)) for _ in range(count)]
        ends: dict[PeerName, dict[PeerName, Link]] = {name: {} for name in (*names, OURSELF)}
        listed = 0
        while listed < count * degree:
            dialler, listener = rng.sample((*names, OURSELF), 2)
            if listener not in ends[dialler]:
                address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
                ends[dialler][listener] = Link(listener, f"{address}:6783", True, True)
                ends[listener][dialler] = Link(dialler, f"{address}:{rng.randrange(32768, 61000)}", False, True)
                listed += 2
        self.ours = ends.pop(OURSELF)
        self.said = {
            name: Described(name, f"host-{number}", rng.getrandbits(64), 20, rng.randrange(4096), True, links)
            for number, (name, links) in enumerate(ends.items())
        }
        self.update = b""
        self._guests: list[tuple[PeerName, PeerName]] = []

    def encode(self) -> None:
        """The whole of it as one update, in an order of its own like every sender's."""
        peers = list(self.said.values())
        self._rng.shuffle(peers)
        self.update = encoded(peers)

    def change_one(self) -> list[Described]:
        """One peer loses a link, which its next version says."""
        name = self._rng.choice([name for name, peer in self.said.items() if peer.links])
        lost = self._rng.choice(list(self.said[name].links))
        return [self._relink(name, {n: link for n, link in self.said[name].links.items() if n != lost})]

    def join(self) -> list[Described]:
        """Somebody new, and the neighbour who lists the newcomer."""
        name = PeerName(0x0A0000000000 + self._rng.getrandbits(40))
        sponsor = self._rng.choice(list(self.said))
        mine, theirs = Link(sponsor, "10.1.2.3:6783", True, True), Link(name, "10.3.2.1:40000", False, True)
        uid, short_id = self._rng.getrandbits(64), self._rng.randrange(4096)
        self._guests.append((sponsor, name))
        newcomer = Described(name, "newcomer", uid, 1, short_id, True, {sponsor: mine})
        return [newcomer, self._relink(sponsor, {**self.said[sponsor].links, name: theirs})]

    def leave(self) -> list[Described]:
        """The neighbour of one who joined lists it no more."""
        sponsor, name = self._guests.pop()
        return [self._relink(sponsor, {n: link for n, link in self.said[sponsor].links.items() if n != name})]

    def _relink(self, name: PeerName, links: dict[PeerName, Link]) -> Described:
        peer = self.said[name]
        self.said[name] = dataclasses.replace(peer, version=peer.version + 1, links=links)
        return self.said[name]


def encoded(peers: list[Described]) -> bytes:
    """An update."""
    return encode_stream(encode_messages(encode_pair(peer)) for peer in peers)


def fresh(peers: Peers) -> Topology:
    """A router that has its links and has heard nothing."""
    made = Topology(OURSELF, "us", 99, rng=Random(1))
    for remote, link in peers.ours.items():
        made.add_link(remote, link.address, link.outbound)
        made.establish_link(remote)
    return made


def search_plainly(made: Topology) -> None:
    """Both unicast tables, the plain way (§10)."""
    entries = {name: entry for name in made.names() if (entry := made.get(name)) is not None}
    for symmetric in (True, False):
        reached = {OURSELF: OURSELF}
        level = [OURSELF]
        while level:
            following = []
            for name in sorted(level):
                for remote, link in entries[name].links.items():
                    if remote in reached or remote not in entries:
                        continue
                    back = entries[remote].links.get(name)
                    if symmetric and not (link.established and back is not None and back.established):
                        continue
                    reached[remote] = remote if name == OURSELF else reached[name]
                    following.append(remote)
            level = following


class Table:
    """Prints one line an operation."""

    def __init__(self, *, reference: bool) -> None:
        self._reference = reference
        print(f"{'':34}{'median':>9}{'fastest':>9}{'target':>9}{'':4}{'same run':>10}{'2.8':>9}")

    def line(
        self,
        what: str,
        times: list[float],
        target: float | None = None,
        plain: float | None = None,
        reference: str = "",
    ) -> None:
        median = statistics.median(times)
        verdict = "" if target is None else " ok" if median < target else " OVER"
        wanted = "" if target is None else f"< {target:g}"
        ratio = "" if plain is None else f"{plain:.1f}"
        known = reference if self._reference else ""
        print(f"{what:34}{median:9.2f}{min(times):9.2f}{wanted:>9}{verdict:5}{ratio:>9}{known:>9}")


def bench_merge(table: Table, peers: Peers) -> Topology:
    peers.encode()
    plain = statistics.median(milliseconds(lambda: decode_stream(peers.update), rounds=3))
    made = fresh(peers)

    def forget() -> None:
        nonlocal made
        made = fresh(peers)

    def change() -> None:
        peers.change_one()
        peers.encode()

    table.line("merge, all new", milliseconds(lambda: made.merge(peers.update), forget, 5), None, plain, "33-68")
    table.line("merge, nothing changed", milliseconds(lambda: made.merge(peers.update)), 2.5, plain, "21-26")
    table.line("merge, one peer changed", milliseconds(lambda: made.merge(peers.update), change), 2.5, plain, "14-22")
    return made


def bench_routes(table: Table, peers: Peers, made: Topology) -> None:
    routes = Routes(made)
    table.line("routes, from nothing", milliseconds(routes.recalculate, rounds=1))
    plain = statistics.median(milliseconds(lambda: search_plainly(made), rounds=5))
    change = milliseconds(routes.recalculate, lambda: made.merge(encoded(peers.change_one())))
    table.line("routes after one change", change, 3, plain, "11-13")
    join = milliseconds(routes.recalculate, lambda: made.merge(encoded(peers.join())))
    table.line("routes after one joined", join, 3, plain, "11-13")

    def leave() -> None:
        made.merge(encoded(peers.leave()))
        assert len(made.collect()) == 1

    table.line("routes after one left", milliseconds(routes.recalculate, leave), 3, plain, "11-13")
    sources = list(peers.said)[:100]

    def all_sources() -> None:
        for source in sources:
            routes.broadcast(source)

    each = [value / len(sources) for value in milliseconds(all_sources, routes.recalculate, rounds=5)]
    table.line("one broadcast source", each)


def bench_sending(table: Table, peers: Peers, made: Topology) -> None:
    def one_changed() -> None:
        made.merge(encoded(peers.change_one()))

    table.line("collect after a change", milliseconds(made.collect, one_changed))
    table.line("collect, nothing happened", milliseconds(made.collect, made.collect))
    chunks: list[bytes] = []
    first = milliseconds(lambda: chunks.extend(made.encode_full(CHUNK)), rounds=1)
    table.line("encode all, first time", first, None, None, "30-34")
    table.line("encode all, again", milliseconds(lambda: list(made.encode_full(CHUNK))), None, None, "30-34")
    sizes = [len(chunk) for chunk in chunks]
    largest = f"the largest {max(sizes) / 1e6:.2f} MB of {CAP / 1e6:.1f} allowed"
    print(f"\n{len(made)} peers in {len(sizes)} frame(s), {largest}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench topology", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--degree", type=int, default=50)
    options = parser.parse_args()
    peers = Peers(options.peers, options.degree, Random(7))
    peers.encode()
    print(f"{options.peers} peers, degree {options.degree}, an update of {len(peers.update) / 1e6:.2f} MB; CPU ms\n")
    table = Table(reference=(options.peers, options.degree) == (1000, 50))
    made = bench_merge(table, peers)
    bench_routes(table, peers, made)
    bench_sending(table, peers, made)


if __name__ == "__main__":
    main()
