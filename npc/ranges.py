"""Arithmetic of address blocks and ports: what the kernel's interval sets are given is sorted and disjoint.

Source: NPC spec §2 (ipBlock, Port), §4.3.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from npc.plan import PortRange

Network = IPv4Network | IPv6Network
Span = tuple[int, int]


def spans(blocks: Iterable[tuple[Network, tuple[Network, ...]]]) -> tuple[Span, ...]:
    """The union of blocks of one family, each less its exceptions, as (first, last) numbers.

    An exception takes nothing from another block.
    """
    found: list[Span] = []
    for network, exceptions in blocks:
        found += _subtract(_span(network), merged(_span(each) for each in exceptions))
    return merged(found)


def _span(network: Network) -> Span:
    return int(network.network_address), int(network.broadcast_address)


def _subtract(whole: Span, holes: Iterable[Span]) -> list[Span]:
    """What is left of a range without others, which are sorted and disjoint."""
    left: list[Span] = []
    first, last = whole
    for hole_first, hole_last in holes:
        if hole_last < first or hole_first > last:
            continue
        if hole_first > first:
            left.append((first, hole_first - 1))
        first = hole_last + 1
    if first <= last:
        left.append((first, last))
    return left


def merged(ranges: Iterable[Span]) -> tuple[Span, ...]:
    """Ranges as sorted, disjoint ones that do not touch."""
    result: list[Span] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def merged_ports(ports: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Port ranges as sorted, disjoint ones, protocol by protocol."""
    listed = list(ports)
    return tuple(
        PortRange(protocol, first, last)
        for protocol in sorted({each.protocol for each in listed})
        for first, last in merged((each.first, each.last) for each in listed if each.protocol == protocol)
    )
