"""The host's transmit devices as the fast data path sees them (`fastdp.wires.Transmitters`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastdp.kernel import KernelError
from fastdp.wires import Wire
from host import transmit
from host.errors import HostError


class TransmitDevices:
    """Devices with the bridge's MTU, in octets. All of them listen on one UDP port, which the kernel chooses."""

    def __init__(self, mtu: int) -> None:
        self._mtu = mtu
        # UDP ports by the devices' numbers.
        self._ports: dict[int, int] = {}

    def found(self) -> Sequence[tuple[int, int, str]]:
        with _errors():
            devices = transmit.devices()
        self._ports = {device.number: device.listens for device in devices}
        return [(device.number, device.index, device.label) for device in devices]

    def make(self, number: int, wire: Wire) -> int:
        with _errors():
            listens = next(filter(None, self._ports.values()), 0) or transmit.free_port()
            aim = transmit.Aim(wire.local, wire.remote, wire.port, wire.vni)
            index = transmit.make(number, wire.text(), aim, listens, self._mtu)
            self._ports[number] = listens
            return index

    def remove(self, number: int) -> None:
        self._ports.pop(number, None)
        with _errors():
            transmit.remove(number)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except HostError as error:
        raise KernelError(str(error)) from error
