"""Links as the kernel has them. Source: rtnetlink(7)."""

from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

_SCOPE_LINK = 253
_NO_NUMBER = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `peer` is the index of a veth's other end, `peer_namespace` says which namespace has that.

    Each namespace numbers the others for itself; None is the same one. `alias` is what was written on it, if anything.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    master: int | None
    peer: int | None
    peer_namespace: int | None
    alias: str = ""


def links(ip: IPRoute) -> tuple[Link, ...]:
    """All interfaces of a namespace."""
    return tuple(_link(found) for found in ip.get_links())


def by_name(ip: IPRoute, name: str) -> Link | None:
    """The interface of this name."""
    found = ip.link_lookup(ifname=name)
    return by_index(ip, int(found[0])) if found else None


def by_index(ip: IPRoute, index: int) -> Link | None:
    """The interface of this index."""
    try:
        found = ip.get_links(index)
    except NetlinkError:
        return None
    return _link(found[0]) if found else None


def exists(name: str) -> bool:
    """Whether there is an interface of this name."""
    with IPRoute() as ip:
        return bool(ip.link_lookup(ifname=name))


def _link(found: object) -> Link:
    attribute = found.get_attr  # type: ignore[attr-defined]
    information = attribute("IFLA_LINKINFO")
    kind = "" if information is None else str(information.get_attr("IFLA_INFO_KIND") or "")
    return Link(
        index=int(found["index"]),  # type: ignore[index]
        name=str(attribute("IFLA_IFNAME")),
        kind=kind,
        mac=str(attribute("IFLA_ADDRESS")),
        mtu=int(attribute("IFLA_MTU")),
        master=attribute("IFLA_MASTER"),
        peer=attribute("IFLA_LINK") if kind == "veth" else None,
        peer_namespace=attribute("IFLA_LINK_NETNSID"),
        alias=str(attribute("IFLA_IFALIAS") or ""),
    )


def addresses(ip: IPRoute, index: int) -> list[str]:
    """All addresses of an interface but the link-local ones, `ip/prefix`."""
    return [
        f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
        for address in ip.get_addr(index=index)
        if address["scope"] != _SCOPE_LINK
    ]


def own_addresses() -> frozenset[str]:
    """All addresses of this host, without prefix length."""
    with IPRoute() as ip:
        found = [row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS") for row in ip.get_addr()]
    return frozenset(map(str, found))


def ports(bridge: str) -> tuple[Link, ...]:
    """The ports of a bridge; none if there is no such bridge."""
    with IPRoute() as ip:
        master = by_name(ip, bridge)
        return () if master is None else tuple(link for link in links(ip) if link.master == master.index)


def namespace_number(ip: IPRoute, descriptor: int) -> int | None:
    """The number by which our namespace knows another; None if it has none."""
    number = int(ip.get_netnsid(fd=descriptor)["nsid"])
    return None if number == _NO_NUMBER else number
