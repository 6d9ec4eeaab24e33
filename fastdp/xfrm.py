"""Netlink messages of the kernel's IPsec (XFRM): security associations and policies of ESP in transport mode.

Structures are in host order, but addresses, ports and SPIs in network order. One request at a time, each acknowledged
within microseconds; a request may wait for a module. No decisions here. Acts in the namespace in which the channel was
made. Source: linux/xfrm.h.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, ip_address
from types import TracebackType

from nft.netlink import ACK, DONE, DUMP, ERRNO, ERROR, each_message, opened, request

_NETLINK_XFRM = 6
_NEWSA, _DELSA, _GETSA, _NEWPOLICY, _DELPOLICY, _GETPOLICY, _ALLOCSPI = range(0x10, 0x17)
_UPDPOLICY, _UPDSA = 0x19, 0x1A
_EXCLUSIVE, _CREATE = 0x200, 0x400
_TEMPLATE, _AEAD, _MARK, _REPLAY = 5, 18, 21, 23
_ESP = socket.IPPROTO_ESP
_UDP = socket.IPPROTO_UDP
_TRANSPORT, _ESN = 0, 128
_WINDOW = 256
_ALGORITHM = b"rfc4106(gcm(aes))"
_CHECK_BITS = 128
_FOREVER = struct.pack("=4Q4Q", *(4 * [2**64 - 1]), 0, 0, 0, 0)
# Smaller ones are reserved.
_SPI_MIN, _SPI_MAX = 0x100, 0xFFFFFFFF

_ATTRIBUTE = struct.Struct("=HH")
# daddr, saddr, dport, mask, sport, mask, family, prefix lengths, protocol, interface, user.
_SELECTOR = struct.Struct("=16s16s8sHBBB3xiI")
_PORTS = struct.Struct(">HHHH")
_ID = struct.Struct("=16s4sB3x")
# selector, id, saddr, limits, octets, packets, times, statistics, sequence, reqid, family, mode, window, flags.
_STATE = struct.Struct(f"={_SELECTOR.size}s{_ID.size}s16s64s4Q5IHBBB7x")
_STATE_ID = struct.Struct("=16s4sHBx")
_SPI_RANGE = struct.Struct("=II")
_POLICY = struct.Struct(f"={_SELECTOR.size}s64s32xIIBBBB4x")
_POLICY_ID = struct.Struct(f"={_SELECTOR.size}sIB3x")
_TEMPLATE_BODY = struct.Struct("=16s4sB3xH2x16sIBBBxIII")
_MARK_BODY = struct.Struct("=II")
_AEAD_HEAD = struct.Struct("=64sII")
_REPLAY_BODY = struct.Struct("=6I32x")
_TIMEOUT = 30.0
_RECEIVE = 1 << 16


class XfrmError(Exception):
    """The kernel refused: what, and its words; `errno` is its number."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(f"{text}: {os.strerror(number)}")
        self.errno = number


class Direction(IntEnum):
    """Which packets a policy is for."""

    IN = 0
    OUT = 1


@dataclass(frozen=True, slots=True)
class State:
    """A security association: packets from `source` to `target` with this SPI. `reqid` says whose it is."""

    source: str
    target: str
    spi: int
    reqid: int = 0
    octets: int = 0
    packets: int = 0
    replayed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """UDP packets from `source` to `target` need the association with this SPI, or any of `reqid` where it is 0.

    `port` of the target, 0 for any. `mark` is value and mask, as Weave Net 2.8 has it in its policies.
    """

    direction: Direction
    source: str
    target: str
    port: int
    spi: int
    reqid: int = 0
    mark: tuple[int, int] = (0, 0)


class Xfrm:
    """A channel to the kernel's IPsec. Raises XfrmError, also where the kernel has none."""

    def __init__(self) -> None:
        try:
            self._sock = opened(_NETLINK_XFRM, _TIMEOUT)
        except OSError as error:
            raise XfrmError("no IPsec in this kernel", error.errno or 0) from error
        self._sequence = 0

    def __enter__(self) -> "Xfrm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    # --- security associations ---

    def allocate(self, source: str, target: str, reqid: int) -> int:
        """An SPI that is free for packets from `source` to `target`; its association lives for 30 s until `update`."""
        state = _state(State(source, target, 0, reqid), flags=0)
        answer = self._ask(_ALLOCSPI, 0, state + _SPI_RANGE.pack(_SPI_MIN, _SPI_MAX), "allocate an SPI")
        return _read_state(answer).spi

    def update(self, state: State, key: bytes) -> None:
        """Give an allocated association its key."""
        self._send(_UPDSA, 0, _keyed(state, key), f"update the association {state.spi:08x}")

    def add(self, state: State, key: bytes) -> None:
        """A new association; one with the same target and SPI refuses it."""
        self._send(_NEWSA, _CREATE | _EXCLUSIVE, _keyed(state, key), f"add the association {state.spi:08x}")

    def remove(self, state: State) -> None:
        """No such association, whether there was one or not."""
        packed = _STATE_ID.pack(_address(state.target), _spi(state.spi), _family(state.target), _ESP)
        with _absent_is_good():
            self._send(_DELSA, 0, packed, f"delete the association {state.spi:08x}")

    def find(self, state: State) -> State | None:
        """The association with its counters; None where it is not there."""
        packed = _STATE_ID.pack(_address(state.target), _spi(state.spi), _family(state.target), _ESP)
        with _absent_is_good():
            return _read_state(self._ask(_GETSA, 0, packed, f"read the association {state.spi:08x}"))
        return None

    def states(self) -> list[State]:
        """All associations of ESP."""
        found = [body for body in self._dump(_GETSA, "the associations") if _protocol(body) == _ESP]
        return [_read_state(body) for body in found]

    # --- policies ---

    def set(self, policy: Policy) -> None:
        """A policy, in the place of one for the same packets."""
        packed = _POLICY.pack(_selector(policy), _FOREVER, 0, 0, policy.direction, 0, 0, 0)
        what = f"set a policy for {policy.source} to {policy.target}"
        self._send(_UPDPOLICY, 0, packed + _attribute(_TEMPLATE, _template(policy)), what)

    def unset(self, policy: Policy) -> None:
        """No such policy, whether there was one or not."""
        marked = _attribute(_MARK, _MARK_BODY.pack(*policy.mark)) if any(policy.mark) else b""
        packed = _POLICY_ID.pack(_selector(policy), 0, policy.direction)
        with _absent_is_good():
            self._send(_DELPOLICY, 0, packed + marked, f"delete a policy for {policy.source} to {policy.target}")

    def policies(self) -> list[Policy]:
        """All policies for UDP between two hosts that ask for ESP."""
        found = (_read_policy(body) for body in self._dump(_GETPOLICY, "the policies"))
        return [policy for policy in found if policy is not None]

    # --- messages ---

    def _request(self, kind: int, flags: int, content: bytes) -> None:
        self._sequence += 1
        self._sock.send(request(kind, flags, self._sequence, content))

    def _send(self, kind: int, flags: int, content: bytes, what: str) -> None:
        self._request(kind, flags | ACK, content)
        for _kind, _content in self._answers(what):
            return

    def _ask(self, kind: int, flags: int, content: bytes, what: str) -> bytes:
        self._request(kind, flags, content)
        for _kind, answer in self._answers(what):
            return answer
        raise XfrmError(f"unable to {what}", errno.EIO)

    def _dump(self, kind: int, what: str) -> list[bytes]:
        self._request(kind, DUMP, b"")
        found = []
        for answer_kind, content in self._answers(f"read {what}"):
            if answer_kind == DONE:
                break
            found.append(content)
        return found

    def _answers(self, what: str) -> Iterator[tuple[int, bytes]]:
        """Answers to the last request, without end; a refusal is raised."""
        while True:
            try:
                datagram = self._sock.recv(_RECEIVE)
            except OSError as error:
                raise XfrmError(f"unable to {what}", error.errno or errno.ETIMEDOUT) from error
            for kind, _flags, sequence, content in each_message(datagram):
                if sequence != self._sequence:
                    continue
                if kind == ERROR and (number := -ERRNO.unpack_from(content)[0]):
                    raise XfrmError(f"unable to {what}", number)
                yield kind, content


@contextlib.contextmanager
def _absent_is_good() -> Iterator[None]:
    try:
        yield
    except XfrmError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            raise


# --- structures ---


def _attribute(kind: int, content: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(size, kind) + content + bytes(-size % 4)


def _attributes(content: bytes) -> dict[int, bytes]:
    found, position = {}, 0
    while position + _ATTRIBUTE.size <= len(content):
        size, kind = _ATTRIBUTE.unpack_from(content, position)
        if size < _ATTRIBUTE.size:
            break
        found[kind] = content[position + _ATTRIBUTE.size : position + size]
        position += size + (-size % 4)
    return found


def _address(text: str) -> bytes:
    return ip_address(text).packed.ljust(16, b"\0")


def _text(packed: bytes, family: int) -> str:
    return str(IPv4Address(packed[:4]) if family == socket.AF_INET else ip_address(packed))


def _family(text: str) -> int:
    return socket.AF_INET6 if ":" in text else socket.AF_INET


def _spi(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _state(state: State, *, flags: int) -> bytes:
    family = _family(state.target)
    anything = _SELECTOR.pack(bytes(16), bytes(16), bytes(8), family, 0, 0, 0, 0, 0)
    number = _ID.pack(_address(state.target), _spi(state.spi), _ESP)
    counters = (0,) * 8
    return _STATE.pack(
        anything, number, _address(state.source), _FOREVER, *counters, state.reqid, family, _TRANSPORT, 0, flags
    )


def _keyed(state: State, key: bytes) -> bytes:
    aead = _AEAD_HEAD.pack(_ALGORITHM, 8 * len(key), _CHECK_BITS) + key
    replay = _REPLAY_BODY.pack(_WINDOW // 32, 0, 0, 0, 0, _WINDOW)
    return _state(state, flags=_ESN) + _attribute(_AEAD, aead) + _attribute(_REPLAY, replay)


def _protocol(body: bytes) -> int:
    return int(_ID.unpack_from(body, _SELECTOR.size)[2])


def _read_state(body: bytes) -> State:
    fields = _STATE.unpack_from(body)
    target, spi, _ = _ID.unpack(fields[1])
    octets, packets = fields[4:6]
    _window, replayed, failed, _sequence, reqid, family = fields[8:14]
    return State(
        _text(fields[2], family), _text(target, family), int.from_bytes(spi, "big"), reqid, octets, packets, replayed,
        failed,
    )  # fmt: skip


def _selector(policy: Policy) -> bytes:
    family = _family(policy.target)
    length = 128 if family == socket.AF_INET6 else 32
    ports = _PORTS.pack(policy.port, 0xFFFF if policy.port else 0, 0, 0)
    ends = _address(policy.target), _address(policy.source)
    return _SELECTOR.pack(*ends, ports, family, length, length, _UDP, 0, 0)


def _template(policy: Policy) -> bytes:
    ends = (_address(policy.target), _address(policy.source))
    number = _spi(policy.spi)
    every = 0xFFFFFFFF
    return _TEMPLATE_BODY.pack(
        ends[0], number, _ESP, _family(policy.target), ends[1], policy.reqid, _TRANSPORT, 0, 0, every, every, every
    )


def _read_policy(body: bytes) -> Policy | None:
    selector, _lifetime, _priority, _index, direction, action, _flags, _share = _POLICY.unpack_from(body)
    target, source, ports, family, target_length, source_length, protocol, _, _ = _SELECTOR.unpack(selector)
    if protocol != _UDP or min(target_length, source_length) < 32 or direction not in tuple(Direction):
        return None
    found = _attributes(body[_POLICY.size :])
    if action or _TEMPLATE not in found:
        return None
    _, spi, template_protocol, _, _, reqid, *_ = _TEMPLATE_BODY.unpack_from(found[_TEMPLATE])
    if template_protocol != _ESP:
        return None
    mark = _MARK_BODY.unpack_from(found[_MARK]) if _MARK in found else (0, 0)
    ends = _text(source, family), _text(target, family)
    port, number = _PORTS.unpack(ports)[0], int.from_bytes(spi, "big")
    return Policy(Direction(direction), *ends, port, number, reqid, (mark[0], mark[1]))
