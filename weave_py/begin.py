"""What a start takes from the state of the last run: the store itself, our name, the peers to dial.

A router without its state would give addresses out twice, so one that cannot have it does not start.
Source: CLI spec §4 (crash recovery), §9; Kubernetes and CNI spec §6; mesh spec §13.
"""

import contextlib
import logging
import os
from collections.abc import Sequence

from host.bridge import bridge_mac
from host.identity import system_name
from ipam import wire
from mesh.gob import GobError
from mesh.names import PeerName, format_peer_name, parse_peer_name
from weave_py.settings import Settings
from weave_py.store import Store, StoreError, default_prefix


def open_store(settings: Settings, log: logging.Logger) -> Store:
    """The store, with a word about what it is. Raises StoreError."""
    store = Store(settings.db_prefix or default_prefix())
    if store.imported is not None:
        log.info("Took over the state of Weave Net from %s, which is kept", store.imported)
    if store.lost is not None:
        log.error("%s; no address is given out before the ring is known again", store.lost)
    if store.weave_net_wrote:
        log.error("Weave Net wrote %s after %s had begun; 'weave doctor' says more", store.weave_net_wrote, store.path)
    return store


def known_name(settings: Settings) -> PeerName:
    """The name under which a router would start, without one. Raises HostError."""
    if settings.name is not None:
        return settings.name
    prefix = settings.db_prefix or default_prefix()
    stored = None
    # A running router holds its state, and then the bridge has the name.
    with contextlib.suppress(StoreError):
        if os.path.exists(f"{prefix}data.sqlite") or os.path.exists(f"{prefix}data.db"):
            store = Store(prefix)
            stored = store.peer_name()
            store.close()
    return _found_name(settings) if stored is None else stored


def _found_name(settings: Settings) -> PeerName:
    return parse_peer_name(bridge_mac(settings.bridge) or system_name(settings.host_root))


def choose_name(settings: Settings, store: Store, log: logging.Logger) -> PeerName:
    """The name given, else that of the state, else the existing bridge's, else the machine's. Raises HostError.

    Ring and addresses are kept under a name; one that was chosen once outlives the bridge and a new machine id.
    """
    stored = store.peer_name()
    if settings.name is not None:
        name = settings.name
    else:
        found = _found_name(settings)
        name = found if stored is None else stored
        if name != found:
            log.warning(
                "going on as %s, the name of the state in %s, though this host would be %s; if it is a copy of another "
                "host, 'weave reset' it",
                *(format_peer_name(name), store.path, format_peer_name(found)),
            )
    if name != stored:
        copy = store.set_peer_name(name)
        if copy is not None and stored is not None:
            former = format_peer_name(stored)
            log.warning("Deleting persisted data for peername %s; a copy of the state is %s", former, copy)
    return name


def leave_former_range(settings: Settings, store: Store, log: logging.Logger) -> None:
    """Delete ring and addresses of another range than the one given, once there is a copy. Raises StoreError.

    A ring that cannot be read is left to whoever loads it. Source: IPAM spec §14, cure D12 of §21.
    """
    universe, ring = settings.ipalloc_range, store.ring()
    if universe is None or ring is None:
        return
    try:
        bounds = wire.decode_ring(ring).bounds
    except GobError:
        return
    if bounds != universe.range:
        former = wire.bounds_text(bounds)
        copy = store.forget_addresses(former.replace("/", "-"))
        text = "Deleting persisted data for IPAM range %s; our range is %s; a copy of the state is %s"
        log.warning(text, former, universe, copy)


def choose_peers(settings: Settings, store: Store, log: logging.Logger) -> Sequence[str]:
    """The stored list after a crash or with `--resume`, else the peers given."""
    if settings.resume or store.was_running():
        peers: Sequence[str] = store.direct_peers()
        log.info("Restart/resume detected - using persisted peer list: [%s]", " ".join(peers))
    else:
        peers = settings.peers
        log.info("Launch detected - using supplied peer list: [%s]", " ".join(peers))
    return peers
