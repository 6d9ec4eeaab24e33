"""The host's plain VXLAN devices as the fast data path sees them (`fastdp.direct.Devices`)."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastdp.direct import Ends
from fastdp.kernel import KernelError
from host import peer_vxlan, plain_vxlan
from host.errors import HostError

_T = TypeVar("_T")


class DirectDevices:
    """Devices on a bridge, of its MTU in octets; `former` is the short id that those had which were found there."""

    def __init__(self, bridge: str, mtu: int) -> None:
        self._bridge = bridge
        self._mtu = mtu
        # Netlink brings a loop of its own, which cannot run inside ours.
        self._thread = ThreadPoolExecutor(1)
        self.former: int | None = None
        for text, _, _ in self.found():
            try:
                self.former = Ends.parse(text).ourself
            except ValueError:
                continue

    def check(self, port: int) -> None:
        """Whether the kernel makes such a device at all. Raises KernelError."""
        name = f"{peer_vxlan.PREFIX}-check"
        self._do(lambda: peer_vxlan.make(name, "check", ("127.0.0.1", "127.0.0.1"), port, (0, 0), self._mtu))
        self._do(lambda: plain_vxlan.remove(name))

    def found(self) -> Sequence[tuple[str, int, bool]]:
        devices = self._do(lambda: peer_vxlan.devices(self._bridge))
        return [(device.label, device.index, device.joined) for device in devices.values()]

    def make(self, ends: Ends, vnis: tuple[int, int]) -> int:
        name, addresses = _interface(ends.name), (ends.local, ends.remote)
        return self._do(lambda: peer_vxlan.make(name, ends.text(), addresses, ends.port, vnis, self._mtu))

    def join(self, name: str) -> None:
        self._do(lambda: peer_vxlan.join(self._bridge, _interface(name)))

    def leave(self, name: str) -> None:
        self._do(lambda: peer_vxlan.leave(_interface(name)))

    def remove(self, name: str) -> None:
        self._do(lambda: plain_vxlan.remove(_interface(name)))

    def _do(self, work: Callable[[], _T]) -> _T:
        try:
            return self._thread.submit(work).result()
        except HostError as error:
            raise KernelError(str(error)) from error


def _interface(name: str) -> str:
    return f"{peer_vxlan.PREFIX}{name}"
