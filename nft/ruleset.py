"""nftables objects, as one transaction writes them: a table, its chains, rules of a few expressions.

    with Transaction("weave") as change:
        change.replace_table()
        change.add_chain("input", Hook.INPUT)
        change.add_rule("input", in_interface("ethwe"), ip_destination("224.0.0.0/4"), drop())

Tables are of family `inet`. Source: linux/netfilter/nf_tables.h.
"""

from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import TracebackType

from nft.wire import NLM_F_APPEND, NLM_F_CREATE, Message, attribute, commit, nested, string, u32

_INET = 1
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_IFNAMSIZ = 16
_NFPROTO = {4: 2, 6: 10}


class Hook(IntEnum):
    """Where a base chain is attached."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


Expression = bytes


def _expression(name: str, *attributes: bytes) -> Expression:
    return nested(1, string(1, name), nested(2, *attributes))


def _load_meta(key: int) -> Expression:
    return _expression("meta", u32(1, 1), u32(2, key))


def _equal(value: bytes) -> Expression:
    return _expression("cmp", u32(1, 1), u32(2, 0), nested(3, attribute(1, value)))


def _payload(offset: int, size: int) -> Expression:
    return _expression("payload", u32(1, 1), u32(2, 1), u32(3, offset), u32(4, size))


def _mask(mask: bytes) -> Expression:
    zero = nested(5, attribute(1, bytes(len(mask))))
    return _expression("bitwise", u32(1, 1), u32(2, 1), u32(3, len(mask)), nested(4, attribute(1, mask)), zero)


def in_interface(name: str) -> Expression:
    """Packets that came in through this interface."""
    return _load_meta(6) + _equal(name.encode().ljust(_IFNAMSIZ, b"\0"))


def _address(network: str, source: bool) -> Expression:
    net: IPv4Network | IPv6Network = ip_network(network, strict=False)
    size = 4 if net.version == 4 else 16
    offset = (12 if source else 16) if net.version == 4 else (8 if source else 24)
    family = _load_meta(15) + _equal(bytes((_NFPROTO[net.version],)))
    return family + _payload(offset, size) + _mask(net.netmask.packed) + _equal(net.network_address.packed)


def ip_source(network: str) -> Expression:
    """Packets from an address or network, IPv4 or IPv6."""
    return _address(network, source=True)


def ip_destination(network: str) -> Expression:
    """Packets to an address or network."""
    return _address(network, source=False)


def _verdict(code: int) -> Expression:
    return _expression("immediate", u32(1, 0), nested(2, nested(2, u32(1, code))))


def accept() -> Expression:
    """Let the packet pass this table."""
    return _verdict(1)


def drop() -> Expression:
    """Drop the packet."""
    return _verdict(0)


class Transaction:
    """Changes of one table, made together when the `with` block ends. Raises NftError then."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._messages: list[Message] = []

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._messages:
            commit(self._messages)

    def _add(self, kind: int, flags: int, body: bytes, what: str) -> None:
        self._messages.append(Message(kind, _INET, flags, body, what))

    def ensure_table(self) -> None:
        """The table, as it is or new."""
        self._add(_NEWTABLE, NLM_F_CREATE, string(1, self._table), f"table inet {self._table}")

    def delete_table(self) -> None:
        """No table of this name, whether there was one or not."""
        self.ensure_table()
        self._add(_DELTABLE, 0, string(1, self._table), f"table inet {self._table}")

    def replace_table(self) -> None:
        """The table, empty."""
        self.delete_table()
        self.ensure_table()

    def add_chain(self, name: str, hook: Hook, priority: int = 0) -> None:
        """A filter chain at a hook; what it does not decide passes."""
        hooked = nested(4, u32(1, hook), u32(2, priority))
        body = string(1, self._table) + string(3, name) + hooked + string(7, "filter")
        self._add(_NEWCHAIN, NLM_F_CREATE, body, f"chain inet {self._table} {name}")

    def add_rule(self, chain: str, *expressions: Expression) -> None:
        """A rule at the end of a chain."""
        body = string(1, self._table) + string(2, chain) + nested(4, *expressions)
        self._add(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, f"a rule of chain inet {self._table} {chain}")
