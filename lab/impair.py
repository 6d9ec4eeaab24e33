"""A bad cable: two hosts of the lab joined by a program that loses, repeats and delays packets.

Kernels without netem have no such thing. The two hosts' ports leave the switch's bridge and are joined by packet
sockets; offloads go off, so that what passes are packets as they are on a wire. Percentages are of all packets.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from lab.net import LabError, Underlay, inside, run

_OFFLOADS = ("tx", "tso", "gso", "gro", "tx-udp-segmentation")
_PROGRAM = """
import random,select,socket,sys,time
one,two=(socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3)) for _ in '12')
for s,name in zip((one,two),sys.argv[1:3]):
    s.setsockopt(1,33,16<<20);s.setsockopt(263,23,1)
    s.bind((name,0));s.setblocking(False)
loss,twice,late=(float(a)/100 for a in sys.argv[3:6]);r=random.Random(int(sys.argv[6]))
other={one:two,two:one};held=[];print('ready',flush=True)
def give(s,p):
    try: s.send(p)
    except OSError: pass
while True:
    for s in select.select([one,two],[],[],.002)[0]:
        for _ in range(64):
            try: p=s.recv(65536)
            except BlockingIOError: break
            d=r.random()
            if d<loss: continue
            if d<loss+twice: give(other[s],p)
            if loss+twice<=d<loss+twice+late: held.append((time.monotonic()+r.random()*.004,other[s],p))
            else: give(other[s],p)
    now=time.monotonic();due=[h for h in held if h[0]<=now];held=[h for h in held if h[0]>now]
    for _,s,p in due: give(s,p)
"""


@contextlib.contextmanager
def impaired(
    underlay: Underlay, one: int, two: int, *, loss: float = 0, twice: float = 0, late: float = 0, seed: int = 1
) -> Iterator[None]:
    """Join two hosts of an underlay, and nobody else, by a cable that does this to so many percent of packets."""
    ports = (f"p{one}", f"p{two}")
    for number, port in zip((one, two), ports, strict=True):
        run("ip", "-n", underlay.switch, "link", "set", port, "nomaster", "promisc", "on")
        for namespace, device in ((underlay.switch, port), (underlay.host(number).namespace, "eth0")):
            for offload in _OFFLOADS:
                run(*inside(namespace, "ethtool", "-K", device, offload, "off"), check=False)
    numbers = [str(value) for value in (loss, twice, late, seed)]
    command = inside(underlay.switch, sys.executable, "-I", "-S", "-c", _PROGRAM, *ports, *numbers)
    cable = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert cable.stdout is not None
        if cable.stdout.readline() != "ready\n":
            raise LabError("the bad cable did not start")
        yield
    finally:
        cable.kill()
        cable.communicate()
        for port in ports:
            run("ip", "-n", underlay.switch, "link", "set", port, "master", "br0", check=False)
