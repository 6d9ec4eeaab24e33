"""What passes on the wire between the lab's hosts: every packet at a host's port of the switch, told from others.

Source: data plane spec §4.1, §5.3 (how VXLAN and ESP look).
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from lab.net import LabError, Underlay, inside

_PROGRAM = """
import json,signal,socket,sys
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3));s.setsockopt(1,33,64<<20);s.bind((sys.argv[1],0))
marks=[m.encode() for m in sys.argv[2:]];found={'esp':0,'clear':0,'marked':0,'sizes':{},'spis':{},'first':''};stop=[]
signal.signal(signal.SIGTERM,lambda *_:stop.append(1));s.settimeout(.2);print('ready',flush=True)
while not stop:
    try: p=s.recv(65600)
    except TimeoutError: continue
    if any(m in p for m in marks): found['marked']+=1
    v6=p[12:14]==b'\\x86\\xdd'
    if not v6 and p[12:14]!=b'\\x08\\0': continue
    protocol,end=(p[20],54) if v6 else (p[23],14+4*(p[14]&15))
    if protocol==50:
        found['esp']+=1;spi=p[end:end+4].hex();found['spis'][spi]=found['spis'].get(spi,0)+1
        size=str(len(p)-14);found['sizes'][size]=found['sizes'].get(size,0)+1
    elif protocol==17 and p[end+8:end+12]==b'\\x08\\0\\0\\0' and int.from_bytes(p[end+2:end+4],'big') in (6784,7001):
        found['clear']+=1;found['first']=found['first'] or p.hex()[:200]
print(json.dumps(found),flush=True)
"""


@dataclass(slots=True)
class Wire:
    """Packets of ESP, of VXLAN in clear (`first` one's bytes), and with one of the marks in them.

    `sizes` counts packets of ESP by octets of IP packet, `spis` by their association.
    """

    esp: int = 0
    clear: int = 0
    marked: int = 0
    first: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    spis: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def captured(underlay: Underlay, number: int, *marks: str) -> Iterator[Wire]:
    """Look at all that passes at a host's port; the counts are there when the block ends."""
    command = inside(underlay.switch, sys.executable, "-I", "-S", "-c", _PROGRAM, f"p{number}", *marks)
    listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wire = Wire()
    try:
        assert listener.stdout is not None
        if listener.stdout.readline() != "ready\n":
            raise LabError("the capture did not start")
        yield wire
        listener.terminate()
        for name, value in json.loads(listener.communicate(timeout=30)[0]).items():
            setattr(wire, name, value)
    finally:
        listener.kill()
        listener.wait()
