"""Whether packets between ports of a bridge pass the rules: attributes that the kernel has for each bridge.

Without them frames that stay on the bridge pass no chain, and policy is silently nothing. They are set on the bridge
alone, not for the host, and looked at again and again. Source: NPC spec §3.
"""

from ipaddress import ip_address
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

IPVS_DEVICE = "kube-ipvs0"
_BR_NETFILTER = Path("/proc/sys/net/bridge")
_ATTRIBUTES = ("IFLA_BR_NF_CALL_IPTABLES", "IFLA_BR_NF_CALL_IP6TABLES")


def ensure(name: str) -> tuple[bool, str]:
    """Whether the attributes had to be set, and why packets do not pass the rules (empty if they do).

    A bridge that is not there is none that lets packets past us. Blocks for a millisecond.
    """
    if not _BR_NETFILTER.exists():
        return (
            False,
            "the kernel has no br_netfilter: packets between pods of this node pass no rule (modprobe br_netfilter)",
        )
    try:
        with IPRoute() as ip:
            found = ip.link_lookup(ifname=name)
            if not found:
                return False, ""
            if _is_set(ip, found[0]):
                return False, ""
            ip.link("set", index=found[0], kind="bridge", br_nf_call_iptables=1, br_nf_call_ip6tables=1)
            if _is_set(ip, found[0]):
                return True, ""
    except (NetlinkError, OSError) as error:
        return False, f"unable to make packets of bridge {name} pass the rules: {error}"
    return False, f"packets of bridge {name} pass no rule: its nf_call_iptables does not stay 1"


def is_ensured(name: str) -> bool:
    """Whether a quick look at the bridge says that its packets pass the rules; if not, `ensure` knows more."""
    place = Path(f"/sys/class/net/{name}/bridge")
    try:
        return _BR_NETFILTER.exists() and all(
            (place / one).read_text().strip() == "1" for one in ("nf_call_iptables", "nf_call_ip6tables")
        )
    except OSError:
        return False


def ipvs() -> bool:
    """Whether kube-proxy is in its IPVS mode, in which packets to services do not pass FORWARD."""
    with IPRoute() as ip:
        return bool(ip.link_lookup(ifname=IPVS_DEVICE))


def addresses() -> frozenset[bytes]:
    """All addresses of this node, in network order."""
    with IPRoute() as ip:
        return frozenset(ip_address(one.get_attr("IFA_ADDRESS")).packed for one in ip.get_addr())


def _is_set(ip: IPRoute, index: int) -> bool:
    [link] = ip.get_links(index)
    about = link.get_attr("IFLA_LINKINFO")
    bridge = None if about is None else about.get_attr("IFLA_INFO_DATA")
    # What is no bridge has no ports for packets to go between.
    return bridge is None or about.get_attr("IFLA_INFO_KIND") != "bridge" or all(map(bridge.get_attr, _ATTRIBUTES))
