"""`weave dns-add, dns-remove, dns-lookup, dns-args`: the names of the mesh.

Source: CLI spec §2, DNS spec §4, RFC 1035 §4.
"""

import contextlib
import secrets
import socket
import struct
from dataclasses import dataclass

from weave_py.cli_addresses import BRIDGE, delete_names, identity, on_host, put_name
from weave_py.client import CliError, NotServedError, UsageError, api_path, call
from weave_py.words import is_plain_address, refuse_options, say, take_flag, take_value

EXTERN = "weave:extern"
# The exit code of dig where no server answers.
_NO_ANSWER = 9
_HEADER = struct.Struct(">HHHHHH")
_RECURSION_DESIRED, _TRUNCATED = 0x0100, 0x0200
# An OPT record (RFC 6891): the root's name, its type, and that we take 1232 octets.
_EDNS = b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)
_A, _IN = 1, 1
_TIMEOUT, _ATTEMPTS = 5.0, 3
_POINTER = 0xC0


@dataclass(frozen=True, slots=True)
class _Named:
    """Whose names: a container's, or those of no container (`container` is empty then)."""

    container: str
    addresses: list[str]
    fqdn: str


def _parse(arguments: list[str]) -> _Named:
    """`[<ip> ...] <container> [-h <fqdn>]` or `<ip> ... -h <fqdn>`."""
    words = list(arguments)
    fqdn = take_value(words, "-h")
    refuse_options(words)
    addresses = [word for word in words if is_plain_address(word)]
    others = words[len(addresses) :]
    if words[: len(addresses)] != addresses or len(others) > 1 or not words or not (others or fqdn):
        raise UsageError("")
    return _Named(others[0] if others else "", addresses, fqdn)


def add(arguments: list[str]) -> int:
    """`weave dns-add`."""
    named = _parse(arguments)
    if not named.container:
        put_name(EXTERN, named.fqdn, named.addresses, check_alive=False)
        return 0
    from host.hosts import full_name

    ident = identity(named.container)
    addresses = named.addresses or _addresses_of(ident)
    fqdn = named.fqdn or on_host(lambda: full_name(named.container))
    if not addresses:
        raise CliError(f"{named.container} has no address on the bridge: attach it, or give addresses")
    if not fqdn:
        raise CliError(f"{named.container} has no host name with a domain: give one with -h")
    put_name(ident, fqdn, addresses, check_alive=True)
    return 0


def remove(arguments: list[str]) -> int:
    """`weave dns-remove`."""
    named = _parse(arguments)
    query = {"fqdn": named.fqdn} if named.fqdn else {}
    if not named.container:
        delete_names(EXTERN, named.addresses, **query)
        return 0
    try:
        ident = identity(named.container)
    except CliError:
        # It ended: whatever it was called is what its names are kept under.
        ident = named.container
    if named.addresses:
        delete_names(ident, named.addresses, **query)
    else:
        with contextlib.suppress(NotServedError):
            call("DELETE", api_path("name", ident, **query))
    return 0


def _addresses_of(ident: str) -> list[str]:
    from host.containers import scan

    found = on_host(lambda: scan(BRIDGE))
    return [cidr.partition("/")[0] for one in found if one.ident == ident for cidr in one.cidrs if ":" not in cidr]


def args(arguments: list[str]) -> int:
    """`weave dns-args`."""
    if arguments:
        raise UsageError("")
    with contextlib.suppress(NotServedError):
        domain, server = call("GET", "/domain").strip(), call("GET", "/dns-address").strip()
        print(f"--dns={server} --dns-search={domain}", end="")
    return 0


def look_up(arguments: list[str]) -> int:
    """`weave dns-lookup`."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    refuse_options(words)
    if len(words) != 1:
        raise UsageError("")
    try:
        domain, server = call("GET", "/domain").strip(), call("GET", "/dns-address-port").strip()
    except NotServedError as error:
        raise CliError("the name service is off: the router was started with --no-dns") from error
    found = _ask(server, _full_name(words[0], domain))
    return say("".join(f"{one}\n" for one in found), found, as_json)


def _full_name(name: str, domain: str) -> str:
    """The name within the domain, unless it has that or ends by a dot."""
    plain = domain.rstrip(".")
    return name.rstrip(".") if name.endswith((".", f".{plain}")) else f"{name}.{plain}"


def _ask(server: str, name: str) -> list[str]:
    """The addresses of a name. Raises CliError where the server does not answer."""
    host, _, port = server.rpartition(":")
    number = secrets.randbits(16)
    try:
        labels = [label.encode("idna") for label in name.split(".")]
        question = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    except (UnicodeError, ValueError):
        raise CliError(f"{name!r} is no name: its parts have 1 to 63 characters") from None
    query = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 1) + question + struct.pack(">HH", _A, _IN) + _EDNS
    # A server that listens on every address is asked on this host.
    target = ("127.0.0.1" if host == "0.0.0.0" else host.strip("[]"), int(port))
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_TIMEOUT / _ATTEMPTS)
        for _ in range(_ATTEMPTS):
            try:
                sock.connect(target)
                sock.send(query)
                answer = sock.recv(65535)
            except OSError:
                continue
            if answer[:2] == query[:2]:
                return _answers(_ask_whole(target, query) if _is_cut(answer) else answer)
    raise CliError(f"the name service at {server} does not answer", _NO_ANSWER)


def _is_cut(answer: bytes) -> bool:
    return len(answer) >= _HEADER.size and bool(_HEADER.unpack_from(answer)[1] & _TRUNCATED)


def _ask_whole(target: tuple[str, int], query: bytes) -> bytes:
    """The answer over TCP, where it did not fit a datagram. Raises CliError."""
    try:
        with socket.create_connection(target, timeout=_TIMEOUT) as sock, sock.makefile("rb") as stream:
            sock.sendall(struct.pack(">H", len(query)) + query)
            return stream.read(int.from_bytes(stream.read(2), "big"))
    except OSError as error:
        raise CliError(f"the name service does not answer over TCP: {error}", _NO_ANSWER) from error


def _answers(message: bytes) -> list[str]:
    """The IPv4 addresses of an answer. Raises CliError on bytes that are none."""
    try:
        _, _, questions, answers, _, _ = _HEADER.unpack_from(message)
        position = _HEADER.size
        for _ in range(questions):
            position = _skip_name(message, position) + 4
        found = []
        for _ in range(answers):
            position = _skip_name(message, position)
            kind, _, _, size = struct.unpack_from(">HHIH", message, position)
            position += 10
            if kind == _A and size == 4:
                found.append(socket.inet_ntoa(message[position : position + 4]))
            position += size
    except (struct.error, IndexError, OSError):
        raise CliError("the name service answered with bytes that are no answer", _NO_ANSWER) from None
    return found


def _skip_name(message: bytes, position: int) -> int:
    while size := message[position]:
        if size >= _POINTER:
            return position + 2
        position += 1 + size
    return position + 1
