"""A router that is only its control API: addresses, names and exposures in memory, with the captured texts.

Enough for the command line, on a unix socket, so that commands reach it from any network namespace.
"""

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

RANGE = IPv4Network("10.32.0.0/12")
Answer = tuple[int, str]


@dataclass(slots=True)
class FakeRouter:
    """What it holds, and every request that changed it. `off` names paths of parts that are switched off."""

    owned: dict[str, list[str]] = field(default_factory=dict)
    names: list[tuple[str, str, str]] = field(default_factory=list)
    exposed: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    off: set[str] = field(default_factory=set)
    stays: set[str] = field(default_factory=set)
    dns_port: int = 53

    def answer(self, method: str, target: str, body: str) -> Answer:
        """Status and body."""
        parts = urlsplit(target)
        words = [unquote(word) for word in parts.path.strip("/").split("/")]
        query = {**dict(parse_qsl(parts.query)), **dict(parse_qsl(body))}
        if method != "GET":
            self.requests.append(f"{method} {unquote(target)}{f' {body}' if body else ''}")
        if words[0] in self.off:
            return 404, "404 page not found\n"
        match method, words:
            case "GET", ["status"]:
                return 200, ""
            case "GET", ["ring"]:
                return 200, ""
            case "GET", ["domain"]:
                return 200, "weave.local."
            case "GET", ["dns-address"]:
                return 200, "127.0.0.1"
            case "GET", ["dns-address-port"]:
                return 200, f"127.0.0.1:{self.dns_port}"
            case "DELETE", ["peer", name]:
                return 200, f"{131072 if name == 'host2' else 0} IPs taken over from {name}\n"
            case "DELETE", ["peer"]:
                return 204, ""
            case _, ["ip", ident, *rest]:
                return self._ip(method, ident, "/".join(rest))
            case "POST", ["expose", address, prefix]:
                self.exposed[f"{address}/{prefix}"] = query.get("skipNAT") != "true"
                return 204, ""
            case "DELETE", ["expose", address, prefix]:
                there = self.exposed.pop(f"{address}/{prefix}", None) is not None
                if address not in self.stays:
                    return 204, ""
                return (200, "it serves names\n") if there else (404, "it is not exposed\n")
            case "PUT", ["name", ident, address]:
                self.names.append((ident, address, query["fqdn"]))
                return 204, ""
            case "DELETE", ["name", ident, *rest]:
                gone = [
                    row
                    for row in self.names
                    if row[0] == ident and row[1] in (rest or [row[1]]) and query.get("fqdn", row[2]) == row[2]
                ]
                self.names = [row for row in self.names if row not in gone]
                return 204, ""
        return 404, "404 page not found\n"

    def _ip(self, method: str, ident: str, rest: str) -> Answer:
        held = self.owned.setdefault(ident, [])
        if method == "DELETE":
            gone = [cidr for cidr in held if cidr.partition("/")[0] == rest]
            if not gone:
                return 400, f"Unable to free: Free: address {rest} not found for {ident}\n"
            held.remove(gone[0])
            return 204, ""
        if method == "PUT":
            owner = next((one for one, cidrs in self.owned.items() if rest in cidrs), ident)
            if owner != ident:
                return 400, f"Unable to claim: address {rest} is already owned by {owner}\n"
            self.owned[ident] = list(dict.fromkeys([*held, rest]))
            return 204, ""
        subnet = IPv4Network(rest) if rest else RANGE
        mine = [cidr for cidr in held if IPv4Interface(cidr).network == subnet]
        if method == "GET":
            return 200, " ".join(mine if rest else held)
        if not subnet.subnet_of(RANGE):
            return 400, f"range {subnet} out of bounds: {RANGE}\n"
        if not mine:
            taken = {cidr.partition("/")[0] for cidrs in self.owned.values() for cidr in cidrs}
            free = next(str(host) for host in subnet.hosts() if str(host) not in taken)
            mine = [f"{free}/{subnet.prefixlen}"]
            held += mine
        return 200, mine[0]


@contextlib.contextmanager
def served(router: FakeRouter, path: Path) -> Iterator[str]:
    """The router's API on a unix socket; yields its path."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            status, text = router.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            if text:
                self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815

        def address_string(self) -> str:
            return "local"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield str(path)
        finally:
            server.shutdown()
            thread.join()
