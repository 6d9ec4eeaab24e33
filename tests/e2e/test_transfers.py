"""Bytes between containers over sleeve arrive as they were sent: both ways, IPv4 and IPv6, over bad cables too.

Streams of writes of random sizes are compared by checksum, datagrams of random sizes one by one.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.impair import impaired
from lab.net import inside, run
from tests.clusters import Cluster, cluster, mesh_links

_SERVER = """
import hashlib,json,socket,struct,sys,threading
family=socket.AF_INET6 if sys.argv[1]=='6' else socket.AF_INET
t=socket.create_server(('',5005),family=family);u=socket.socket(family,socket.SOCK_DGRAM);u.bind(('',5006))
u.setsockopt(1,33,8<<20);got={'datagrams':0,'bad':0}
def listen():
    while True:
        d=u.recv(65536)
        if hashlib.sha256(d[32:]).digest()==d[:32]: got['datagrams']+=1
        else: got['bad']+=1
threading.Thread(target=listen,daemon=True).start();print('ready',flush=True)
c,_=t.accept();h=hashlib.sha256();n=0
while b:=c.recv(1<<20): h.update(b);n+=len(b)
c.sendall(h.digest());print(json.dumps({**got,'bytes':n}),flush=True)
"""
_CLIENT = """
import hashlib,random,socket,sys,threading,time
address,size,seed=sys.argv[1],int(sys.argv[2]),int(sys.argv[3]);r=random.Random(seed);done=[]
def datagrams():
    s=socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET,socket.SOCK_DGRAM);q=random.Random(seed)
    s.connect((address,5006));s.setsockopt(0,10,0) if ':' not in address else None
    while not done:
        d=q.randbytes(q.choice((1,50,500,1300,1334,q.randrange(9000))))
        try: s.send(hashlib.sha256(d).digest()+d)
        except OSError: pass
        time.sleep(.002)
threading.Thread(target=datagrams,daemon=True).start()
c=socket.create_connection((address,5005),60);c.settimeout(300);h=hashlib.sha256();block=r.randbytes(1<<20)
while size:
    at=r.randrange(1<<19);b=block[at:at+min(size,r.choice((1,100,1400,65536,r.randrange(1,1<<19))))]
    if r.random()<.01: c.setsockopt(6,1,r.randrange(2))
    c.sendall(b);h.update(b);size-=len(b)
c.shutdown(1);answer=c.recv(32,socket.MSG_WAITALL);done.append(1)
print('same' if answer==h.digest() else 'different')
"""


def transfer(source: str, target: str, address: str, size: int, seed: int) -> dict[str, int]:
    """Send that many bytes, and datagrams meanwhile; what arrived of the latter."""
    python = (sys.executable, "-I", "-S", "-c")
    server = subprocess.Popen(
        inside(target, *python, _SERVER, "6" if ":" in address else "4"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        said = run(*inside(source, *python, _CLIENT, address, str(size), str(seed)), timeout=400)
        assert said == "same\n"
        return dict(json.loads(server.communicate(timeout=30)[0]))
    finally:
        server.kill()
        server.communicate()


def pair(made: Cluster, password: str | None) -> tuple[str, str]:
    """Two routers, connected; their containers, which have IPv6 as well."""
    made.start_all(2, password=password)
    made.await_links(mesh_links(2))
    containers = (made.container(1), made.container(2))
    for number, container in enumerate(containers, 1):
        run("ip", "-n", container, "addr", "add", f"fd32::{number}/64", "dev", "ethwe", "nodad")
    made.await_routes()
    return containers


def both_ways(containers: tuple[str, str], size: int) -> None:
    """IPv4 and IPv6 at once in both directions."""
    one, two = containers
    ways = [(one, two, "10.32.0.2"), (two, one, "fd32::1"), (two, one, "10.32.0.1"), (one, two, "fd32::2")]
    for first, second in (ways[:2], ways[2:]):
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(transfer, *way, size, seed) for seed, way in enumerate((first, second), 1)]
            for done in runs:
                got = done.result()
                assert got["bad"] == 0
                assert got["bytes"] == size
                assert got["datagrams"] > 0


@pytest.mark.parametrize(
    ("password", "size"),
    [
        ("secret", 20_000_000),
        (None, 20_000_000),
        pytest.param("secret", 200_000_000, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_bytes_arrive_as_sent(password: str | None, size: int) -> None:
    with cluster() as made:
        both_ways(pair(made, password), size)
        for router in made.routers.values():
            sleeve = router.report()["Router"]["Sleeve"]
            assert sleeve["Counts"].get("tap-write-error", 0) == 0
            assert sleeve["Counts"].get("tap-malformed", 0) == 0
            assert all(link["Counts"].get("malformed", 0) == 0 for link in sleeve["Links"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("password", "size"),
    [
        ("secret", 3_000_000),
        pytest.param(None, 3_000_000, marks=pytest.mark.long),
        pytest.param("secret", 200_000_000, marks=[pytest.mark.long, pytest.mark.timeout(3000)]),
    ],
)
def test_bytes_arrive_as_sent_over_a_bad_cable(password: str | None, size: int) -> None:
    with cluster() as made:
        containers = pair(made, password)
        with impaired(made.underlay, 1, 2, loss=0.5, twice=1, late=2):
            both_ways(containers, size)
            replayed = sum(
                link["Counts"].get("replayed", 0)
                for router in made.routers.values()
                for link in router.report()["Router"]["Sleeve"]["Links"]
            )
            assert replayed > 0 or password is None, "what came twice was taken once"
