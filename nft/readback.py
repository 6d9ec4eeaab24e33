"""What the kernel holds of a table: chains, rules, elements, for tests, audits and repairs.

A table, chain or set that is not there reads as empty. Source: linux/netfilter/nf_tables.h.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nft.ruleset import Family, Hook, Policy
from nft.wire import Attributes, Channel, NftError, attributes, dump, string, text

_GETTABLE, _GETCHAIN, _GETRULE, _GETELEMENT, _GETOBJ = 1, 4, 7, 13, 19
_COMMENT = 0
_VERDICTS = {0: "drop", 1: "accept", -5: "return"}
# Base (transport header), offset and size of a destination port; and both ends of its range in struct xt_tcp, xt_udp.
_DESTINATION_PORT = [2, 2, 2]
_PORTS = struct.Struct("=4xHH")
_DIRECTIONS = {6: "in ", 7: "out "}
_INTERVAL_END = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it is; `expressions` are their names in order, `packets` and `octets` those of its first counter.

    `interfaces` are what it wants of them: `in x`, `out x`, `not out x`. `verdict` is accept, drop, return, or the
    chain to which it jumps; empty where it gives none. `port` is the single destination port it wants, 0 for none.
    """

    chain: str
    handle: int
    expressions: tuple[str, ...]
    comment: str
    packets: int
    octets: int
    interfaces: tuple[str, ...]
    verdict: str
    port: int


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain at a hook, whoever made it."""

    family: Family
    table: str
    name: str
    hook: Hook
    policy: Policy


@dataclass(frozen=True, slots=True)
class Element:
    """One key of a set, in its bytes; `interval_end` is the first key behind an interval."""

    key: bytes
    interval_end: bool


def tables(family: Family = Family.INET) -> tuple[str, ...]:
    """The names of all tables of a family."""
    return tuple(text(found[1]) for found in dump(_GETTABLE, family, b"", "the tables"))


def chains(table: str, family: Family = Family.INET) -> tuple[str, ...]:
    """The chains of a table."""
    found = dump(_GETCHAIN, family, string(1, table), f"the chains of table {family.name.lower()} {table}")
    return tuple(text(chain[3]) for chain in found if text(chain[1]) == table)


def base_chains(hook: Hook) -> tuple[BaseChain, ...]:
    """All chains at a hook, of every table of the families that IP packets pass."""
    return tuple(
        BaseChain(family, text(chain[1]), text(chain[3]), hook, Policy(int.from_bytes(chain[5], "big")))
        for family in Family
        for chain in dump(_GETCHAIN, family, b"", f"the chains of family {family.name.lower()}")
        if _hook(chain) == hook
    )


def _hook(chain: Attributes) -> int | None:
    """The hook's number; None for a chain that is only jumped to."""
    return int.from_bytes(dict(attributes(chain[4]))[1], "big") if 4 in chain else None


def rules(table: str, chain: str, family: Family = Family.INET) -> tuple[Rule, ...]:
    """The rules of a chain, in order."""
    what = f"the rules of chain {family.name.lower()} {table} {chain}"
    found = _present(_GETRULE, string(1, table) + string(2, chain), what, family)
    return tuple(_rule(rule) for rule in found if text(rule[1]) == table and text(rule[2]) == chain)


def elements(table: str, name: str) -> tuple[Element, ...]:
    """The elements of a set, in the kernel's order."""
    what = f"the elements of set inet {table} {name}"
    found = _present(_GETELEMENT, string(1, table) + string(2, name), what, Family.INET)
    lists = [part[3] for part in found if 3 in part]
    return tuple(_element(dict(attributes(item))) for part in lists for _, item in attributes(part))


def counters(channel: Channel, table: str) -> dict[str, tuple[int, int]]:
    """Packets and bytes of each named counter of a table."""
    try:
        found = channel.dump(_GETOBJ, Family.INET, string(1, table), f"the counters of table inet {table}")
    except NftError as error:
        if error.errno == errno.ENOENT:
            return {}
        raise
    figures = {text(one[2]): dict(attributes(one.get(4, b""))) for one in found if text(one[1]) == table}
    return {name: (_number(figure.get(2)), _number(figure.get(1))) for name, figure in figures.items()}


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _present(kind: int, body: bytes, what: str, family: Family) -> list[Attributes]:
    try:
        return dump(kind, family, body, what)
    except NftError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _rule(found: Attributes) -> Rule:
    parts = [dict(attributes(item)) for _, item in attributes(found.get(4, b""))]
    expressions = [(text(part[1]), dict(attributes(part.get(2, b"")))) for part in parts]
    counted = next((content for name, content in expressions if name == "counter"), {})
    return Rule(
        chain=text(found[2]),
        handle=int.from_bytes(found[3], "big"),
        expressions=tuple(name for name, _ in expressions),
        comment=_comment(found.get(7, b"")) or _iptables_comment(expressions),
        packets=int.from_bytes(counted.get(2, b""), "big"),
        octets=int.from_bytes(counted.get(1, b""), "big"),
        interfaces=tuple(_interfaces(expressions)),
        verdict=next((_verdict(content) for name, content in expressions if name == "immediate"), ""),
        port=_port(expressions),
    )


def _verdict(immediate: Attributes) -> str:
    verdict = dict(attributes(dict(attributes(immediate[2])).get(2, b"")))
    code = int.from_bytes(verdict.get(1, b""), "big", signed=True)
    return text(verdict[2]) if 2 in verdict else _VERDICTS.get(code, "")


def _interfaces(expressions: Iterable[tuple[str, Attributes]]) -> Iterator[str]:
    """Names of interfaces are compared right after they were loaded."""
    loaded = ""
    for name, content in expressions:
        if name == "cmp" and loaded:
            negated = "" if content[2] == bytes(4) else "not "
            yield negated + loaded + text(dict(attributes(content[3]))[1])
        loaded = _DIRECTIONS.get(int.from_bytes(content.get(2, b""), "big"), "") if name == "meta" else ""


def _port(expressions: Iterable[tuple[str, Attributes]]) -> int:
    """The port, as nft writes it (two bytes of the transport header) or as iptables-nft does (a match)."""
    loaded = False
    for name, content in expressions:
        if name == "match" and text(content[1]) in ("tcp", "udp"):
            least, most = _PORTS.unpack_from(content[3])
            return least if least == most else 0
        if name == "cmp" and loaded:
            return int.from_bytes(dict(attributes(content[3]))[1], "big")
        header = [int.from_bytes(content.get(key, b""), "big") for key in (2, 3, 4)]
        loaded = name == "payload" and header == _DESTINATION_PORT
    return 0


def _iptables_comment(expressions: Iterable[tuple[str, Attributes]]) -> str:
    """A comment as iptables-nft keeps it, in a match that matches everything."""
    return next((text(part[3]) for name, part in expressions if name == "match" and text(part[1]) == "comment"), "")


def _comment(userdata: bytes) -> str:
    """The comment among the type-length-value items that nft keeps with a rule."""
    position = 0
    while position + 2 <= len(userdata):
        kind, size = userdata[position], userdata[position + 1]
        if kind == _COMMENT:
            return text(userdata[position + 2 : position + 2 + size])
        position += 2 + size
    return ""


def _element(found: Attributes) -> Element:
    key = dict(attributes(found[1]))[1]
    return Element(key, bool(int.from_bytes(found.get(3, b""), "big") & _INTERVAL_END))
