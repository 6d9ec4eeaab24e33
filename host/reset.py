"""Removing from a host what we and Weave Net 2.8 made there: links, and packet rules.

Containers lose their interface with its other end here; the rules in their namespaces go before that, while there is
still a way to find them. Source: data plane spec §9, CLI spec §11.
"""

import contextlib
import errno
from functools import partial

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import multicast, netns, peer_vxlan, rules, vxlan
from host.bridge import DATAPATH, error_text
from host.containers import containers
from host.errors import HostError
from host.iptables import remove_old
from host.links import Link, by_name, links
from nft.wire import NftError

_PREFIX = "vethwe"


def reset(bridge: str) -> list[str]:
    """Remove everything of ours on this host; what was removed, a name each. Raises HostError."""
    removed: list[str] = []
    for container in containers(bridge):
        # A container that ends meanwhile takes its rules along.
        with contextlib.suppress(HostError, NftError, OSError):
            netns.inside(container.namespace, partial(multicast.limit, container.interface, ()))
    try:
        with IPRoute() as ip:
            master = by_name(ip, bridge)
            index = None if master is None else master.index
            removed += [link.name for link in links(ip) if _is_ours(link, bridge, index) and _deleted(ip, link)]
        removed += rules.remove()
        removed += remove_old(bridge)
    except (NetlinkError, NftError, OSError) as error:
        raise HostError(f"unable to remove everything: {error_text(error)}") from error
    return removed


def _is_ours(link: Link, bridge: str, index: int | None) -> bool:
    named = link.name == bridge or link.name.startswith(_PREFIX)
    device = vxlan.is_ours(link, index) or peer_vxlan.is_ours(link)
    return named or device or (link.name, link.kind) == (DATAPATH, "openvswitch")


def _deleted(ip: IPRoute, link: Link) -> bool:
    """Whether it was still there: one end of a pair takes the other along."""
    try:
        ip.link("del", index=link.index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        return False
    return True
