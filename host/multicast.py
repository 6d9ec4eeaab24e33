"""Multicast in a container: only from its own subnets; and no router advertisement where it would be heard.

All subnets share one layer 2, so without these rules a container would hear the groups of subnets that are not its
own. An advertisement is refused by a setting, but a router in a container may not write that. Rules live in table
`inet weave` of the container's namespace, a chain for each interface. Everything here acts in the namespace of the
calling thread. Source: data plane spec §8.
"""

from collections.abc import Sequence
from ipaddress import IPv4Interface

from host.sysctl import hears_advertisements
from nft import readback
from nft.expressions import accept, drop, icmpv6, in_interface, ip_destination, ip_source
from nft.ruleset import Hook, Transaction

TABLE = "weave"
GROUPS = "224.0.0.0/4"
_ROUTER_ADVERTISEMENT = 134


def limit(interface: str, addresses: Sequence[str]) -> None:
    """Multicast only from the subnets of these `ip/prefix`; without any, no rules at all. Raises NftError."""
    chain = f"multicast-{interface}"
    if not addresses:
        _remove(chain)
        return
    subnets = sorted({IPv4Interface(text).network for text in addresses if ":" not in text})
    with Transaction(TABLE) as change:
        change.ensure_table()
        change.add_chain(chain, Hook.INPUT)
        change.flush_chain(chain)
        if hears_advertisements(interface):
            change.add_rule(chain, in_interface(interface), icmpv6(_ROUTER_ADVERTISEMENT), drop())
        for subnet in subnets:
            change.add_rule(chain, in_interface(interface), ip_source(str(subnet)), ip_destination(GROUPS), accept())
        change.add_rule(chain, in_interface(interface), ip_destination(GROUPS), drop())


def _remove(chain: str) -> None:
    there = readback.chains(TABLE)
    if chain not in there:
        return
    with Transaction(TABLE) as change:
        if there == (chain,):
            change.delete_table()
        else:
            change.delete_chain(chain)
