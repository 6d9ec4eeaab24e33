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
from enum import Enum, IntEnum
from types import TracebackType

from nft.elements import Key, KeyType, Member, encoded, key_bytes, lists, network, parts, sizes, type_number, userdata
from nft.expressions import ANONYMOUS_NAME, Anonymous, Expression
from nft.wire import NLM_F_APPEND, NLM_F_CREATE, Message, attribute, commit, nested, string, u32

_NEWTABLE, _DELTABLE, _NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE = 0, 2, 3, 5, 6, 8
_NEWSET, _DELSET, _NEWELEMENT, _DELELEMENT = 9, 11, 12, 14
_NEWOBJ, _DELOBJ = 18, 20
_ANONYMOUS_CONSTANT = 0x1 | 0x2
_SET_INTERVAL, _SET_MAP, _SET_TIMEOUT, _SET_CONCATENATION = 0x4, 0x8, 0x10, 0x80
_VERDICT_TYPE = 0xFFFFFF00
_SET_COMMENT = 7
_COUNTER_OBJECT = 1


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


class Transaction:
    """Changes of one table, made together when the `with` block ends. Raises NftError then."""

    def __init__(self, table: str, family: Family = Family.INET) -> None:
        self._table = table
        self._family = family
        self._messages: list[Message] = []
        self._set_ids = itertools.count(1)

    @property
    def messages(self) -> Sequence[Message]:
        """What will be sent, in order."""
        return self._messages

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

    def ensure_table(self, comment: str = "") -> None:
        """The table, as it is or new; the comment is a new one's."""
        self._add(_NEWTABLE, NLM_F_CREATE, userdata(6, comment), self._named("table"))

    def delete_table(self) -> None:
        """No table of this name, whether there was one or not."""
        self.ensure_table()
        self._add(_DELTABLE, 0, b"", self._named("table"))

    def replace_table(self, comment: str = "") -> None:
        """The table, empty."""
        self.delete_table()
        self.ensure_table(comment)

    # --- chains ---

    def add_chain(
        self,
        name: str,
        hook: Hook | None = None,
        priority: int = 0,
        *,
        kind: ChainType = ChainType.FILTER,
        policy: Policy = Policy.ACCEPT,
        comment: str = "",
    ) -> None:
        """A chain, at a hook or to jump to; an existing one stays with its rules."""
        body = string(3, name) + userdata(12, comment)
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
        body = string(2, chain) + nested(4, *expressions) + userdata(7, comment)
        flags = NLM_F_CREATE | (0 if first else NLM_F_APPEND)
        self._add(_NEWRULE, flags, body, self._named("a rule of chain", chain))

    def delete_rule(self, chain: str, handle: int) -> None:
        """Remove the rule that `nft.readback.rules` gave this handle."""
        body = string(2, chain) + attribute(3, handle.to_bytes(8, "big"))
        self._add(_DELRULE, 0, body, self._named(f"rule {handle} of chain", chain))

    # --- counters ---

    def add_counter(self, name: str, packets: int = 0, octets: int = 0, *, comment: str = "") -> None:
        """A counter that rules of the table share; an existing one goes on counting."""
        figures = nested(4, attribute(1, octets.to_bytes(8, "big")), attribute(2, packets.to_bytes(8, "big")))
        body = string(2, name) + u32(3, _COUNTER_OBJECT) + figures + userdata(8, comment)
        self._add(_NEWOBJ, NLM_F_CREATE, body, self._named("counter", name))

    def delete_counter(self, name: str) -> None:
        """Remove an existing counter that no rule uses."""
        self._add(_DELOBJ, 0, string(2, name) + u32(3, _COUNTER_OBJECT), self._named("counter", name))

    # --- sets and maps ---

    def add_set(
        self, name: str, key: KeyType, *, interval: bool = False, comment: str = "", timeout: float = 0.0
    ) -> None:
        """A set, as it is or new; with `interval` it holds networks and ranges.

        Its elements go after `timeout` seconds, if that is given.
        """
        self._add_set(name, key, _SET_INTERVAL if interval else 0, comment, timeout)

    def add_verdict_map(self, name: str, key: KeyType, *, interval: bool = False, comment: str = "") -> None:
        """A map that says where packets go, as it is or new."""
        self._add_set(name, key, _SET_MAP | (_SET_INTERVAL if interval else 0), comment)

    def add_anonymous(self, key: KeyType, members: Iterable[Member], *, interval: bool = False) -> Anonymous:
        """A set of the one rule of this transaction that uses it; it goes with the rule."""
        number = self._add_set(ANONYMOUS_NAME, key, _ANONYMOUS_CONSTANT | (_SET_INTERVAL if interval else 0), "")
        items = encoded(members, key, interval=interval)
        for row in lists(items):
            body = string(2, ANONYMOUS_NAME) + u32(4, number) + nested(3, *row)
            self._add(_NEWELEMENT, NLM_F_CREATE, body, self._named("elements of a rule"))
        return Anonymous(number)

    def _add_set(self, name: str, key: KeyType, flags: int, comment: str, timeout: float = 0.0) -> int:
        number = next(self._set_ids)
        # Only where parts are intervals does the kernel need to know them.
        ranges = len(parts(key)) > 1 and bool(flags & _SET_INTERVAL)
        flags |= (_SET_CONCATENATION if ranges else 0) | (_SET_TIMEOUT if timeout else 0)
        body = string(2, name) + u32(3, flags) + u32(4, type_number(key)) + u32(5, sum(sizes(key)))
        if flags & _SET_MAP:
            body += u32(6, _VERDICT_TYPE)
        if ranges:
            body += nested(9, nested(2, *(nested(1, u32(1, size)) for size in sizes(key))))
        if timeout:
            body += attribute(11, round(1000 * timeout).to_bytes(8, "big"))
        body += u32(10, number) + userdata(13, comment, _SET_COMMENT)
        self._add(_NEWSET, NLM_F_CREATE, body, self._named("set", name))
        return number

    def delete_set(self, name: str) -> None:
        """Remove an existing set or map that no rule uses."""
        self._add(_DELSET, 0, string(2, name), self._named("set", name))

    def add_members(self, name: str, key: KeyType, members: Iterable[Member], *, interval: bool = False) -> None:
        """Elements of a set or map; those it has already are no error (in interval sets: if they are equal)."""
        self._elements(_NEWELEMENT, NLM_F_CREATE, name, encoded(members, key, interval=interval))

    def delete_members(self, name: str, key: KeyType, members: Iterable[Member], *, interval: bool = False) -> None:
        """Take elements out; one that is not there refuses the transaction."""
        self._elements(_DELELEMENT, 0, name, encoded(members, key, interval=interval))

    def add_elements(self, name: str, key: Key, values: Iterable[str], *, interval: bool = False) -> None:
        """The same from text: addresses, networks, ports, names of interfaces. Raises ValueError."""
        self.add_members(name, key, _members(key, values, interval), interval=interval)

    def flush_set(self, name: str) -> None:
        """An existing set without its elements."""
        self._add(_DELELEMENT, 0, string(2, name), self._named("set", name))

    def _elements(self, kind: int, flags: int, name: str, items: Iterable[bytes]) -> None:
        # A list of elements is one attribute with a 16-bit length.
        for row in lists(items):
            self._add(kind, flags, string(2, name) + nested(3, *row), self._named("elements of set", name))


def _members(key: Key, values: Iterable[str], interval: bool) -> Sequence[Member]:
    """Elements as text says them. Raises ValueError on text that is none of the key's."""
    return [network(key, value) if interval else Member(key_bytes(key, value)) for value in values]
