"""nftables objects as one transaction writes them: a table, its chains, sets with elements, rules.

    with Transaction("weave") as change:
        change.replace_table()
        change.add_chain("input", Hook.INPUT)
        change.add_rule("input", in_interface("ethwe"), ip_destination("224.0.0.0/4"), drop())

Tables are of family `inet` unless another is named. Nothing is sent before the block ends, and nothing at all if it
ends by an exception.
Source: linux/netfilter/nf_tables.h.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import ip_address, ip_network
from types import TracebackType

from nft.expressions import Expression, interface_key
from nft.wire import NLM_F_APPEND, NLM_F_CREATE, Message, attribute, commit, nested, string, u32

_NEWTABLE, _DELTABLE, _NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE = 0, 2, 3, 5, 6, 8
_NEWSET, _DELSET, _NEWELEMENT, _DELELEMENT = 9, 11, 12, 14
_SET_INTERVAL = 4
_INTERVAL_END = 1
_CHUNK = 500
_COMMENT = 0
_COMMENT_MAX = 127


class Family(IntEnum):
    """Whose packets a table sees."""

    INET = 1
    IP = 2
    IP6 = 10


class Hook(IntEnum):
    """Where a base chain is attached."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class ChainType(Enum):
    """What a base chain may do."""

    FILTER = "filter"
    NAT = "nat"


class Policy(IntEnum):
    """What becomes of a packet that a base chain does not decide."""

    DROP = 0
    ACCEPT = 1


@dataclass(frozen=True, slots=True)
class _Key:
    """nft's number for a set's key type, and its size in bytes."""

    number: int
    size: int


class Key(Enum):
    """What a set holds. Networks and ranges only in sets made with `interval`."""

    IPV4 = _Key(7, 4)
    IPV6 = _Key(8, 16)
    PORT = _Key(13, 2)
    INTERFACE = _Key(41, 16)


class Transaction:
    """Changes of one table, made together when the `with` block ends. Raises NftError then."""

    def __init__(self, table: str, family: Family = Family.INET) -> None:
        self._table = table
        self._family = family
        self._messages: list[Message] = []
        self._set_ids = itertools.count(1)

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            commit(self._messages)

    def _add(self, kind: int, flags: int, body: bytes, what: str) -> None:
        self._messages.append(Message(kind, self._family, flags, string(1, self._table) + body, what))

    def _named(self, what: str, *names: str) -> str:
        return " ".join((what, self._family.name.lower(), self._table, *names))

    # --- tables ---

    def ensure_table(self) -> None:
        """The table, as it is or new."""
        self._add(_NEWTABLE, NLM_F_CREATE, b"", self._named("table"))

    def delete_table(self) -> None:
        """No table of this name, whether there was one or not."""
        self.ensure_table()
        self._add(_DELTABLE, 0, b"", self._named("table"))

    def replace_table(self) -> None:
        """The table, empty."""
        self.delete_table()
        self.ensure_table()

    # --- chains ---

    def add_chain(
        self,
        name: str,
        hook: Hook | None = None,
        priority: int = 0,
        *,
        kind: ChainType = ChainType.FILTER,
        policy: Policy = Policy.ACCEPT,
    ) -> None:
        """A chain, at a hook or to jump to; an existing one stays with its rules."""
        body = string(3, name)
        if hook is not None:
            body += nested(4, u32(1, hook), u32(2, priority)) + u32(5, policy) + string(7, kind.value)
        self._add(_NEWCHAIN, NLM_F_CREATE, body, self._named("chain", name))

    def flush_chain(self, name: str) -> None:
        """An existing chain without its rules."""
        self._add(_DELRULE, 0, string(2, name), self._named("chain", name))

    def delete_chain(self, name: str) -> None:
        """Remove an existing chain and its rules; no jump may lead there."""
        self.flush_chain(name)
        self._add(_DELCHAIN, 0, string(3, name), self._named("chain", name))

    # --- rules ---

    def add_rule(self, chain: str, *expressions: Expression, comment: str = "", first: bool = False) -> None:
        """A rule at the end of a chain, or before all others."""
        body = string(2, chain) + nested(4, *expressions) + _userdata(7, comment)
        flags = NLM_F_CREATE | (0 if first else NLM_F_APPEND)
        self._add(_NEWRULE, flags, body, self._named("a rule of chain", chain))

    def delete_rule(self, chain: str, handle: int) -> None:
        """Remove the rule that `nft.readback.rules` gave this handle."""
        body = string(2, chain) + attribute(3, handle.to_bytes(8, "big"))
        self._add(_DELRULE, 0, body, self._named(f"rule {handle} of chain", chain))

    # --- sets ---

    def add_set(self, name: str, key: Key, *, interval: bool = False) -> None:
        """A set, as it is or new; with `interval` it holds networks."""
        flags = _SET_INTERVAL if interval else 0
        body = string(2, name) + u32(3, flags) + u32(4, key.value.number) + u32(5, key.value.size)
        self._add(_NEWSET, NLM_F_CREATE, body + u32(10, next(self._set_ids)), self._named("set", name))

    def delete_set(self, name: str) -> None:
        """Remove an existing set that no rule uses."""
        self._add(_DELSET, 0, string(2, name), self._named("set", name))

    def add_elements(self, name: str, key: Key, values: Iterable[str], *, interval: bool = False) -> None:
        """Elements of a set, as text; those it has already are no error (in interval sets: if they are equal)."""
        self._elements(_NEWELEMENT, NLM_F_CREATE, name, key, values, interval)

    def delete_elements(self, name: str, key: Key, values: Iterable[str], *, interval: bool = False) -> None:
        """Take elements out; one that is not there refuses the transaction."""
        self._elements(_DELELEMENT, 0, name, key, values, interval)

    def flush_set(self, name: str) -> None:
        """An existing set without its elements."""
        self._add(_DELELEMENT, 0, string(2, name), self._named("set", name))

    def _elements(self, kind: int, flags: int, name: str, key: Key, values: Iterable[str], interval: bool) -> None:
        items = [part for value in values for part in _element(key, value, interval)]
        # An element list is one attribute with a 16-bit length.
        for start in range(0, len(items), _CHUNK):
            body = string(2, name) + nested(3, *items[start : start + _CHUNK])
            self._add(kind, flags, body, self._named("elements of set", name))


def _element(key: Key, value: str, interval: bool) -> Sequence[bytes]:
    """One element, or start and end of an interval. Raises ValueError on text that is none of the key's."""
    if not interval:
        return (_item(_key_bytes(key, value)),)
    net = ip_network(value)
    start = _item(net.network_address.packed)
    end = int(net.broadcast_address) + 1
    if end >> net.max_prefixlen:
        # Nothing lies behind the last address, so the interval stays open.
        return (start,)
    return start, _item(end.to_bytes(net.max_prefixlen // 8, "big"), _INTERVAL_END)


def _item(key: bytes, flags: int = 0) -> bytes:
    flagged = (u32(3, flags),) if flags else ()
    return nested(1, nested(1, attribute(1, key)), *flagged)


def _key_bytes(key: Key, value: str) -> bytes:
    if key is Key.INTERFACE:
        return interface_key(value)
    if key is Key.PORT:
        return int(value).to_bytes(2, "big")
    return ip_address(value).packed


def _userdata(kind: int, comment: str) -> bytes:
    """A comment as nft prints it; longer than nft allows is cut."""
    if not comment:
        return b""
    encoded = comment.encode()[:_COMMENT_MAX].decode(errors="ignore").encode() + b"\0"
    return attribute(kind, bytes((_COMMENT, len(encoded))) + encoded)
