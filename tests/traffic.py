"""What must pass between all containers of a cluster, whoever routes for them."""

from lab.net import run
from lab.traffic import datagrams, ping, tcp

SIZES = [100, 1400, 8000]


def everything_passes(containers: dict[int, str], size: int) -> None:
    """Pings, streams of `size` bytes, datagrams small and fragmented, broadcast, groups and IPv6, all pairs."""
    for one, source in containers.items():
        for other, target in containers.items():
            if one == other:
                continue
            address = f"10.32.0.{other}"
            assert ping(source, address, count=5), f"ping {one} -> {other}"
            tcp(source, target, address, size)
            got = datagrams(source, {target: address}, address, SIZES)
            assert sorted(got[target]) == sorted(SIZES * 5), f"datagrams {one} -> {other}"
            link_local = run("ip", "-n", target, "-6", "-o", "addr", "show", "dev", "ethwe", "scope", "link").split()[3]
            assert ping(source, link_local.partition("/")[0], count=5, device="ethwe"), f"IPv6 {one} -> {other}"
    for first, source in containers.items():
        others = {name: f"10.32.0.{number}" for number, name in containers.items() if number != first}
        for group in ("239.1.2.3", "10.47.255.255"):
            received = datagrams(source, others, group, [500])
            assert all(sizes == [500] * 5 for sizes in received.values()), f"{group} from {first}: {received}"


def arp_is_answered_anew(containers: dict[int, str]) -> None:
    """Forgotten neighbours are found again by broadcast."""
    for one, source in containers.items():
        for other in containers:
            if one != other:
                run("ip", "-n", source, "neigh", "flush", "all")
                assert ping(source, f"10.32.0.{other}", count=5), f"ARP {one} -> {other}"
