"""What the router makes on its host before all else: the bridge, sleeve's port, and the kernel's data path.

The kernel's data path is had where it was not refused, where the kernel encrypts if it has to, and where it lets us:
by programs, or where it takes none by a VXLAN device for every peer. Else all frames go over sleeve, and the log says
why. Source: data plane spec §7, CLI spec §4.
"""

import asyncio
import logging
import os
from dataclasses import dataclass

from fastdp import esp
from fastdp.datapath import FastDataPath
from fastdp.direct import DirectDataPath
from fastdp.ipsec import Security
from fastdp.kernel import Kernel, KernelError
from fastdp.wire import DEFAULT_MTU, OVERHEAD
from host import peer_vxlan
from host.bridge import MAX_TAP_MTU, ensure_bridge
from host.errors import HostError
from host.mtu import fit_containers, underlay_mtu
from host.tap import CONTROL_NAME, TAP_NAME, open_control, open_tap
from host.vxlan import ensure_vxlan, remove_vxlan, remove_vxlans
from mesh.names import PeerName, format_peer_name
from overlay.seams import Topology
from weave_py.direct_devices import DirectDevices
from weave_py.encryption import security
from weave_py.settings import Settings
from weave_py.transmit_devices import TransmitDevices

# An underlay that takes at least so many octets takes jumbo frames.
_JUMBO = 2000


@dataclass(frozen=True, slots=True)
class Ports:
    """Sleeve's port as a descriptor; what runs in the kernel, or devices of peers, or neither; `mtu` of the bridge.

    `problem` is why there are no programs.
    """

    tap: int
    kernel: Kernel | None
    mtu: int
    security: Security
    devices: DirectDevices | None = None
    problem: str = ""

    @property
    def lacks(self) -> str:
        """What there should be and is not, for status: the fast data path, unless nobody wants it."""
        return f"no fastdp: {self.problem}" if self.problem else ""

    @property
    def former(self) -> int | None:
        """The short id of the router before this one, where the kernel still goes by it."""
        if self.kernel is not None:
            return self.kernel.former
        return None if self.devices is None else self.devices.former

    def fast_path(
        self, loop: asyncio.AbstractEventLoop, topology: Topology, port: int, log: logging.Logger
    ) -> FastDataPath | DirectDataPath | None:
        """The fast data path above it, for a router of this mesh port."""
        if self.kernel is not None:
            return FastDataPath(
                loop, topology, self.kernel, port=port, mtu=self.mtu, security=self.security, log=log,
                transmitters=TransmitDevices(self.mtu),
            )  # fmt: skip
        if self.devices is not None:
            return DirectDataPath(loop, topology, self.devices, port=port, mtu=self.mtu, problem=self.problem, log=log)
        return None


def prepare(settings: Settings, name: PeerName, log: logging.Logger) -> Ports:
    """Make all of it; a second start finds it. Raises HostError."""
    secured = security(settings, log)
    refusal = _refusal(settings, secured)
    if not refusal:
        mtu = settings.mtu or (_largest(secured, log) if settings.mtu_auto else DEFAULT_MTU)
        for way in (_by_programs, _by_peer):
            try:
                made = way(settings, name, mtu, secured, refusal, log)
            except (KernelError, HostError) as error:
                refusal = f"{refusal}; {error}" if refusal else str(error)
            else:
                _fit(settings, mtu, log)
                return made
        log.warning("frames are carried over sleeve only: %s", refusal)
    mtu = settings.mtu or MAX_TAP_MTU
    tap = _bridge_and_tap(settings, name, mtu, fast=False)
    # With what an earlier run left in the kernel every frame would be carried twice.
    remove_vxlans(settings.bridge)
    peer_vxlan.remove_all(settings.bridge)
    _fit(settings, mtu, log)
    return Ports(tap, None, mtu, secured, problem=refusal if settings.fastdp else "")


def _fit(settings: Settings, mtu: int, log: logging.Logger) -> None:
    for ident in fit_containers(settings.bridge, mtu, settings.proc_path):
        log.info("MTU of container %s lowered to %d: it was attached under a larger one", ident, mtu)


def _by_programs(
    settings: Settings, name: PeerName, mtu: int, secured: Security, problem: str, log: logging.Logger
) -> Ports:
    """The kernel's programs. Raises HostError, KernelError."""
    tap = _bridge_and_tap(settings, name, mtu, fast=True)
    try:
        return Ports(tap, _kernel(settings, mtu), mtu, secured)
    except BaseException:
        os.close(tap)
        raise


def _by_peer(
    settings: Settings, name: PeerName, mtu: int, secured: Security, problem: str, log: logging.Logger
) -> Ports:
    """A device for every peer, where the kernel takes no program. Raises HostError, KernelError."""
    tap = _bridge_and_tap(settings, name, mtu, fast=False)
    try:
        # The port's devices of either kind exclude those of the other.
        remove_vxlans(settings.bridge)
        remove_vxlan(settings.port + 1)
        if secured.wanted:
            # What an earlier router left joined there carries frames in clear.
            peer_vxlan.remove_all(settings.bridge)
        devices = DirectDevices(settings.bridge, mtu)
        devices.check(settings.port + 1)
    except BaseException:
        os.close(tap)
        raise
    log.warning("the kernel carries frames between direct peers only, by a device each: %s", problem)
    return Ports(tap, None, mtu, secured, devices, problem)


def _refusal(settings: Settings, secured: Security) -> str:
    """Why there is to be no data path in the kernel; empty if there is."""
    if not settings.fastdp:
        return "--no-fastdp"
    if secured.problem and not settings.trusted_subnets:
        return f"encrypted without ESP: {secured.problem}"
    return ""


def _largest(secured: Security, log: logging.Logger) -> int:
    """The MTU of `--mtu auto`: what the underlay takes, less VXLAN and ESP; the default on ordinary Ethernet."""
    underlay = underlay_mtu()
    added = OVERHEAD + (esp.MOST if secured.wanted and not secured.problem else 0)
    mtu = DEFAULT_MTU if underlay is None or underlay < _JUMBO else min(underlay, MAX_TAP_MTU) - added
    log.info("MTU %d, chosen by the underlay's %s", mtu, underlay or "default route, of which there is none")
    return mtu


def _bridge_and_tap(settings: Settings, name: PeerName, mtu: int, *, fast: bool) -> int:
    # The TAP tells whether another router runs here, before anything is changed under it.
    ensure_bridge(settings.bridge, format_peer_name(name), mtu)
    return open_tap(settings.bridge, mtu, unknown=not fast)


def _kernel(settings: Settings, mtu: int) -> Kernel:
    control = open_control(MAX_TAP_MTU)
    try:
        main = settings.port + 1

        def device(port: int) -> int:
            try:
                peer_vxlan.remove_all(settings.bridge)
                return ensure_vxlan(settings.bridge, port, mtu, floods=port == main)
            except HostError as error:
                raise KernelError(str(error)) from error

        return Kernel(device, main, control, TAP_NAME, CONTROL_NAME)
    except BaseException:
        os.close(control)
        raise
