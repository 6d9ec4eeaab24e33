"""The few rtnetlink messages by which a container gets its interface, without a library in between.

Measured: pyroute2 takes 0.5 ms of CPU for a request, and starts an event loop for every socket; attaching needs twenty
requests in two namespaces, and a runtime waits for each pod. A session's socket stays in the namespace in which it
was opened, whichever thread uses it. Numbers are in host order, addresses in network order; the kernel's errors are
OSError.
Source: rtnetlink(7), linux/if_link.h, linux/net_namespace.h, linux/if_bridge.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from types import TracebackType

from host.links import Link
from host.routes import Route
from nft.netlink import ACK, DONE, DUMP, ERRNO, ERROR, each_message, opened, request

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_S32 = struct.Struct("=i")
_U64 = struct.Struct("=Q")
_EXCL, _CREATE = 0x200, 0x400
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _GETADDR, _NEWROUTE, _SETNEIGHTBL, _GETNSID = 20, 22, 24, 67, 90
_UP = 0x1
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_NET_NS_FD = 12, 18, 20, 28
_IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 29, 37
_SKIP_STATISTICS = 1 << 3
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_DATA = 1, 2, 5
_VETH_PEER = 1
_BRPORT_STATE, _BRPORT_MODE = 1, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NETNSA_NSID, _NETNSA_FD = 1, 3
_NDTA_NAME, _NDTA_PARMS = 1, 6
_NDTPA_IFINDEX, _NDTPA_BASE_REACHABLE_TIME, _NDTPA_DELAY_PROBE_TIME, _NDTPA_UCAST_PROBES = 1, 4, 7, 10
_TABLE_MAIN, _PROTO_BOOT, _SCOPE_LINK, _UNICAST = 254, 3, 253, 1
_TIMEOUT = 5.0
_RECEIVE = 1 << 16


class Rtnetlink:
    """A session in the namespace of the thread that opens it."""

    def __init__(self) -> None:
        self._socket = opened(socket.NETLINK_ROUTE, _TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> "Rtnetlink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    # --- links ---

    def link(self, name: str) -> Link | None:
        """The interface of this name."""
        return self._get_link(0, _text(_IFLA_IFNAME, name))

    def link_at(self, index: int) -> Link | None:
        """The interface of this index."""
        return self._get_link(index, b"")

    def _get_link(self, index: int, named: bytes) -> Link | None:
        found = self._read_link(index, named)
        if found is None:
            return None
        index, have = found
        info = dict(_attributes(have.get(_IFLA_LINKINFO, b"")))
        kind = info.get(_INFO_KIND, b"").rstrip(b"\0").decode()
        return Link(
            index=index,
            name=have[_IFLA_IFNAME].rstrip(b"\0").decode(),
            kind=kind,
            mac=have.get(_IFLA_ADDRESS, b"").hex(":"),
            mtu=_number(have[_IFLA_MTU]),
            master=_number(have[_IFLA_MASTER]) if _IFLA_MASTER in have else None,
            peer=_number(have[_IFLA_LINK]) if kind == "veth" and _IFLA_LINK in have else None,
            peer_namespace=_number(have[_IFLA_LINK_NETNSID]) if _IFLA_LINK_NETNSID in have else None,
            alias=have.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        )

    def _read_link(self, index: int, named: bytes) -> tuple[int, dict[int, bytes]] | None:
        body = _IFINFO.pack(0, 0, index, 0, 0) + named + _u32(_IFLA_EXT_MASK, _SKIP_STATISTICS)
        try:
            answers = self._ask(_GETLINK, 0, body)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        payload = answers[0]
        return int(_IFINFO.unpack_from(payload)[2]), dict(_attributes(payload[_IFINFO.size :]))

    def port_state(self, index: int) -> int | None:
        """The state of a bridge's port, 3 for forwarding; None for what is none, or is gone."""
        found = self._read_link(index, b"")
        if found is None:
            return None
        info = dict(_attributes(found[1].get(_IFLA_LINKINFO, b"")))
        state = dict(_attributes(info.get(_INFO_SLAVE_DATA, b""))).get(_BRPORT_STATE)
        return None if state is None else state[0]

    def add_veth(self, name: str, mtu: int, other: str, namespace: int) -> None:
        """A pair: one end here, the other in a namespace that is given by its descriptor; both down."""
        far = _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, other) + _u32(_IFLA_MTU, mtu)
        far += _u32(_IFLA_NET_NS_FD, namespace)
        info = _text(_INFO_KIND, "veth") + _attribute(_INFO_DATA | _NESTED, _attribute(_VETH_PEER | _NESTED, far))
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu)
        self._do(_NEWLINK, _CREATE | _EXCL, body + _attribute(_IFLA_LINKINFO | _NESTED, info))

    def delete_link(self, index: int) -> None:
        """Remove it."""
        self._do(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))

    def set_up(self, index: int) -> None:
        """Switch it on."""
        self._do(_SETLINK, 0, _IFINFO.pack(0, 0, index, _UP, _UP))

    def set_master(self, index: int, bridge: int) -> None:
        """Make it a port of a bridge."""
        self._do(_SETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _u32(_IFLA_MASTER, bridge))

    def set_mtu(self, index: int, mtu: int) -> None:
        """In octets."""
        self._do(_SETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _u32(_IFLA_MTU, mtu))

    def set_alias(self, index: int, alias: str) -> None:
        """What the link says of itself."""
        self._do(_SETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _attribute(_IFLA_IFALIAS, alias.encode()))

    def set_hairpin(self, index: int, on: bool) -> None:
        """Whether a bridge's port sends frames back where they came from."""
        mode = _attribute(_IFLA_PROTINFO | _NESTED, _attribute(_BRPORT_MODE, bytes((on,))))
        self._do(_SETLINK, 0, _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0) + mode)

    def namespace_number(self, descriptor: int) -> int | None:
        """The number by which this namespace knows another; None if it has none."""
        payload = self._ask(_GETNSID, 0, bytes(4) + _u32(_NETNSA_FD, descriptor))[0]
        number = _S32.unpack(dict(_attributes(payload[4:]))[_NETNSA_NSID])[0]
        return None if number < 0 else int(number)

    # --- addresses and routes ---

    def addresses(self, index: int) -> list[str]:
        """All addresses of an interface but the link-local ones, `ip/prefix`."""
        found = []
        for payload in self._ask(_GETADDR, DUMP, _IFADDR.pack(0, 0, 0, 0, index)):
            _, prefix, _, scope, at = _IFADDR.unpack_from(payload)
            if at == index and scope != _SCOPE_LINK:
                have = dict(_attributes(payload[_IFADDR.size :]))
                packed = have.get(_IFA_LOCAL) or have[_IFA_ADDRESS]
                found.append(str(ip_interface((packed, prefix))))
        return found

    def add_address(self, index: int, address: IPv4Interface | IPv6Interface) -> bool:
        """Give an interface an address; whether it is new."""
        packed, network = address.ip.packed, address.network
        family = socket.AF_INET if isinstance(address, IPv4Interface) else socket.AF_INET6
        body = _IFADDR.pack(family, network.prefixlen, 0, 0, index)
        body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        if family == socket.AF_INET6:
            body += _u32(_IFA_FLAGS, _NODAD)
        elif network.prefixlen < 31:
            body += _attribute(_IFA_BROADCAST, network.broadcast_address.packed)
        return self._created(_NEWADDR, body)

    def add_route(self, index: int, route: Route) -> bool:
        """Through an interface; whether it is new. One that leads there already stays as it is."""
        network, scope = route.destination, _SCOPE_LINK if route.gateway is None else 0
        body = _RTMSG.pack(socket.AF_INET, network.prefixlen, 0, 0, _TABLE_MAIN, _PROTO_BOOT, scope, _UNICAST, 0)
        if network.prefixlen:
            body += _attribute(_RTA_DST, network.network_address.packed)
        body += _u32(_RTA_OIF, index)
        if route.gateway is not None:
            body += _attribute(_RTA_GATEWAY, route.gateway.packed)
        return self._created(_NEWROUTE, body)

    def _created(self, kind: int, body: bytes) -> bool:
        try:
            self._do(kind, _CREATE | _EXCL, body)
        except FileExistsError:
            return False
        return True

    def tune_neighbours(self, index: int) -> None:
        """IPv4 neighbours that moved to another host are found quickly (data plane spec §9).

        What /proc/sys has for this, but also where a container has that for reading only.
        """
        times = ((_NDTPA_BASE_REACHABLE_TIME, 5000), (_NDTPA_DELAY_PROBE_TIME, 2000))
        parameters = _u32(_NDTPA_IFINDEX, index) + _u32(_NDTPA_UCAST_PROBES, 1)
        parameters += b"".join(_attribute(kind, _U64.pack(milliseconds)) for kind, milliseconds in times)
        body = bytes((socket.AF_INET, 0, 0, 0)) + _text(_NDTA_NAME, "arp_cache")
        self._do(_SETNEIGHTBL, 0, body + _attribute(_NDTA_PARMS | _NESTED, parameters))

    # --- messages ---

    def _do(self, kind: int, flags: int, body: bytes) -> None:
        self._ask(kind, flags | ACK, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """The payloads of the answer, without headers."""
        self._sequence += 1
        self._socket.send(request(kind, flags, self._sequence, body))
        found: list[bytes] = []
        while True:
            for answer, _, sequence, payload in each_message(self._socket.recv(_RECEIVE)):
                if sequence != self._sequence:
                    continue
                if answer == ERROR:
                    code = ERRNO.unpack_from(payload)[0]
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                if answer == DONE:
                    return found
                found.append(payload)
            if not flags & (DUMP | ACK):
                return found


def _attribute(kind: int, payload: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(-size % 4)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, _U32.pack(value))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(payload: bytes) -> int:
    return int(_U32.unpack_from(payload)[0])


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + size]
        at += max((size + 3) & ~3, _ATTRIBUTE.size)
