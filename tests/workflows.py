"""What operators do with a mesh, step by step, whoever's routers are in it.

Each workflow is given a cluster that knows which hosts run a foreign router. Source: CLI spec §12, whose numbers the
functions bear; IPAM spec §10 to §13, DNS spec §6.
"""

import re
from functools import partial

from lab.net import LabError
from lab.router import RANGE, Router, peer_name, wait_until
from lab.traffic import lookup, ping
from tests.clusters import Attached, Cluster, mesh_links
from tests.rings import (
    GOSSIP,
    await_each,
    await_gone,
    await_names,
    await_one_ring,
    await_ready,
    connection_rows,
    everything_owned,
    ipam_status,
    meanwhile,
    no_address_twice,
    owners,
    ring,
)

SIZE = 1 << 20
assert RANGE.endswith("/12")


def attach_everywhere(made: Cluster) -> dict[int, Attached]:
    """A container with an automatic address on every host; no address is given twice."""
    attached = {number: made.attach(number) for number in made.routers}
    addresses = [one.address for one in attached.values()]
    assert len(set(addresses)) == len(addresses)
    no_address_twice(made)
    return attached


def everybody_pings(made: Cluster, attached: dict[int, Attached]) -> None:
    """Every container reaches every other."""
    made.await_routes(GOSSIP)
    for one, source in attached.items():
        for other, target in attached.items():
            if one != other:
                reach = partial(ping, source.namespace, target.address, count=1)
                wait_until(f"container {one} reaches {other}", reach, 20)


def w01_interactive(made: Cluster, count: int) -> None:
    for number in range(1, count + 1):
        made.start(number, range(1, number))
        made.routers[number].prime()
        assert ipam_status(made.routers[number]) == "ready"
    made.await_links(mesh_links(count))
    await_one_ring(made)
    everybody_pings(made, attach_everywhere(made))
    await_one_ring(made)
    await_ready(made)


def w02_uniform_fixed(made: Cluster, count: int) -> None:
    everybody = range(1, count + 1)
    quorum = count // 2 + 1
    early = [number for number in everybody if number < quorum]
    for number in early:
        made.start(number, everybody)
    await_each(made, "they know themselves", _calls_itself, among=early)
    waiting = meanwhile(made.routers[1].prime)
    expected = f"awaiting consensus (quorum: {quorum}, known: {len(early)})"
    wait_until(f"host 1 is {expected}", lambda: ipam_status(made.routers[1]) == expected, GOSSIP)
    for number in everybody[quorum - 1 :]:
        made.start(number, everybody)
    waiting.result(GOSSIP)
    made.await_links(mesh_links(count))
    await_each(made, "they know themselves", _calls_itself)
    for number in everybody:
        made.routers[number].prime()
        text = made.routers[number].get("/status/connections")
        assert text.count("cannot connect to ourself") == 1
        assert len(made.routers[number].report()["Router"]["Peers"]) == count
    await_one_ring(made)
    # Whoever was there when the quorum came about has a share; whoever came later asks.
    assert len(owners(made.routers[1])) >= quorum
    attach_everywhere(made)
    await_one_ring(made)


def _calls_itself(router: Router) -> bool:
    line = rf"-> {re.escape(router.host.address)}:6783 +failed +cannot connect to ourself, retry: never *\n"
    return re.search(line, router.get("/status/connections")) is not None


def w03_uniform_dynamic(made: Cluster, count: int) -> None:
    """The seeds are hosts 1 to 3, of which host 1 is cut off at first, with one that joins meanwhile."""
    assert count >= 4
    everybody = list(range(1, count + 1))
    seeds = "seed=" + ",".join(f"a::{number}" for number in (3, 1, 2))
    near, far = everybody[:1] + everybody[3:4], everybody[1:3] + everybody[4:]
    made.underlay.separate(near, far)
    for number in everybody:
        made.start(number, everybody, "--ipalloc-init", seeds, wait=False)
    for number in everybody:
        wait_until(f"router {number} answers", made.routers[number].answers, 60)
    for group in (near, far):
        made.await_links({number: {other for other in group if other != number} for number in group})
    addresses = [made.routers[number].allocate(f"early{number}") for number in everybody]
    assert len(set(addresses)) == count
    for number in everybody:
        made.underlay.clear(number)
    made.await_links(mesh_links(count), timeout=180)
    await_one_ring(made)
    first = {owner: token for token, owner, _ in sorted(ring(made.routers[1]), key=_numerically, reverse=True)}
    assert first[peer_name(1)] == "10.32.0.0"
    shares = owners(made.routers[1])
    assert sum(shares.values()) == SIZE
    assert shares[1] >= SIZE // 4 and {1, 2, 3} <= set(shares)
    no_address_twice(made)


def _numerically(row: tuple[str, str, int]) -> list[int]:
    return [int(part) for part in row[0].split(".")]


def w04_autoscaling(made: Cluster, count: int) -> None:
    """Hosts 1 and 2 are the core, the others observers."""
    observers = range(3, count + 1)
    for number in observers:
        made.start(number, [1, 2], "--ipalloc-init", "observer")
        assert ipam_status(made.routers[number]) == "idle"
    asking = [meanwhile(partial(made.routers[number].allocate, "asks", timeout=GOSSIP)) for number in observers]
    await_each(made, "they are priming", lambda router: ipam_status(router) == "priming")
    for number in (1, 2):
        made.start(number, [3 - number], "--ipalloc-init", "consensus=2")
    granted = [one.result(GOSSIP + 10) for one in asking]
    assert len(set(granted)) == len(granted)
    await_one_ring(made)
    assert set(owners(made.routers[1])) == set(range(1, count + 1))
    for number in observers:
        made.reset(number)
        await_each(made, f"host {number} has no addresses", lambda router: len(owners(router)) == len(made.routers))
    assert sum(owners(made.routers[1]).values()) == SIZE
    await_one_ring(made)


def w05_remove_peer(made: Cluster, count: int, leaves: int) -> None:
    made.start_all(count)
    made.await_links(mesh_links(count))
    attach_everywhere(made)
    await_one_ring(made)
    others = [number for number in made.routers if number != leaves]
    before = owners(made.routers[others[0]])
    made.reset(leaves)
    for number in others:
        made.routers[number].weave("forget", made.address(leaves))
    await_gone(made, leaves)
    await_one_ring(made)
    after = owners(made.routers[others[0]])
    grown = [number for number in others if after[number] == before[number] + before[leaves]]
    assert len(grown) == 1, f"one heir: {before} became {after}"
    for number in others:
        assert "unreachable" not in made.routers[number].weave("status", "ipam")
        assert made.address(leaves) not in made.routers[number].weave("status", "targets")
    made.routers[grown[0]].allocate("more")


def w06_dead_peer(made: Cluster, count: int, dies: int, by_nickname: bool = True) -> None:
    made.start_all(count)
    made.await_links(mesh_links(count))
    attach_everywhere(made)
    await_one_ring(made)
    others = [number for number in made.routers if number != dies]
    share = owners(made.routers[others[0]])[dies]
    made.routers.pop(dies).stop(kill=True)
    await_gone(made, dies)
    for number in others:
        router = made.routers[number]
        line = next(line for line in router.weave("status", "ipam").splitlines() if peer_name(dies) in line)
        assert re.fullmatch(rf".*{share} IPs \(\d\d\.\d% of total\) - unreachable!", line)
        assert router.metric("weave_ipam_unreachable_count") == 1
    executor = made.routers[others[0]]
    known_as = f"host{dies}" if by_nickname else peer_name(dies)
    assert executor.weave("rmpeer", known_as) == f"{share} IPs taken over from {known_as}\n"
    await_one_ring(made)
    for number in others:
        assert dies not in owners(made.routers[number])
        assert "unreachable" not in made.routers[number].weave("status", "ipam")
        assert made.routers[number].metric("weave_ipam_unreachable_count") == 0
    assert executor.remove_peer(peer_name(77)) == f"0 IPs taken over from {peer_name(77)}\n"
    await_ready(made)


def w07_stop_and_launch(made: Cluster, stops: int) -> None:
    """Three hosts; the one that stops was started with one peer and told of another."""
    first, told = [number for number in (1, 2, 3) if number != stops]
    for number in (first, told):
        made.start(number, [other for other in (first, told) if other != number])
    router = made.start(stops, [first])
    router.weave("connect", made.address(told))
    made.await_links(mesh_links(3))
    attach_everywhere(made)
    await_one_ring(made)
    kept, share = router.owned(), owners(router)[stops]
    router.stop()
    await_gone(made, stops)
    for peers, flags in (([first, told], []), ([], ["--resume"])):
        router = made.start(stops, peers, *flags)
        assert router.owned() == kept
        targets = router.weave("status", "targets").split()
        assert sorted(targets) == sorted([made.address(first), made.address(told)])
        made.await_links(mesh_links(3))
        await_one_ring(made)
        assert owners(router)[stops] == share
        for ident, cidrs in kept.items():
            assert router.allocate(ident) in cidrs, "asked again, the same is given"
        router.stop()
        await_gone(made, stops)


def w08_crash_and_restart(made: Cluster, crashes: int) -> None:
    """Killed and started in place by its supervisor, with the flags and peers of its first start."""
    others = [number for number in (1, 2, 3) if number != crashes]
    for number in others:
        made.start(number, [other for other in others if other != number])
    router = made.start(crashes, others[:1])
    router.weave("connect", made.address(others[1]))
    router.weave("forget", made.address(others[0]))
    made.await_links(mesh_links(3))
    attach_everywhere(made)
    kept = router.owned()
    for round_ in range(2):
        router.stop(kill=True)
        router = made.start(crashes, others[:1])
        assert router.weave("status", "targets") == f"{made.address(others[1])}\n"
        assert f"Restart/resume detected - using persisted peer list: [{made.address(others[1])}]" in router.log
        assert kept.items() <= router.owned().items()
        for number in made.routers:
            made.routers[number].allocate(f"round{round_}")
        no_address_twice(made)
    made.await_links(mesh_links(3))
    await_one_ring(made)


def w10_encryption(made: Cluster) -> None:
    """Hosts 1 and 2 trust the network between them."""
    for number in (1, 2, 3):
        trusted = ["--trusted-subnets", f"{made.address(1)}/32,{made.address(2)}/32"] if number < 3 else []
        made.start(number, range(1, number), *trusted, password="secret")
    made.await_links(mesh_links(3))
    for number, router in made.routers.items():
        for line in router.weave("status", "connections").splitlines():
            other = int(re.findall(r"\(host(\d)\)", line)[0])
            clear = {number, other} == {1, 2}
            shown = r"unencrypted sleeve +\S+ mtu=\d+" if clear else r"encrypted   sleeve +\S+ encrypted=truemtu=\d+"
            assert re.fullmatch(rf"(->|<-) \S+ +established {shown}", line), line
    everybody_pings(made, attach_everywhere(made))


WRONG = "Unable to decrypt TCP msg|connection reset by peer|EOF|broken pipe"
UNASKED = "no password specificed, but peer requested an encrypted connection"
UNMET = "password specified, but peer requested an unencrypted connection|connection reset by peer|EOF"


def w11_wrong_password(made: Cluster, wrong: int) -> None:
    """Hosts 1 and 2 are well; the third has another password, then none, then the right one."""
    others = [number for number in (1, 2, 3) if number != wrong]
    for number in others:
        made.start(number, [other for other in others if other != number], password="secret")
    made.await_links({others[0]: {others[1]}, others[1]: {others[0]}})
    for password, says in (("other", WRONG), (None, f"{UNASKED}|{UNMET}")):
        router = made.start(wrong, others, password=password)
        await_each(made, "an error shows", lambda one: "failed" in one.get("/status/connections"), among=[wrong])
        failed = [row["Info"] for row in connection_rows(router) if row["State"] == "failed"]
        assert failed and all(re.search(says, info) for info in failed), failed
        assert made.neighbours(others[0]) == {others[1]}
        router.stop()
    made.start(wrong, others, password="secret")
    made.await_links(mesh_links(3))
    everybody_pings(made, attach_everywhere(made))


def w12_partition(made: Cluster, alone: int, seconds: float) -> None:
    """One of three hosts is cut off, for so long at least, and comes back."""
    made.start_all(3)
    made.await_links(mesh_links(3))
    attached = attach_everywhere(made)
    await_one_ring(made)
    others = [number for number in (1, 2, 3) if number != alone]
    for number, one in attached.items():
        made.routers[number].add_name(f"c{number}.weave.local", one.namespace, one.address)
    await_names(made, {"c1", "c2", "c3"})
    terminations = {n: router.report()["Router"]["TerminationCount"] for n, router in made.routers.items()}
    made.underlay.separate([alone], others)
    wait_until("the cut is noticed", lambda: not made.neighbours(alone), 150, interval=1)
    made.await_links({others[0]: {others[1]}, others[1]: {others[0]}}, timeout=150)
    await_names(made, {f"c{alone}"}, among=[alone])
    await_names(made, {f"c{number}" for number in others}, among=others)
    assert "timed out waiting for UDP heartbeat" in made.routers[alone].log
    for number in made.routers:
        # Addresses are given meanwhile, from what each has.
        made.routers[number].allocate("meanwhile")
    wait_until("tries fail", lambda: _failed(made, alone) == 2, seconds, interval=1)
    for number in made.routers:
        made.underlay.clear(number)
    for number in others:
        made.routers[alone].weave("connect", made.address(number))
    made.await_links(mesh_links(3), timeout=GOSSIP)
    await_names(made, {"c1", "c2", "c3"})
    await_one_ring(made)
    no_address_twice(made)
    everybody_pings(made, attached)
    after = {n: router.report()["Router"]["TerminationCount"] for n, router in made.routers.items()}
    assert all(after[number] > terminations[number] for number in made.routers)


def _failed(made: Cluster, number: int) -> int:
    return sum(row["State"] in ("failed", "retrying", "connecting") for row in connection_rows(made.routers[number]))


def resolve(attached: Attached, server: str, name: str, expected: list[str], *, kind: str = "A") -> None:
    """Wait until a container gets exactly this for a name."""
    what = f"{attached.namespace} resolves {name} to {expected}"
    wait_until(what, lambda: lookup(attached.namespace, name, server, kind=kind) == sorted(expected), GOSSIP)


def exhaust(made: Cluster, at_most: int) -> list[str]:
    """Allocate in turn on all hosts until nobody has any address left."""
    given: list[str] = []
    hopeless: set[int] = set()
    while len(hopeless) < len(made.routers):
        for number, router in made.routers.items():
            if number in hopeless:
                continue
            try:
                given.append(router.allocate(f"x{len(given)}", timeout=10))
            except LabError:
                hopeless.add(number)
        assert len(given) <= at_most
    assert sorted(cidr.partition("/")[0] for cidr in given) == everything_owned(made)
    return given
