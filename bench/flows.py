"""What the sleeve benchmark sends: TCP streams, floods of small datagrams, echoes. Each runs in its ends' namespaces.

Flood and echo are small programs of their own: iperf3 makes too few small packets to fill a tunnel.
"""

import json
import subprocess
import sys
import time

from lab.net import inside, run

_PYTHON = (sys.executable, "-I", "-S", "-c")
_PORT = 5002
FLOOD_SIZE = 64

# sendmmsg(2) and recvmmsg(2) by ctypes; struct mmsghdr is 64 octets, its last 8 the length received.
_MMSG = """
import ctypes,socket,struct,sys,time
libc=ctypes.CDLL(None,use_errno=True)
N=64
def messages(size):
    room=ctypes.create_string_buffer(N*size); base=ctypes.addressof(room)
    iov=ctypes.create_string_buffer(b''.join(struct.pack('QQ',base+i*size,size) for i in range(N)),16*N)
    at=ctypes.addressof(iov)
    return room,iov,ctypes.create_string_buffer(
        b''.join(struct.pack('QI4xQQQQi4xQ',0,0,at+16*i,1,0,0,0,0) for i in range(N)),64*N)
"""
_FLOOD = _MMSG + """
s=socket.socket(2,2);s.connect((sys.argv[1],int(sys.argv[2])));room,iov,m=messages(int(sys.argv[4]))
end=time.monotonic()+float(sys.argv[3]);n=0
while time.monotonic()<end:
    for _ in range(16): n+=max(0,libc.sendmmsg(s.fileno(),m,N,0))
print(n)
"""
_COUNT = _MMSG + """
s=socket.socket(2,2);s.setsockopt(1,33,8<<20);s.bind(('',int(sys.argv[1])));s.settimeout(20)
try: s.setsockopt(17,104,1)
except OSError: pass
size=int(sys.argv[2]);room,iov,m=messages(65536);print('ready',flush=True);total=0;last=begun=None
s.recv(65536);s.setsockopt(1,20,struct.pack('ll',1,0));s.setblocking(True);begun=time.monotonic()
while True:
    n=libc.recvmmsg(s.fileno(),m,N,0x10000,None)
    if n<=0: break
    total+=sum(struct.unpack_from('I',m,64*i+56)[0] for i in range(n));last=time.monotonic()
print(total//size,(last or begun)-begun,flush=True)
"""
_ECHO_SERVER = """
import socket,sys
s=socket.socket(2,2);s.bind(('',int(sys.argv[1])));print('ready',flush=True)
while True:
    d,a=s.recvfrom(2048);s.sendto(d,a)
"""
_ECHO = """
import socket,statistics,sys,time
s=socket.socket(2,2);s.connect((sys.argv[1],int(sys.argv[2])));s.settimeout(1);d=bytes(64);times=[]
end=time.monotonic()+float(sys.argv[3])
while time.monotonic()<end:
    t=time.perf_counter()
    try: s.send(d);s.recv(2048)
    except OSError: continue
    times.append(time.perf_counter()-t)
print(statistics.median(times)*1e6)
"""


def _server(namespace: str, *command: str) -> "subprocess.Popen[str]":
    server = subprocess.Popen(inside(namespace, *command), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    return server


def _end(server: "subprocess.Popen[str]") -> None:
    server.kill()
    server.communicate()


def tcp(ends: tuple[str, str], address: str, seconds: float, streams: int = 1, port: int = 5201) -> list[float]:
    """Bytes that each stream carried, then the seconds it took."""
    server = subprocess.Popen(
        inside(ends[1], "iperf3", "-s", "-1", "-p", str(port)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        client = ("iperf3", "-c", address, "-p", str(port), "-J", "-t", str(seconds), "-P", str(streams))
        end = json.loads(run(*inside(ends[0], *client), timeout=seconds + 40))["end"]
    finally:
        server.terminate()
        server.wait()
    carried = [float(stream["receiver"]["bytes"]) for stream in end["streams"]]
    return [*carried, float(end["sum_received"]["seconds"])]


def flood(ends: tuple[str, str], address: str, seconds: float) -> tuple[int, float]:
    """Datagrams of 64 octets that arrived, and the seconds between the first and the last."""
    server = _server(ends[1], *_PYTHON, _COUNT, str(_PORT), str(FLOOD_SIZE))
    try:
        run(*inside(ends[0], *_PYTHON, _FLOOD, address, str(_PORT), str(seconds), str(FLOOD_SIZE)), timeout=60)
        number, took = server.communicate(timeout=30)[0].split()
    finally:
        _end(server)
    return int(number), float(took)


def echo(ends: tuple[str, str], address: str, seconds: float) -> float:
    """Median microseconds from a datagram of 64 octets to its echo, one at a time."""
    server = _server(ends[1], *_PYTHON, _ECHO_SERVER, str(_PORT + 1))
    try:
        return float(run(*inside(ends[0], *_PYTHON, _ECHO, address, str(_PORT + 1), str(seconds)), timeout=60))
    finally:
        _end(server)
