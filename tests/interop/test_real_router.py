"""Mixed meshes with real Weave Net 2.8 routers. Their path is in WEAVE_NET_ROUTER; without it nothing here runs."""

import os
import re
import time

import pytest

from lab.router import wait_until
from lab.traffic import ping
from tests.clusters import Cluster, chain_links, cluster, mesh_links
from tests.traffic import arp_is_answered_anew, everything_passes

REAL = os.environ.get("WEAVE_NET_ROUTER", "")
pytestmark = pytest.mark.skipif(not REAL, reason="WEAVE_NET_ROUTER names no Weave Net 2.8 router to run against")
STAY = float(os.environ.get("WEAVE_INTEROP_STAY", "180"))
SIZE = int(os.environ.get("WEAVE_INTEROP_BYTES", "100000000"))

PLACES = [
    pytest.param([1], False, id="mesh-one-real"),
    pytest.param([1, 3], False, id="mesh-two-real"),
    pytest.param([2], True, id="chain-real-in-the-middle"),
    pytest.param([1, 3], True, id="chain-ours-in-the-middle"),
]


def agree(made: Cluster) -> bool:
    """Every router tells the same of every peer: nickname, UID, short id, version and connections."""
    views = set()
    for router in made.routers.values():
        peers = router.report()["Router"]["Peers"]
        views.add(
            tuple(
                sorted(
                    (
                        peer["Name"],
                        peer["NickName"],
                        peer["UID"],
                        peer["ShortID"],
                        peer["Version"],
                        tuple(sorted((link["Name"], link["Established"]) for link in peer["Connections"] or ())),
                    )
                    for peer in peers
                )
            )
        )
    return len(views) == 1 and len(next(iter(views))) == len(made.routers)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("password", [None, "secret"], ids=["plain", "encrypted"])
@pytest.mark.parametrize(("foreign", "chain"), PLACES)
def test_mixed(foreign: list[int], chain: bool, password: str | None) -> None:
    with cluster(foreign, REAL) as made:
        made.start_all(3, chain=chain, password=password)
        links = chain_links(3) if chain else mesh_links(3)
        made.await_links(links)
        established = time.monotonic()
        containers = {number: made.container(number) for number in made.routers}
        made.await_routes()
        wait_until("all tell the same", lambda: agree(made), 40)
        terminations = [router.report()["Router"]["TerminationCount"] for router in made.routers.values()]
        everything_passes(containers, SIZE)
        arp_is_answered_anew(containers)
        while time.monotonic() - established < STAY:
            assert {number: made.neighbours(number) for number in made.routers} == links
            time.sleep(5)
        assert agree(made)
        after = [router.report()["Router"]["TerminationCount"] for router in made.routers.values()]
        assert after == terminations, "no connection ended meanwhile"


@pytest.mark.parametrize("victim", [1, 2], ids=["real-restarts", "ours-restarts"])
@pytest.mark.parametrize("password", [None, "secret"], ids=["plain", "encrypted"])
def test_killed_and_restarted(victim: int, password: str | None) -> None:
    with cluster([1], REAL) as made:
        made.start_all(3, password=password)
        made.await_links(mesh_links(3))
        containers = {number: made.container(number) for number in made.routers}
        for _ in range(2):
            made.routers[victim].stop(kill=True)
            wait_until("the others notice", lambda: made.neighbours(3) == {3 - victim}, 15)
            made.start(victim, [other for other in (1, 2, 3) if other != victim], password=password)
            made.await_links(mesh_links(3), timeout=60)
        made.await_routes()
        wait_until("all tell the same", lambda: agree(made), 40)
        for one, other in ((1, 2), (2, 1), (3, victim), (victim, 3)):
            assert ping(containers[one], f"10.32.0.{other}", count=10), f"{one} -> {other}"


DECRYPT = "Unable to decrypt TCP msg"
RESET = "connection reset by peer|EOF|broken pipe"
UNASKED = "no password specificed, but peer requested an encrypted connection"
UNMET = "password specified, but peer requested an unencrypted connection"


@pytest.mark.parametrize("dialer", [1, 2], ids=["real-dials", "ours-dials"])
@pytest.mark.parametrize(
    ("dialer_password", "acceptor_password", "dialer_says", "acceptor_says"),
    [
        ("a", "b", f"{DECRYPT}|{RESET}", f"{DECRYPT}|{RESET}"),
        (None, "b", UNASKED, f"{UNMET}|{RESET}"),
        # Whoever reads the other's flag first resets; the other may see no more than that.
        ("a", None, f"{UNMET}|{RESET}", f"{UNASKED}|{RESET}"),
    ],
    ids=["wrong", "missing-at-dialer", "missing-at-acceptor"],
)
def test_passwords_that_differ(
    dialer: int, dialer_password: str | None, acceptor_password: str | None, dialer_says: str, acceptor_says: str
) -> None:
    acceptor = 3 - dialer
    with cluster([1], REAL) as made:
        made.start(acceptor, [], password=acceptor_password)
        made.start(dialer, [acceptor], password=dialer_password)
        wait_until("the error shows", lambda: "failed" in made.routers[dialer].get("/status/connections"), 15)
        assert re.search(dialer_says, made.routers[dialer].get("/status/connections"))
        wait_until("the acceptor logs it", lambda: "shutting down" in made.routers[acceptor].log, 10)
        assert re.search(acceptor_says, made.routers[acceptor].log)
        assert not made.neighbours(acceptor)


@pytest.mark.parametrize("order", [("new", "old"), ("old", "new")], ids=["new-first", "old-first"])
@pytest.mark.parametrize("dialer", [1, 2], ids=["real-dials", "ours-dials"])
def test_two_passwords_towards_a_router_with_one(dialer: int, order: tuple[str, str]) -> None:
    """During a rotation ours accept both; 2.8 knows one."""
    with cluster([1], REAL) as made:
        file = made.directory / "passwords"
        file.write_text("\n".join(order))
        acceptor = 3 - dialer
        for number, peers in ((acceptor, []), (dialer, [acceptor])):
            if number == 1:
                made.start(1, peers, password="old")
            else:
                made.start(2, peers, "--password-file", str(file))
        made.await_links(mesh_links(2))


def test_version_one_introduction() -> None:
    """A router of ours that speaks only version 2 and a real one still meet; the oldest version is the reference's."""
    with cluster([1], REAL) as made:
        made.start(1, [])
        made.start(2, [1], "--min-protocol-version", "2")
        made.await_links(mesh_links(2))


@pytest.mark.parametrize(("foreign", "chain"), PLACES)
def test_a_kernel_path_among_ours_only(foreign: list[int], chain: bool) -> None:
    """Ours carry frames in the kernel among themselves, and over sleeve to a router that has no Open vSwitch."""
    with cluster(foreign, REAL, fastdp=True) as made:
        made.start_all(3, chain=chain)
        made.await_links(chain_links(3) if chain else mesh_links(3))
        containers = {number: made.container(number) for number in made.routers}
        made.await_routes()
        everything_passes(containers, 1_000_000)
        arp_is_answered_anew(containers)
