"""What iproute2 says of a namespace, and what is heard in it: an independent view of what we made."""

import json
import socket
from typing import Any

from tests.namespaces import run, within


def links(name: str) -> dict[str, dict[str, Any]]:
    """All links by name."""
    return {link["ifname"]: link for link in json.loads(run("ip", "-n", name, "-d", "-j", "link"))}


def port_flags(name: str, port: str) -> dict[str, Any]:
    """A bridge port's flags."""
    flags: dict[str, Any] = links(name)[port]["linkinfo"]["info_slave_data"]
    return flags


def addresses(name: str, interface: str) -> set[str]:
    """`ip/prefix` of an interface, link-local ones left out."""
    (link,) = json.loads(run("ip", "-n", name, "-j", "addr", "show", "dev", interface))
    return {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] != "link"}


def ruleset(name: str) -> str:
    """The nftables rules of a namespace."""
    return run("ip", "netns", "exec", name, "nft", "list", "ruleset")


def setting(name: str, path: str) -> str:
    """A value below /proc/sys/net."""
    return run("ip", "netns", "exec", name, "cat", f"/proc/sys/net/{path}").strip()


def watching(name: str) -> socket.socket:
    """What hears the ARP of a container."""

    def watch() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        sock.bind(("ethwe", 0x0806))
        sock.settimeout(5)
        return sock

    return within(name, watch)
