"""Connections that are known to the kernel, and the end of those that policy no longer allows.

Packets of a known connection pass before any rule. So when an allowance is taken back, the connections of the pods it
concerned are judged again, and those that are no longer allowed are forgotten: their next packet is a new one and
meets the rules. Where it is the side that was called that speaks next, that would look like a connection of its own,
so its packets are dropped for a while: a set of a table beside that of the rules. A connection is judged as it was
opened, with the destination behind any translation.
Source: NPC spec §4.6; linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nft.elements import Key, Member
from nft.expressions import Field, State, counter, drop, state, within
from nft.netlink import ACK, DONE, DUMP, ERRNO, ERROR, each_message, opened
from nft.ruleset import Hook, Transaction
from nft.wire import NETLINK_NETFILTER, NftError, attribute, attributes, commit, encode, nested

_GET, _DELETE = 0x101, 0x102
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID = 1, 2, 12
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE = {2: 1, 10: 3}
_PROTOCOL, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NFGENMSG = 4
TABLE = "weave_npc_ended"
_CHAIN = "ended"
# Before the rules, which would let packets of a known connection pass.
_PRIORITY = -6
# Longer than a peer that hears nothing goes on repeating itself, seconds.
_SILENCE = 1200.0
_TAIL = (Key.PROTOCOL, Key.PORT, Key.PORT)
_TAIL_FIELDS = (Field.PROTOCOL, Field.SOURCE_PORT, Field.DESTINATION_PORT)
_ENDED: Mapping[str, tuple[tuple[Key, ...], tuple[Field, ...]]] = {
    "ended4": ((Key.IPV4, Key.IPV4, *_TAIL), (Field.SOURCE4, Field.DESTINATION4, *_TAIL_FIELDS)),
    "ended6": ((Key.IPV6, Key.IPV6, *_TAIL), (Field.SOURCE6, Field.DESTINATION6, *_TAIL_FIELDS)),
}
_RECEIVE = 1 << 17
_TIMEOUT = 5.0
# Of so many addresses it is quicker to look for their bytes than to parse.
_FEW = 16


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection: who opened it, to whom (behind translation), protocol, destination port (0 without ports)."""

    source: bytes
    destination: bytes
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Known:
    """A flow and what the kernel knows it by; `answers` is how the other side's packets look: addresses and ports."""

    flow: Flow
    family: int
    original: bytes
    ident: bytes
    answers: tuple[bytes, bytes, int, int]


def known(addresses: Collection[bytes]) -> list[Known]:
    """The connections that have one of these addresses at an end. Raises NftError, OSError.

    Blocks for some microseconds for each connection of the host; acts in the namespace of the calling thread.
    """
    wanted = frozenset(addresses)
    found: list[Known] = []
    with opened(NETLINK_NETFILTER, _TIMEOUT) as sock:
        sock.send(encode(_GET, DUMP, 1, 0, 0, b""))
        while True:
            for kind, _flags, _sequence, payload in each_message(sock.recv(_RECEIVE)):
                if kind == DONE:
                    return found
                if kind == ERROR:
                    raise _error("unable to read the known connections", payload)
                # Most are of nobody who is asked for, which their bytes say without being parsed.
                if len(wanted) > _FEW or any(address in payload for address in wanted):
                    found += _parsed(payload, wanted)


def forget(stale: Collection[Known]) -> int:
    """Forget connections; how many there were still. Raises NftError, OSError."""
    _silence(stale)
    with opened(NETLINK_NETFILTER, _TIMEOUT) as sock:
        return sum(_forget(sock, number, one) for number, one in enumerate(stale, 1))


def _silence(stale: Iterable[Known]) -> None:
    """The called side of these connections is not heard any more."""
    change = Transaction(TABLE)
    change.ensure_table("connections that network policy ended; written by weave-npc")
    change.add_chain(_CHAIN, Hook.FORWARD, _PRIORITY)
    change.flush_chain(_CHAIN)
    for name, (kind, fields) in _ENDED.items():
        change.add_set(name, kind, timeout=_SILENCE)
        change.add_rule(_CHAIN, state(State.NEW), within(fields, name), counter(), drop())
    for one in stale:
        source, destination, *ports = one.answers
        values = [source, destination, bytes((one.flow.protocol,)), *(port.to_bytes(2, "big") for port in ports)]
        name = "ended4" if len(source) == 4 else "ended6"
        change.add_members(
            name, _ENDED[name][0], [Member(b"".join(value + bytes(-len(value) % 4) for value in values))]
        )
    commit(change.messages)


def _parsed(payload: bytes, addresses: frozenset[bytes]) -> Iterator[Known]:
    family = payload[0]
    said = dict(attributes(payload[_NFGENMSG:]))
    if family not in _SOURCE or _TUPLE_REPLY not in said:
        return
    source = _SOURCE[family]
    original, reply = said[_TUPLE_ORIGINAL], dict(attributes(said[_TUPLE_REPLY]))
    here = dict(attributes(dict(attributes(original))[_TUPLE_IP]))
    back, how = dict(attributes(reply[_TUPLE_IP])), dict(attributes(reply[_TUPLE_PROTOCOL]))
    port, to = (int.from_bytes(how.get(end, b""), "big") for end in (_SOURCE_PORT, _DESTINATION_PORT))
    flow = Flow(here[source], back[source], how[_PROTOCOL][0], port)
    if flow.source in addresses or flow.destination in addresses:
        answers = (back[source], back[source + 1], port, to)
        yield Known(flow, family, original, said.get(_ID, b""), answers)


def _forget(sock: socket.socket, sequence: int, one: Known) -> bool:
    """Whether it was there still."""
    body = nested(_TUPLE_ORIGINAL, one.original) + (attribute(_ID, one.ident) if one.ident else b"")
    sock.send(encode(_DELETE, ACK, sequence, one.family, 0, body))
    while True:
        for kind, _flags, answered, payload in each_message(sock.recv(_RECEIVE)):
            if kind == ERROR and answered == sequence:
                number: int = -ERRNO.unpack_from(payload)[0]
                if number not in (0, errno.ENOENT):
                    raise _error("unable to forget a connection", payload)
                return number == 0


def _error(what: str, payload: bytes) -> NftError:
    number = -ERRNO.unpack_from(payload)[0]
    return NftError(f"{what}: {os.strerror(number)}", number)
