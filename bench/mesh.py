"""The control plane at size: many full routers in one process, and large topologies in one router.

    python -m bench.mesh                     all of it, N = 20, 50, 100, 200
    python -m bench.mesh --nodes 200         one size
    python -m bench.mesh --degree 16 --nodes 1000

Routers run on virtual time over streams in memory, so CPU seconds are those of the routers and of the simulated
streams, and nothing waits. Nodes are each given the first one and find the others. Reference figures beside them are
those of Weave Net 2.8's mesh library in one process on two cores: N = 20 in 1.3 to 1.7 CPU seconds, N = 50 in 18,
N = 100 not within 180.
"""

import argparse
import gc
import resource
import time
from collections.abc import Callable

from mesh.names import PeerName
from tests.mesh.sim import Network

REFERENCE = {20: "1.3-1.7", 50: "18", 100: "> 180"}


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds that some work takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def megabytes() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(count: int, degree: int | None, password: bool) -> None:
    """One mesh through its life; prints a block of figures."""
    before = megabytes()
    network = Network(11)
    if degree is None:
        # Every router decodes for itself, as it would alone.
        network.cache = None
    options: dict[str, object] = {"mesh_degree": degree, "conn_limit": 0}
    if password:
        options["passwords"] = (b"bench",)
    agreed = True

    def form() -> None:
        nonlocal agreed
        nodes = [network.add(number, **options) for number in range(1, count + 1)]
        for node in nodes[1:]:
            node.connect(nodes[:1])
        agreed = network.clock.run(120, network.agree, check=1.0)

    formed = cpu(form)
    at = network.clock.now()
    settled = cpu(lambda: network.clock.run(20))
    sent = network.bytes
    idle = cpu(lambda: network.clock.run(60))
    idle_bytes = network.bytes - sent
    links = sum(len(node.router.connections) for node in network.nodes.values()) // 2
    sent = network.bytes
    one = network.nodes[count // 2]
    victim = next(iter(one.router.connections.values()))
    start = network.clock.now()

    def flap() -> None:
        victim.close(Exception("flap"))
        network.clock.run(1.5)
        network.clock.run(30, network.agree)

    flapped = cpu(flap)
    healed = network.clock.now() - start
    gc.collect()
    name = f"N = {count}" + (f", degree {degree}" if degree else "") + (", sealed" if password else "")
    print(f"{name}: {links} links, {'agreed' if agreed else 'NOT AGREED'} after {at:.1f} virtual s")
    reference = REFERENCE.get(count, "-") if degree is None else "-"
    print(f"  start to agreement    {formed:8.2f} CPU s   (2.8: {reference})")
    print(f"  settling, 20 s        {settled:8.2f} CPU s")
    print(f"  idle minute           {idle:8.2f} CPU s   {idle_bytes / count / 1e3:8.1f} kB a router")
    print(f"  one link flap         {flapped:8.2f} CPU s   agreed again after {healed:.1f} virtual s")
    print(f"  memory                {(megabytes() - before) / count:8.2f} MB a router (peak, simulation included)")


def disturb(count: int, degree: int) -> None:
    """With a bounded degree: how fast one newcomer, and then the death of a tenth, is known everywhere."""
    network = Network(5)
    nodes = [network.add(number, mesh_degree=degree, conn_limit=0) for number in range(1, count + 1)]
    for before, node in enumerate(nodes[1:], 1):
        node.connect([network.rng.choice(nodes[: min(before, 64)])])
    formed = cpu(lambda: network.clock.run(300, network.agree, check=2.0))
    degrees = sorted(len(node.router.connections) for node in nodes)
    print(f"{count} peers, degree {degree}: formed after {network.clock.now():.0f} virtual s, {formed:.0f} CPU s")
    print(f"  degrees {degrees[0]} to {degrees[-1]}, median {degrees[count // 2]}")
    network.clock.run(40)
    start = network.clock.now()
    newcomer = network.add(count + 1, mesh_degree=degree, conn_limit=0)
    newcomer.connect(nodes[:1])
    known = network.clock.run(
        60, lambda: all(n.router.topology.describes(PeerName(count + 1)) for n in network.nodes.values()), check=0.1
    )
    print(f"  a newcomer is known everywhere after {network.clock.now() - start:.1f} virtual s ({known})")
    agreed = network.clock.run(60, network.agree, check=0.25)
    print(f"  all agree after {network.clock.now() - start:.1f} virtual s ({agreed})")
    network.clock.run(40)
    start = network.clock.now()
    for number in network.rng.sample(sorted(network.nodes), count // 10):
        network.nodes[number].die()
    agreed = network.clock.run(120, network.agree, check=0.25)
    print(f"  after {count // 10} died at once all agree after {network.clock.now() - start:.1f} virtual s ({agreed})")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench mesh", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, action="append", help="a number of routers (repeatable)")
    parser.add_argument("--degree", type=int, help="bound the number of neighbours, disturb the mesh")
    parser.add_argument("--password", action="store_true", help="seal the control connections")
    options = parser.parse_args()
    for count in options.nodes or [20, 50, 100, 200]:
        if options.degree:
            disturb(count, options.degree)
        else:
            run(count, None, options.password)


if __name__ == "__main__":
    main()
