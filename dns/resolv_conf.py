"""Which servers a resolv.conf names: read by lines, whatever else it holds.

Only `nameserver` lines count. No text is an error: options of systemd-resolved once ended Weave Net's router.
Source: resolv.conf(5); DNS spec §8, §14 (F1, F9).
"""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

PORT = 53
_MOST = 16


class Server(NamedTuple):
    """An upstream server; the host is an IP address, of IPv6 perhaps with a scope."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        """As status shows it: the port only where it is another one."""
        if self.port == PORT:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_resolv_conf(text: str, own_host: str) -> list[Server]:
    """The servers in their order, without our own listen address and without repetitions; at most 16."""
    hosts: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and words[1] != own_host and _is_address(words[1]):
            hosts.append(words[1])
    return [Server(host) for host in dict.fromkeys(hosts)][:_MOST]


def parse_servers(texts: Iterable[str]) -> list[Server]:
    """Servers as `--dns-upstream` has them: IP, IP:PORT, [IP6]:PORT. Raises ValueError with the line to show."""
    return list(dict.fromkeys(_server(text.strip()) for text in texts if text.strip()))[:_MOST]


def _server(text: str) -> Server:
    host, port = text, str(PORT)
    if text.startswith("[") or text.count(":") == 1:
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if text.endswith("]"):
            host, port = text[1:-1], str(PORT)
    if not _is_address(host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f'invalid DNS upstream "{text}", should be IP[:PORT]')
    return Server(host, int(port))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
