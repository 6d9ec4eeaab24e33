"""A table as it was meant and as it is, in one form, so that the two can be compared.

What is meant is read from the messages of the transaction that would write the whole table; what is there, from the
kernel. Counted packets, handles and numbers that the kernel gives are no part of it.
Source: linux/netfilter/nf_tables.h.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nft.ruleset import Family
from nft.wire import Attributes, Channel, Message, NftError, attributes, string, text

_DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEMENT, _NEWOBJ = 2, 3, 6, 9, 12, 18
_GETCHAIN, _GETRULE, _GETSET, _GETELEMENT, _GETOBJ = 4, 7, 10, 13, 19
_ANONYMOUS = 0x1
_SET_FLAGS = 0xFF

# What of an expression is data: a value, or a verdict.
_DATA = {"cmp": (3,), "immediate": (2,), "bitwise": (4, 5), "range": (3, 4)}

# An element: key, last key of a concatenated interval, flags, verdict.
Entry = tuple[bytes, bytes, int, object]
# An expression: its name, and what it says.
Step = tuple[str, object]


@dataclass(slots=True)
class Contents:
    """A table. Chains map to hook, priority and policy (empty for one that is jumped to), sets to flags and types.

    `missing` says that there is no such table.
    """

    missing: bool = False
    chains: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    rules: dict[str, list[tuple[Step, ...]]] = field(default_factory=dict)
    sets: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    entries: dict[str, frozenset[Entry]] = field(default_factory=dict)
    counters: frozenset[str] = frozenset()


def intended(messages: Iterable[Message]) -> Contents:
    """The table that these messages make, which begin by an empty one. Raises NftError on messages that are cut."""
    made = Contents()
    entries: dict[str, set[Entry]] = {}
    counters: set[str] = set()
    for message in messages:
        found = dict(attributes(message.body))
        if message.kind == _DELTABLE:
            made, entries, counters = Contents(), {}, set()
        elif message.kind == _NEWCHAIN:
            _chain(made, found)
        elif message.kind == _NEWRULE:
            made.rules.setdefault(text(found[2]), []).append(_steps(found, entries))
        elif message.kind == _NEWSET:
            name = _set_name(found, 2, 10)
            entries.setdefault(name, set())
            if name == text(found[2]):
                made.sets[name] = _set(found)
        elif message.kind == _NEWELEMENT:
            entries.setdefault(_set_name(found, 2, 4), set()).update(_entries(found))
        elif message.kind == _NEWOBJ:
            counters.add(text(found[2]))
    made.entries = {name: frozenset(entries.get(name, ())) for name in made.sets}
    made.counters = frozenset(counters)
    return made


def read(channel: Channel, table: str, family: Family = Family.INET) -> Contents:
    """The table that is there. Raises NftError."""
    name = string(1, table)
    try:
        chains = [one for one in _dump(channel, _GETCHAIN, family, b"", "chains", table) if text(one[1]) == table]
        sets = _dump(channel, _GETSET, family, name, "sets", table)
        rules = _dump(channel, _GETRULE, family, name, "rules", table)
        counters = _dump(channel, _GETOBJ, family, name, "counters", table)
        entries = {}
        for one in sets:
            called = text(one[2])
            rows = channel.dump(_GETELEMENT, family, name + string(2, called), f"elements of set {table} {called}")
            entries[called] = {entry for row in rows for entry in _entries(row)}
    except NftError as error:
        if error.errno != errno.ENOENT:
            raise
        return Contents(missing=True)
    found = Contents(missing=not chains and not sets)
    for one in chains:
        _chain(found, one)
    for one in rules:
        if text(one[1]) == table:
            found.rules.setdefault(text(one[2]), []).append(_steps(one, entries))
    found.sets = {text(one[2]): _set(one) for one in sets if not _number(one.get(3, b"")) & _ANONYMOUS}
    found.entries = {called: frozenset(entries[called]) for called in found.sets}
    found.counters = frozenset(text(one[2]) for one in counters if text(one[1]) == table)
    return found


def differences(wanted: Contents, found: Contents) -> list[str]:
    """What is not as it was meant, an object each in words; empty if nothing."""
    if found.missing:
        return ["the table is gone"]
    rows = [*_different("chain", wanted.chains, found.chains), *_different("set", wanted.sets, found.sets)]
    for name, rules in wanted.rules.items():
        if name in found.chains and found.rules.get(name, []) != rules:
            rows.append(f"rules of chain {name}")
    rows += [f"rules of chain {name}" for name in found.rules if name in wanted.chains and name not in wanted.rules]
    for name, entries in wanted.entries.items():
        there = found.entries.get(name, entries)
        if there != entries:
            rows.append(f"set {name}: {len(entries - there)} elements missing, {len(there - entries)} too many")
    gone, more = wanted.counters - found.counters, found.counters - wanted.counters
    return rows + [f"counter {name}: missing" for name in sorted(gone)] + [f"counter {name}: foreign" for name in more]


def _different(what: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> Iterator[str]:
    for name in wanted.keys() - found.keys():
        yield f"{what} {name}: missing"
    for name in found.keys() - wanted.keys():
        yield f"{what} {name}: foreign"
    for name in wanted.keys() & found.keys():
        if wanted[name] != found[name]:
            yield f"{what} {name}: changed"


def _dump(channel: Channel, kind: int, family: Family, body: bytes, what: str, table: str) -> list[Attributes]:
    return channel.dump(kind, family, body, f"the {what} of table {family.name.lower()} {table}")


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _chain(into: Contents, found: Attributes) -> None:
    hook = dict(attributes(found.get(4, b"")))
    into.chains[text(found[3])] = (hook[1], hook[2], found.get(5, b""), found.get(7, b"")) if hook else ()


def _set(found: Attributes) -> tuple[int, int, int]:
    return _number(found.get(3, b"")) & _SET_FLAGS, _number(found[4]), _number(found[5])


def _set_name(found: Attributes, name: int, number: int) -> str:
    """A set's name; in a transaction anonymous ones share theirs, and have a number."""
    called = text(found[name])
    return f"{called}{_number(found[number])}" if "%" in called else called


def _entries(found: Attributes) -> Iterator[Entry]:
    for _, one in attributes(found.get(3, b"")):
        element = dict(attributes(one))
        key, last = _value(element.get(1, b"")), _value(element.get(10, b""))
        # A single value in a set of ranges comes back as a range or not, as the kernel keeps it.
        yield key, last or key, _number(element.get(3, b"")), _data(element.get(2, b""))


def _value(data: bytes) -> bytes:
    return dict(attributes(data)).get(1, b"")


def _data(data: bytes) -> object:
    """Data as something to compare: a verdict's number and chain, or the value."""
    found = dict(attributes(data))
    verdict = dict(attributes(found.get(2, b"")))
    return (verdict[1], text(verdict.get(2, b""))) if verdict else found.get(1, b"")


def _steps(found: Attributes, entries: Mapping[str, Iterable[Entry]]) -> tuple[Step, ...]:
    parts = [dict(attributes(item)) for _, item in attributes(found.get(4, b""))]
    return tuple(_step(text(part[1]), dict(attributes(part.get(2, b""))), entries) for part in parts)


def _step(name: str, said: Attributes, entries: Mapping[str, Iterable[Entry]]) -> Step:
    """An expression without what is only counted, and without zeros, which say the same as nothing."""
    if name == "counter":
        return name, ()
    if name == "lookup":
        number = said.pop(4, b"")
        called = text(said[1])
        of = f"{called}{_number(number)}" if "%" in called else called
        if called.startswith("__set"):
            return name, (frozenset(entries.get(of, ())), _told(said, (2, 3, 5)))
    data = {key: _data(said.pop(key)) for key in _DATA.get(name, ()) if key in said}
    return name, (_told(said, sorted(said)), tuple(data.items()))


def _told(said: Attributes, keys: Sequence[int]) -> tuple[tuple[int, bytes], ...]:
    return tuple((key, said[key]) for key in keys if said.get(key, b"").strip(b"\0"))
