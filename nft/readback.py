"""What the kernel holds of a table: chains, rules, elements, for tests, audits and repairs.

A table, chain or set that is not there reads as empty. Source: linux/netfilter/nf_tables.h.
"""

import errno
from dataclasses import dataclass

from nft.ruleset import INET
from nft.wire import Attributes, NftError, attributes, dump, string, text

_GETTABLE, _GETCHAIN, _GETRULE, _GETELEMENT = 1, 4, 7, 13
_COMMENT = 0
_INTERVAL_END = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it is; `expressions` are their names in order, `packets` and `octets` those of its first counter."""

    chain: str
    handle: int
    expressions: tuple[str, ...]
    comment: str
    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class Element:
    """One key of a set, in its bytes; `interval_end` is the first key behind an interval."""

    key: bytes
    interval_end: bool


def tables() -> tuple[str, ...]:
    """The names of all `inet` tables."""
    return tuple(text(found[1]) for found in dump(_GETTABLE, INET, b"", "the tables"))


def chains(table: str) -> tuple[str, ...]:
    """The chains of a table."""
    found = dump(_GETCHAIN, INET, string(1, table), f"the chains of table inet {table}")
    return tuple(text(chain[3]) for chain in found if text(chain[1]) == table)


def rules(table: str, chain: str) -> tuple[Rule, ...]:
    """The rules of a chain, in order."""
    what = f"the rules of chain inet {table} {chain}"
    found = _present(_GETRULE, string(1, table) + string(2, chain), what)
    return tuple(_rule(rule) for rule in found if text(rule[1]) == table and text(rule[2]) == chain)


def elements(table: str, name: str) -> tuple[Element, ...]:
    """The elements of a set, in the kernel's order."""
    found = _present(_GETELEMENT, string(1, table) + string(2, name), f"the elements of set inet {table} {name}")
    lists = [part[3] for part in found if 3 in part]
    return tuple(_element(dict(attributes(item))) for part in lists for _, item in attributes(part))


def _present(kind: int, body: bytes, what: str) -> list[Attributes]:
    try:
        return dump(kind, INET, body, what)
    except NftError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _rule(found: Attributes) -> Rule:
    expressions = [dict(attributes(item)) for _, item in attributes(found.get(4, b""))]
    packets = octets = 0
    for expression in expressions:
        if text(expression[1]) == "counter":
            counted = dict(attributes(expression[2]))
            packets, octets = int.from_bytes(counted[2], "big"), int.from_bytes(counted[1], "big")
            break
    return Rule(
        chain=text(found[2]),
        handle=int.from_bytes(found[3], "big"),
        expressions=tuple(text(expression[1]) for expression in expressions),
        comment=_comment(found.get(7, b"")),
        packets=packets,
        octets=octets,
    )


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
