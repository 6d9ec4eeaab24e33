"""`weave attach, detach, expose, hide, ps`: addresses from the router, interfaces on this host.

The router owns the addresses; a container is connected here, where the command runs. An address that was given
(`ip:`) needs no router: it is claimed where one runs, so that it is not given to anybody else.
Source: CLI spec §2, §5.2.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Interface, ip_interface
from typing import TYPE_CHECKING, TypeVar

from weave_py.client import AbsentError, CliError, NotServedError, UsageError, api_path, call
from weave_py.words import (
    Wanted,
    is_address,
    refuse_options,
    say,
    say_addresses,
    take_flag,
    take_value,
    take_values,
    wanted,
)

if TYPE_CHECKING:
    from host.containers import Attached

BRIDGE = "weave"
EXPOSED = "weave:expose"
_PATIENCE = 3.0
_SHORT = 12
_DIGITS = set("0123456789abcdef")
_LONG = 64
T = TypeVar("T")


def on_host(work: Callable[[], T]) -> T:
    """Do something to this host's network. Raises CliError."""
    from host.errors import HostError

    if os.geteuid() != 0:
        raise CliError("this command changes network interfaces: run it as root")
    try:
        return work()
    except HostError as error:
        raise CliError(str(error)) from error


def identity(target: str) -> str:
    """By what the router knows a container. Raises CliError."""
    from host.containers import ident_of

    return on_host(lambda: ident_of(target))


# --- what the router owns ---


@contextlib.contextmanager
def _saying_that_it_waits() -> Iterator[None]:
    """On a terminal: after a while, why nothing happens."""
    text = "waiting for the router to have addresses; 'weave status ipam' says of whom it waits"
    timer = threading.Timer(_PATIENCE, lambda: print(text, file=sys.stderr))
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def owned(ident: str) -> list[str]:
    """The addresses of an ident, `ip/prefix`; none where addresses are not allocated. Raises CliError."""
    with contextlib.suppress(NotServedError):
        return call("GET", api_path("ip", ident)).split()
    return []


def obtain(ident: str, wishes: Sequence[Wanted], *, check_alive: bool) -> list[str]:
    """Allocate or claim, in order; the addresses as `ip/prefix`. Raises CliError; what is new is given back then."""
    query = {"check-alive": "true"} if check_alive else {}
    before: list[str] | None = None
    with contextlib.suppress(AbsentError):
        before = owned(ident)
    got: list[str] = []
    try:
        for wish in wishes:
            if wish.address is not None:
                # Without a router, or one that allocates, nobody else is given this address.
                with contextlib.suppress(NotServedError, AbsentError):
                    call("PUT", api_path("ip", ident, str(wish.address), **query))
                got.append(str(wish.address))
            else:
                got.append(_allocate(ident, wish.subnet, query))
    except BaseException:
        give_back(ident, [cidr for cidr in got if before is not None and cidr not in before])
        raise
    return list(dict.fromkeys(got))


def _allocate(ident: str, subnet: str, query: dict[str, str]) -> str:
    try:
        with _saying_that_it_waits():
            return call("POST", api_path("ip", ident, *filter(None, [subnet]), **query), timeout=None).strip()
    except NotServedError as error:
        raise CliError("IP address allocation must be enabled to use 'net:'") from error


def lookup(ident: str, wishes: Sequence[Wanted]) -> list[str]:
    """The addresses that are meant: those of an ident in the subnets, and those that were given."""
    found: list[str] = []
    for wish in wishes:
        if wish.address is not None:
            found.append(str(wish.address))
        else:
            with contextlib.suppress(NotServedError):
                found += call("GET", api_path("ip", ident, *filter(None, [wish.subnet]))).split()
    return list(dict.fromkeys(found))


def give_back(ident: str, cidrs: Sequence[str]) -> None:
    """Free addresses of an ident; those that it does not own are passed over, as is a router that is not there."""
    for cidr in cidrs:
        with contextlib.suppress(CliError):
            call("DELETE", api_path("ip", ident, cidr.partition("/")[0]))


def put_name(ident: str, fqdn: str, cidrs: Sequence[str], *, check_alive: bool) -> None:
    """Register a name for addresses; where names are off, that is no error. Raises CliError."""
    query = {"fqdn": fqdn, **({"check-alive": "true"} if check_alive else {})}
    for cidr in cidrs:
        with contextlib.suppress(NotServedError):
            call("PUT", api_path("name", ident, cidr.partition("/")[0], **query))


def delete_names(ident: str, cidrs: Sequence[str], **query: str) -> None:
    """Remove the names of addresses. Raises CliError."""
    for cidr in cidrs:
        with contextlib.suppress(NotServedError):
            call("DELETE", api_path("name", ident, cidr.partition("/")[0], **query))


# --- containers ---


def _split(words: Sequence[str]) -> tuple[list[Wanted], str]:
    """Addresses, then one container."""
    refuse_options(words)
    if not words or is_address(words[-1]) or not all(map(is_address, words[:-1])):
        bad = next((word for word in words[:-1] if not is_address(word)), "")
        raise UsageError(f"{bad!r} is no address" if bad else "")
    return [wanted(word) for word in words[:-1]], words[-1]


def attach(arguments: list[str]) -> int:
    """`weave attach`."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    without_dns, no_route = take_flag(words, "--without-dns"), take_flag(words, "--no-multicast-route")
    rewrite, hosts = take_flag(words, "--rewrite-hosts"), take_values(words, "--add-host")
    wishes, target = _split(words)
    from host import attach as veth
    from host import hosts as hosts_file

    ident = identity(target)
    entries = on_host(lambda: [hosts_file.entry(text) for text in hosts])
    before: Sequence[str] = ()
    with contextlib.suppress(AbsentError):
        before = owned(ident)
    cidrs = obtain(ident, wishes or [Wanted()], check_alive=True)
    try:
        addresses = [ip_interface(cidr) for cidr in cidrs]
        hairpin = os.environ.get("HAIRPIN_MODE", "true") != "false"
        on_host(lambda: veth.attach(target, addresses, multicast_route=not no_route, hairpin=hairpin))
    except BaseException:
        give_back(ident, [cidr for cidr in cidrs if cidr not in before])
        raise
    fqdn = on_host(lambda: hosts_file.full_name(target))
    if rewrite or entries:
        on_host(lambda: hosts_file.rewrite(target, fqdn, [cidr.partition("/")[0] for cidr in cidrs], entries))
    if fqdn and not without_dns:
        with contextlib.suppress(AbsentError):
            put_name(ident, fqdn, cidrs, check_alive=True)
    return say_addresses(cidrs, as_json)


def detach(arguments: list[str]) -> int:
    """`weave detach`."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    wishes, target = _split(words)
    from host.attach import detach as unplug

    ident = identity(target)
    # Only a subnet needs the router, who knows what was given from it.
    cidrs = lookup(ident, wishes)
    if wishes and not cidrs:
        return say_addresses([], as_json)
    leaving = list(on_host(lambda: unplug(target, [ip_interface(cidr) for cidr in cidrs] or None)))
    with contextlib.suppress(AbsentError):
        # What the interface lacks may be owned all the same, if somebody else took it away.
        leaving = list(dict.fromkeys([*leaving, *(cidrs or owned(ident))]))
        delete_names(ident, leaving)
        give_back(ident, leaving)
    return say_addresses(leaving, as_json)


def ps(arguments: list[str]) -> int:
    """`weave ps`."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    refuse_options(words)
    from host.containers import scan

    found = on_host(lambda: scan(BRIDGE))
    chosen = found if not words else [_named(found, word) for word in words]
    text = "".join(f"{' '.join((_short(one.ident), one.mac, *one.cidrs))}\n" for one in chosen)
    document = [
        {
            "Container": one.ident,
            "Namespace": one.namespace,
            "Interface": one.interface,
            "Port": one.port,
            "MAC": one.mac,
            "Addresses": list(one.cidrs),
        }
        for one in chosen
    ]
    return say(text, document, as_json)


def _named(found: "Sequence[Attached]", word: str) -> "Attached":
    """The one of this ident, or the first digits of its id, or the target that it is. Raises CliError."""
    fits = [one for one in found if one.ident == word] or [
        one for one in found if _is_id(one.ident) and one.ident.startswith(word)
    ]
    if not fits:
        ident = identity(word)
        fits = [one for one in found if one.ident == ident]
    if len(fits) != 1:
        many = "is not on the bridge" if not fits else "is more than one container: give more digits"
        raise CliError(f"{word} {many}")
    return fits[0]


def _is_id(ident: str) -> bool:
    return len(ident) == _LONG and set(ident) <= _DIGITS


def _short(ident: str) -> str:
    """An id as it is shown; other idents are no shorter unique."""
    return ident[:_SHORT] if _is_id(ident) else ident


# --- this host ---


def expose(arguments: list[str]) -> int:
    """`weave expose`."""
    words = list(arguments)
    as_json, plain = take_flag(words, "--json"), take_flag(words, "--without-masquerade")
    fqdn = take_value(words, "-h")
    cidrs = obtain(EXPOSED, _host_addresses(words), check_alive=False)
    for cidr in cidrs:
        call("POST", api_path("expose", cidr), [("skipNAT", "true")] if plain else ())
    if fqdn:
        put_name(EXPOSED, fqdn, cidrs, check_alive=False)
    return say_addresses(cidrs, as_json)


def hide(arguments: list[str]) -> int:
    """`weave hide`."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    cidrs = []
    for cidr in lookup(EXPOSED, _host_addresses(words)):
        try:
            stays = call("DELETE", api_path("expose", cidr))
        except NotServedError:
            # On the bridge only to serve names.
            continue
        cidrs.append(cidr)
        delete_names(EXPOSED, [cidr])
        # The router says so where it needs the address itself, to serve names on it.
        if not stays:
            give_back(EXPOSED, [cidr])
    return say_addresses(cidrs, as_json)


def _host_addresses(words: Sequence[str]) -> list[Wanted]:
    refuse_options(words)
    for word in words:
        if not is_address(word):
            raise UsageError(f"{word!r} is no address")
    wishes = [wanted(word) for word in words] or [Wanted()]
    for wish in wishes:
        if wish.address is not None and not isinstance(wish.address, IPv4Interface):
            raise CliError(f"{wish.address} is no IPv4 address: a host is exposed under IPv4")
    return wishes
