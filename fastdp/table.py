"""The kernel's forwarding table: our decisions, written into its maps (`overlay.seams.ForwardingTable`).

What does not change is not written. A peer whose control connection just ended keeps its entries for a while: its
router may only be starting again, and its kernel goes on forwarding meanwhile. The same holds for all that a new
daemon finds in the maps. Source: data plane spec §4.1, §4.5, §6.3.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from fastdp.maps import (
    KEY,
    MAX_HOPS,
    MAX_LINKS,
    NO_ROUTE,
    NO_SHORT,
    Config,
    Kind,
    Route,
    Tree,
    mac_key,
    pack_address,
    unpack_address,
)
from fastdp.wire import vni
from mesh.names import PeerName
from overlay.seams import Forwarder, Topology

GRACE = 30.0
_SWEEP = 1.0
# Whose floods go on to nobody.
_LEAF = Tree((), sleeve=False)


class KernelMap(Protocol):
    """One map of the kernel (`bpf.syscall.Map`)."""

    def get(self, key: bytes) -> bytes | None: ...

    def set(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...

    def all_keys(self) -> list[bytes]: ...


class KernelTable:
    """The maps of one node. `fast(forwarder)` is a fast link's peer and route, None for any other link.

    `wired(forwarder, VNI)` is a link's transmit device for what goes under this identifier, 0 for none; `wires` are the
    indices of all that are there. `clock` is monotonic, in seconds; `later` calls something after so many of them.
    """

    def __init__(
        self,
        maps: Mapping[str, KernelMap],
        topology: Topology,
        fast: Callable[[Forwarder], tuple[PeerName, Route] | None],
        *,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        keep: Callable[[bytes], bool] = lambda hop: True,
        wired: Callable[[Forwarder, int], int] = lambda forwarder, number: 0,
        wires: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._maps = maps
        self._topology = topology
        self._fast = fast
        self._clock = clock
        self._later = later
        self._wired = wired
        self._wires = wires
        self._short: dict[PeerName, int] = {}
        self.owners: dict[int, PeerName] = {}
        self._behind: dict[bytes, PeerName] = {}
        # How many links there are to an address, and where their traffic is counted.
        self._sources: dict[bytes, int] = {}
        self._counters: dict[bytes, int] = {}
        # Addresses of next hops that are still served, and until when.
        self._held: dict[bytes, float] = {}
        self._forgotten: dict[bytes, None] = {}
        self._sweeping = False
        self._hops: Sequence[tuple[PeerName, Forwarder | None]] = ()
        self._adopt(keep)

    def _adopt(self, keep: Callable[[bytes], bool]) -> None:
        """Take what another daemon left for what is still good, but for next hops that are not to be kept."""
        self._config = Config.unpack(self._maps["config"].get(KEY.pack(0)) or bytes(32))
        self._routes: dict[int, Route] = {}
        for short in range(1 << 12):
            value = self._maps["peers"].get(KEY.pack(short))
            if value is not None and any(value):
                route = self._routes[short] = Route.unpack(value)
                if route.kind is Kind.FAST and not keep(route.hop):
                    del self._routes[short]
                    self._maps["peers"].set(KEY.pack(short), NO_ROUTE.pack())
        self._trees = {}
        for key in self._maps["trees"].all_keys():
            value = self._maps["trees"].get(key)
            if value is not None:
                self._trees[KEY.unpack(key)[0]] = Tree.unpack(value)
        # Floods that nobody asked us about: these trees are followed from the first time they are written.
        self._inherited = set(self._trees)
        if self._inherited:
            self._later(GRACE, self._disinherit)
        self._unwire(lambda route: route.wired not in self._wires())
        found = []
        for address in self._maps["sources"].all_keys():
            if keep(address):
                found.append(address)
            else:
                self._maps["sources"].delete(address)
        self._sources = dict.fromkeys(found, 0)
        for address in found:
            number = KEY.unpack(self._maps["sources"].get(address) or KEY.pack(0))[0]
            self._counters[address] = number
            self._hold(address)

    def _disinherit(self) -> None:
        """Forget the trees that another daemon left and nobody keeps up to date: the next such flood asks us."""
        for short in self._inherited:
            self._uproot(short)
        self._inherited.clear()

    def short(self, name: PeerName) -> int | None:
        """The short id by which a peer is addressed; None where it has none of its own."""
        # A peer that was introduced a moment ago is in no table yet.
        known = self._short.get(name)
        return self._topology.short_id(name) if known is None else known

    def serves(self, source: PeerName, hop: PeerName) -> bool:
        """Whether a neighbour gets from the kernel what is flooded of a source."""
        tree, short = self._trees.get(self._short.get(source, NO_SHORT)), self._short.get(hop)
        return tree is not None and short in tree.hops and self._routes.get(short, NO_ROUTE).kind is Kind.FAST

    # --- who may send to us ---

    def admit(self, address: bytes) -> int:
        """Take packets from this host; the number of the counters of its traffic."""
        number = self._sources.get(address)
        self._sources[address] = (number or 0) + 1
        if number is None:
            taken = set(self._counters.values())
            self._counters[address] = next((free for free in range(1, MAX_LINKS) if free not in taken), 0)
            self._maps["sources"].set(address, KEY.pack(self._counters[address]))
        return self._counters[address]

    def leave(self, address: bytes) -> None:
        """A link to this address has ended; its packets are taken for a while still."""
        self._sources[address] -= 1
        if not self._sources[address]:
            self._hold(address)

    def _hold(self, address: bytes) -> None:
        self._held[address] = self._clock() + GRACE
        self._later(GRACE + 0.01, self._expire)

    def _expire(self) -> None:
        now = self._clock()
        over = [address for address, until in self._held.items() if until <= now]
        for address in over:
            del self._held[address]
            if not self._sources[address]:
                del self._sources[address], self._counters[address]
                self._maps["sources"].delete(address)
        if over:
            self._sweep()
            self.routes(self._hops)
            ourself = self._trees.get(self._config.ourself)
            if ourself is not None:
                fast = (hop for hop in ourself.hops if self._routes.get(hop, NO_ROUTE).kind is Kind.FAST)
                self._plant(self._config.ourself, Tree(tuple(fast), ourself.sleeve))

    # --- the table ---

    def start(self, sleeve: int, ctl: int, port: int) -> None:
        """These are the interfaces now."""
        former = self._config.ourself
        ourself = self._topology.short_id(self._topology.ourself)
        self._configure(Config(former if ourself is None else ourself, former, sleeve, ctl, port))

    def moved(self, device: int, index: int) -> None:
        """Another VXLAN device stands in for one that is gone, at once also for what has no link at the moment."""
        for short, route in self._routes.items():
            if route.device == device:
                self._routes[short] = replace(route, device=index)
                self._write_route(short, self._routes[short])

    def rewire(self) -> None:
        """Transmit devices are there that were not, or are gone."""
        present = self._wires()
        self._unwire(lambda route: route.wired not in present)
        self.routes(self._hops)

    def wires_used(self) -> Collection[int]:
        """Indices of the transmit devices that are sent by."""
        return {route.wired for route in self._routes.values()}

    def _unwire(self, which: Callable[[Route], bool]) -> None:
        """These routes have no transmit device any more."""
        for short, route in self._routes.items():
            if route.wired and which(route):
                self._routes[short] = replace(route, wired=0)
                self._write_route(short, self._routes[short])

    def _configure(self, config: Config) -> None:
        if config != self._config:
            self._config = config
            self._maps["config"].set(KEY.pack(0), config.pack())

    def routes(self, hops: Sequence[tuple[PeerName, Forwarder | None]]) -> None:
        self._hops = hops
        self._follow_short_ids([name for name, _ in hops])
        wanted: dict[int, Route] = {}
        for name, forwarder in hops:
            short = self._short.get(name)
            if short is None or name == self._topology.ourself:
                continue
            if forwarder is not None:
                wanted[short] = self._route(name, short, forwarder)
        for short, route in self._routes.items():
            if short not in wanted:
                wanted[short] = route if route.kind is Kind.FAST and route.hop in self._held else NO_ROUTE
        for short, route in wanted.items():
            if route != self._routes.get(short, NO_ROUTE):
                self._write_route(short, route)
        self._routes = {short: route for short, route in wanted.items() if route is not NO_ROUTE}
        for short in [short for short in self._trees if short not in self.owners and short not in self._routes]:
            self._uproot(short)

    def _route(self, name: PeerName, short: int, forwarder: Forwarder) -> Route:
        """How a peer is reached over a link."""
        neighbour = self._fast(forwarder)
        if neighbour is None:
            return Route(Kind.SLEEVE)
        hop, route = neighbour
        if hop == name:
            return replace(route, wired=self._wired(forwarder, vni(self._config.ourself, short)))
        return Route(Kind.SLEEVE) if route.direct else route

    def _follow_short_ids(self, names: Sequence[PeerName]) -> None:
        """Who owns which short id: of several that claim one, the lowest name."""
        owners: dict[int, PeerName] = {}
        for name in sorted(names):
            short = self._topology.short_id(name)
            if short is not None:
                owners.setdefault(short, name)
        self.owners = owners
        before, self._short = self._short, {name: short for short, name in owners.items()}
        ourself = self._short.get(self._topology.ourself)
        if ourself is not None and ourself != self._config.ourself:
            config = self._config
            self._unwire(lambda route: True)  # Their devices send under the former one.
            self._configure(Config(ourself, config.ourself, config.sleeve, config.ctl, config.port))
        # The addresses of a peer that is known no more stay as they are: it may be served for a while still.
        changed = {name for name in names if self._short.get(name) != before.get(name)}
        if changed:
            for mac, name in self._behind.items():
                if name in changed and name != self._topology.ourself:
                    self._write_remote(mac, name)

    def flood(self, source: PeerName, hops: Sequence[Forwarder] | None) -> None:
        short = self._short.get(source)
        if short is None:
            return
        self._inherited.discard(short)
        if hops is None:
            self._uproot(short)
            return
        ours = source == self._topology.ourself
        neighbours = (neighbour for neighbour in map(self._fast, hops) if neighbour is not None)
        fast = [peer for peer, route in neighbours if ours or not route.direct]
        known = [self._short[peer] for peer in fast if peer in self._short]
        if ours and short in self._trees:
            known += [hop for hop in self._served(self._trees[short].hops) if hop not in known]
        self._plant(short, Tree(tuple(known[:MAX_HOPS]), len(known) < len(hops) or len(known) > MAX_HOPS))

    def _served(self, hops: Sequence[int]) -> tuple[int, ...]:
        """Those of these next hops whose links ended a moment ago."""
        held = self._held
        return tuple(hop for hop in hops if hop in self._routes and self._routes[hop].hop in held)

    def _plant(self, short: int, tree: Tree) -> None:
        former = self._trees.get(short)
        if former != tree:
            self._trees[short] = tree
            self._maps["trees"].set(KEY.pack(short), tree.pack())
            self._follow_leaf(short, former)

    def _uproot(self, short: int) -> None:
        former = self._trees.pop(short, None)
        if former is not None:
            self._maps["trees"].delete(KEY.pack(short))
            self._follow_leaf(short, former)

    def _follow_leaf(self, short: int, former: Tree | None) -> None:
        """The tree of a peer changed: its entry says whether there is anybody in it."""
        if short in self._routes and (former == _LEAF) != (self._trees.get(short) == _LEAF):
            self._write_route(short, self._routes[short])

    def _write_route(self, short: int, route: Route) -> None:
        self._maps["peers"].set(KEY.pack(short), route.pack(leaf=self._trees.get(short) == _LEAF))

    # --- addresses ---

    def address(self, mac: bytes, owner: PeerName | None) -> None:
        if owner is None:
            if self._route_to(mac) is None:
                self._remove(mac)
                return
            # A peer is forgotten a moment before its link has ended, which tells whether it is served on.
            self._forgotten[mac] = None
            if not self._sweeping:
                self._sweeping = True
                self._later(_SWEEP, self._sweep)
            return
        self._forgotten.pop(mac, None)
        self._behind[mac] = owner
        if owner == self._topology.ourself:
            self._maps["locals"].set(mac_key(mac), pack_address(self._clock(), NO_SHORT))
            self._maps["remotes"].delete(mac_key(mac))
        else:
            self._write_remote(mac, owner)
            self._maps["locals"].delete(mac_key(mac))

    def _write_remote(self, mac: bytes, owner: PeerName) -> None:
        short = self._short.get(owner, NO_SHORT)
        self._maps["remotes"].set(mac_key(mac), pack_address(self._clock(), short))

    def _remove(self, mac: bytes) -> None:
        self._behind.pop(mac, None)
        for name in ("remotes", "locals"):
            self._maps[name].delete(mac_key(mac))

    def _sweep(self) -> None:
        """Remove what was forgotten and does not lie behind a next hop that is still served."""
        self._sweeping = False
        for mac in list(self._forgotten):
            route = self._route_to(mac)
            if route is None or route.hop not in self._held:
                del self._forgotten[mac]
                self._remove(mac)

    def _route_to(self, mac: bytes) -> Route | None:
        """How the kernel reaches an address by itself."""
        value = self._maps["remotes"].get(mac_key(mac))
        route = None if value is None else self._routes.get(unpack_address(value)[1])
        return route if route is not None and route.kind is Kind.FAST else None

    def seen(self, mac: bytes) -> float:
        for name in ("remotes", "locals"):
            value = self._maps[name].get(mac_key(mac))
            if value is not None:
                return unpack_address(value)[0]
        return 0.0

    # --- looking at it ---

    def shown(self) -> list[tuple[int, PeerName | None, Route]]:
        """(short id, its owner, route) of all peers that frames are carried to."""
        return [(short, self.owners.get(short), route) for short, route in sorted(self._routes.items())]
