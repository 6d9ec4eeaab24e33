"""Our programs and maps in the kernel: loaded, put on VXLAN devices, taken over from a daemon that ended.

The programs of every device share one set of maps. No decisions here. Source: bpf(2), tc-bpf(8).
"""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf import tc
from bpf.elf import ObjectError, parse
from bpf.loader import check, load, maps_of
from bpf.syscall import BpfError, Map
from fastdp.maps import COUNT, COUNTS, KEY, Config, Traffic, unpack_learned

_OBJECT = "fastdp.bpf.o"


class KernelError(Exception):
    """The kernel's data path cannot be had: one line for a person."""


def interface(index: int) -> str:
    """An interface's name; empty where there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def present(index: int) -> bool:
    """Whether there is such an interface."""
    return bool(interface(index))


class Kernel:
    """What runs in the kernel. `device(port)` makes a UDP port's VXLAN device and gives its index; `ctl` is a TAP.

    Raises KernelError.
    """

    def __init__(self, device: Callable[[int], int], port: int, ctl: int, sleeve_name: str, ctl_name: str) -> None:
        self._device = device
        self.ctl = ctl
        self._devices: dict[int, int] = {}
        with self._errors(), IPRoute() as ip:
            # What is on the host stays as it is where we could not take its place.
            check()
            index = device(port)
            self.adopted = bool(tc.attached(index))
            content = parse(resources.files("fastdp").joinpath(_OBJECT).read_bytes())
            loaded = load(content, existing=maps_of(tc.attached(index)))
            self._programs: Mapping[str, int] = {name: loaded.programs[name] for name in tc.PARENTS}
            self._refuse = loaded.programs["refuse"]
            self.maps: Mapping[str, Map] = loaded.maps
            self.port = index
            self.sleeve, self.ctl_index = (int(ip.link_lookup(ifname=name)[0]) for name in (sleeve_name, ctl_name))
            config = Config.unpack(self.maps["config"].get(KEY.pack(0)) or bytes(32))
            # The short id of the daemon before us; None where there was none.
            self.former = config.ourself if self.adopted and config.port else None
            tc.attach(ip, index, self._programs)
            self._devices[port] = index

    def device(self, port: int) -> int:
        """The index of a UDP port's VXLAN device, with our programs on it. Raises KernelError."""
        if port not in self._devices:
            # Netlink brings a loop of its own, which cannot run inside ours. It takes milliseconds, once a port.
            with ThreadPoolExecutor(1) as thread:
                self._devices[port] = thread.submit(self._add, port).result()
        return self._devices[port]

    def lost(self) -> list[int]:
        """UDP ports whose devices somebody removed."""
        return [port for port, index in self._devices.items() if not present(index)]

    def renew(self, port: int) -> tuple[int, int]:
        """A device in place of one that is gone; the indices of both. Raises KernelError."""
        former = self._devices.pop(port)
        try:
            index = self.device(port)
        except KernelError:
            self._devices[port] = former
            raise
        if former == self.port:
            self.port = index
        return former, index

    def _add(self, port: int) -> int:
        with self._errors(), IPRoute() as ip:
            index = self._device(port)
            tc.attach(ip, index, self._programs)
            return index

    def seal(self, index: int) -> None:
        """Let nothing in that arrives at a device, and set it up. Raises KernelError."""
        with self._errors(), IPRoute() as ip:
            tc.attach(ip, index, {"ingress": self._refuse})
            try:
                ip.link("set", index=index, state="up")
            except NetlinkError as error:
                raise KernelError(f"it cannot be set up: {os.strerror(error.code)}") from error

    @property
    def ports(self) -> list[int]:
        """UDP ports that are listened on."""
        return sorted(self._devices)

    def counts(self) -> Counter[str]:
        """What the programs counted, on all CPUs."""
        found: Counter[str] = Counter()
        for number, name in enumerate(COUNTS):
            values = self.maps["counts"].get(KEY.pack(number)) or b""
            found[name] = sum(value for (value,) in COUNT.iter_unpack(values))
        return found

    def traffic(self, link: int) -> Traffic:
        """What went over a link, given by the number of its counters, since these were made."""
        return Traffic.unpack(self.maps["traffic"].get(KEY.pack(0)) or b"", link)

    def learned(self) -> Iterator[tuple[bytes, int]]:
        """Addresses that were met since this was last asked, and the short id of the peer they are behind."""
        while True:
            value = self.maps["events"].pop()
            if value is None:
                return
            yield unpack_learned(value)

    def close(self) -> None:
        """Leave it running."""
        for descriptor in (*self._programs.values(), self._refuse, *(one.descriptor for one in self.maps.values())):
            os.close(descriptor)
        os.close(self.ctl)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except NetlinkError as error:
            raise KernelError(f"the kernel takes no program on an interface: {os.strerror(error.code)}") from error
        except BpfError as error:
            raise KernelError(f"no BPF: {error.strerror}") from error
        except (ObjectError, OSError) as error:
            raise KernelError(str(error)) from error
