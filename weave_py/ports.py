"""What the router makes on its host before all else: the bridge, sleeve's port, and the kernel's data path.

The kernel's data path is had where it was not refused, where frames may travel in clear, and where the kernel lets
us; else all frames go over sleeve, and the log says why. Source: data plane spec §7, CLI spec §4.
"""

import logging
import os
from dataclasses import dataclass

from fastdp.kernel import Kernel, KernelError
from fastdp.wire import DEFAULT_MTU, OVERHEAD
from host.bridge import MAX_TAP_MTU, ensure_bridge
from host.errors import HostError
from host.mtu import fit_containers, underlay_mtu
from host.tap import CONTROL_NAME, TAP_NAME, open_control, open_tap
from host.vxlan import ensure_vxlan, remove_vxlans
from mesh.names import PeerName, format_peer_name
from weave_py.settings import Settings

# An underlay that takes at least so many octets takes jumbo frames.
_JUMBO = 2000


@dataclass(frozen=True, slots=True)
class Ports:
    """Sleeve's port as a descriptor, and what runs in the kernel, if anything; `mtu` of the bridge."""

    tap: int
    kernel: Kernel | None
    mtu: int


def prepare(settings: Settings, name: PeerName, log: logging.Logger) -> Ports:
    """Make all of it; a second start finds it. Raises HostError."""
    refusal = _refusal(settings)
    if not refusal:
        mtu = settings.mtu or (_largest(log) if settings.mtu_auto else DEFAULT_MTU)
        tap = _bridge_and_tap(settings, name, mtu, fast=True)
        try:
            kernel = _kernel(settings, mtu)
            for ident in fit_containers(settings.bridge, mtu, settings.proc_path):
                log.info("MTU of container %s lowered to %d: it was attached under a larger one", ident, mtu)
            return Ports(tap, kernel, mtu)
        except (KernelError, HostError) as error:
            os.close(tap)
            refusal = str(error)
            log.warning("frames are carried over sleeve only: %s", refusal)
    mtu = settings.mtu or MAX_TAP_MTU
    tap = _bridge_and_tap(settings, name, mtu, fast=False)
    # With what an earlier run left in the kernel every frame would be carried twice.
    remove_vxlans(settings.bridge)
    for ident in fit_containers(settings.bridge, mtu, settings.proc_path):
        log.info("MTU of container %s lowered to %d: it was attached under a larger one", ident, mtu)
    return Ports(tap, None, mtu)


def _refusal(settings: Settings) -> str:
    """Why there is to be no data path in the kernel; empty if there is."""
    if not settings.fastdp:
        return "--no-fastdp"
    if settings.passwords and not settings.trusted_subnets:
        return "all frames are encrypted"
    return ""


def _largest(log: logging.Logger) -> int:
    """The MTU of `--mtu auto`: what the underlay takes, less what VXLAN adds; the default on ordinary Ethernet."""
    underlay = underlay_mtu()
    mtu = DEFAULT_MTU if underlay is None or underlay < _JUMBO else min(underlay, MAX_TAP_MTU) - OVERHEAD
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
                return ensure_vxlan(settings.bridge, port, mtu, floods=port == main)
            except HostError as error:
                raise KernelError(str(error)) from error

        return Kernel(device, main, control, TAP_NAME, CONTROL_NAME)
    except BaseException:
        os.close(control)
        raise
