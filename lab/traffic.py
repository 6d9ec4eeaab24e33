"""Traffic between containers, and what became of it: pings, streams, datagrams, floods, groups, names.

The senders and receivers are small programs that run in the containers' namespaces; every wait is bounded.
"""

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lab.net import LabError, inside, run

_PYTHON = (sys.executable, "-I", "-S", "-c")
_PORT = 5001

_TCP_SERVER = """
import hashlib,socket,sys
s=socket.socket();s.setsockopt(1,2,1);s.bind(('0.0.0.0',int(sys.argv[1])));s.listen(1);s.settimeout(60)
print('ready',flush=True);c,_=s.accept();c.settimeout(60);h=hashlib.sha256();n=0
while True:
    b=c.recv(1<<20)
    if not b: break
    h.update(b);n+=len(b)
print(n,h.hexdigest(),flush=True)
"""
_TCP_CLIENT = """
import hashlib,random,socket,sys,time
r=random.Random(1);h=hashlib.sha256();c=socket.create_connection((sys.argv[1],int(sys.argv[2])),20)
c.settimeout(60);left=int(sys.argv[3]);block=r.randbytes(1<<16);t=time.monotonic()
while left:
    b=block[:left];c.sendall(b);h.update(b);left-=len(b);block=block[7:]+block[:7]
c.shutdown(1);c.recv(1);print(h.hexdigest(),time.monotonic()-t,flush=True)
"""
_UDP_SERVER = """
import socket,struct,sys
s=socket.socket(2,2);s.setsockopt(1,2,1);s.settimeout(float(sys.argv[3]))
group=sys.argv[2]
s.bind((group if group!='-' else '0.0.0.0',int(sys.argv[1])))
if group not in('-','255.255.255.255') and int(group.split('.')[0])>=224:
    s.setsockopt(0,35,struct.pack('4s4s',socket.inet_aton(group),socket.inet_aton(sys.argv[4])))
print('ready',flush=True);got=[]
try:
    while len(got)<int(sys.argv[5]): got.append(len(s.recv(65535)))
except TimeoutError: pass
print(' '.join(map(str,got)),flush=True)
"""
_UDP_CLIENT = """
import socket,sys,time
s=socket.socket(2,2);s.setsockopt(1,6,1);s.setsockopt(0,32,socket.inet_aton(sys.argv[5]));s.setsockopt(0,33,4)
s.setsockopt(0,10,int(sys.argv[6]))
for size in sys.argv[3].split(','):
    for _ in range(int(sys.argv[4])):
        s.sendto(bytes(int(size)),(sys.argv[1],int(sys.argv[2])));time.sleep(.02)
"""
_ECHO_SERVER = """
import socket,sys
s=socket.socket();s.setsockopt(1,2,1);s.bind(('0.0.0.0',int(sys.argv[1])));s.listen(1);s.settimeout(60)
print('ready',flush=True);c,_=s.accept();c.settimeout(300)
while b:=c.recv(4096): c.sendall(b)
"""
_ECHO_CLIENT = """
import signal,socket,sys,time
c=socket.create_connection((sys.argv[1],int(sys.argv[2])),20);c.settimeout(300);stop=[];n=0;longest=0.
signal.signal(signal.SIGTERM,lambda *_:stop.append(1));print('ready',flush=True);last=time.monotonic();said=0.
while not stop:
    b=b'%08d'%n;c.sendall(b);got=b''
    while len(got)<8:
        m=c.recv(8-len(got))
        if not m: sys.exit('the other end closed')
        got+=m
    assert got==b;n+=1;now=time.monotonic();longest=max(longest,now-last);last=now;time.sleep(.05)
    if now-said>.5: print(n,longest,flush=True);said=now
print(n,longest,flush=True)
"""


@dataclass(slots=True)
class Conversation:
    """How a TCP connection fares: how often something went there and back, and the longest silence, seconds."""

    exchanges: int = 0
    silence: float = 0.0

    def follow(self, lines: Iterable[str]) -> None:
        """What the program at one end says, until it ends."""
        for line in lines:
            exchanges, silence = line.split()
            self.exchanges, self.silence = int(exchanges), float(silence)

    def has(self, exchanges: int) -> bool:
        """Whether so much has gone there and back."""
        return self.exchanges >= exchanges


def _spawn(namespace: str, program: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [*inside(namespace, *_PYTHON, program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _server(namespace: str, program: str, *arguments: object) -> "subprocess.Popen[str]":
    """A program that has said it is ready."""
    server = _spawn(namespace, program, *arguments)
    assert server.stdout is not None
    if server.stdout.readline() != "ready\n":
        raise LabError(f"no server in {namespace}: {server.communicate(timeout=10)[1].strip()}")
    return server


def _finish(process: "subprocess.Popen[str]", timeout: float) -> str:
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LabError(f"traffic did not end within {timeout:.0f} s") from None
    if process.returncode:
        raise LabError(errors.strip().splitlines()[-1] if errors.strip() else "traffic failed")
    return output


def ping(source: str, address: str, *, count: int = 3, size: int = 56, df: bool = False, device: str = "") -> bool:
    """Whether at least one of `count` echo requests from a container was answered."""
    flags = ["-M", "do"] if df else []
    flags += ["-I", device] if device else []
    command = ["ping", "-c", str(count), "-i", "0.2", "-W", "2", "-s", str(size), *flags, address]
    output = run(*inside(source, *command), check=False)
    return " received" in output and ", 0 received" not in output


@contextlib.contextmanager
def pinging(source: str, address: str) -> Iterator[None]:
    """Echo requests all the while, five a second. Raises LabError where more than the last one was not answered."""
    command = inside(source, "ping", "-q", "-i", "0.2", address)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=20)[0]
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    if counts is None or int(counts[2]) < int(counts[1]) - 1:
        raise LabError(f"{source} to {address}: {output.strip()}")


@contextlib.contextmanager
def talking(source: str, target: str, address: str) -> Iterator[Conversation]:
    """One TCP connection all the while, over which something goes there and back twenty times a second.

    Raises LabError where it broke.
    """
    server = _server(target, _ECHO_SERVER, _PORT + 1)
    client = _server(source, _ECHO_CLIENT, address, _PORT + 1)
    talk = Conversation()
    assert client.stdout is not None and client.stderr is not None
    listener = threading.Thread(target=talk.follow, args=(client.stdout,), daemon=True)
    listener.start()
    try:
        yield talk
        client.send_signal(signal.SIGTERM)
        if client.wait(60):
            raise LabError(f"{source} to {address}: {client.stderr.read().strip()}")
        listener.join()
    finally:
        for process in (client, server):
            process.kill()
            process.wait()


def lookup(source: str, name: str, server: str, *, kind: str = "A") -> list[str]:
    """What `dig` in a container gets for a name from a server, sorted; `kind` X is a reverse look-up of an address.

    Empty for no answer, no such name, and no server: `+short` says nothing of why.
    """
    question = ("-x", name) if kind == "X" else (name, kind)
    output = run(*inside(source, "dig", "+short", "+time=2", "+tries=2", f"@{server}", *question), check=False)
    return sorted(line for line in output.splitlines() if not line.startswith(";"))


def tcp(source: str, target: str, address: str, size: int, timeout: float = 120.0) -> float:
    """Stream `size` bytes to `address` in `target`; seconds it took. Raises LabError where the bytes differ."""
    server = _server(target, _TCP_SERVER, _PORT)
    try:
        sent = _finish(_spawn(source, _TCP_CLIENT, address, _PORT, size), timeout).split()
        received = _finish(server, 30).split()
    finally:
        server.kill()
        server.wait()
    if received != [str(size), sent[0]]:
        raise LabError(f"{address}: sent {size} bytes {sent[0][:12]}, received {' '.join(received)[:40]}")
    return float(sent[1])


def datagrams(
    source: str,
    targets: dict[str, str],
    to: str,
    sizes: list[int],
    *,
    count: int = 5,
    wait: float = 15.0,
    df: bool = False,
) -> dict[str, list[int]]:
    """Send datagrams to `to`; the sizes that each target (namespace to its address) received.

    `to` is an address of one target, a broadcast address or a group; `df` forbids fragmentation.
    """
    group = to if int(to.split(".")[0]) >= 224 or to.endswith(".255") else "-"
    expected = count * len(sizes)
    local = {
        name: _server(name, _UDP_SERVER, _PORT, group, wait, address, expected) for name, address in targets.items()
    }
    own = run(*inside(source, "ip", "-4", "-o", "addr", "show", "dev", "ethwe")).split()[3].partition("/")[0]
    sizes_text = ",".join(map(str, sizes))
    _finish(_spawn(source, _UDP_CLIENT, to, _PORT, sizes_text, count, own, 2 if df else 0), 60)
    return {name: [int(size) for size in _finish(server, wait + 30).split()] for name, server in local.items()}
