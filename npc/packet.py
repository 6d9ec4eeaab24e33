"""The headers of an IP packet, as far as a policy looks into them. Source: RFC 791, RFC 8200, RFC 9293, RFC 9260."""

from dataclasses import dataclass
from ipaddress import ip_address

TCP, UDP, SCTP = 6, 17, 132
NAMES = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP", 1: "ICMP", 58: "ICMPv6"}
_EXTENSIONS = frozenset((0, 43, 60, 135))
_FRAGMENT = 44
_SYN, _ACK = 0x02, 0x10
_INIT = 1
_FLAGS = 13
_CHUNK = 12


@dataclass(frozen=True, slots=True)
class Packet:
    """Whence and whither, in network order; ports are 0 where a protocol has none or they are not in sight.

    `opens`: it is the first of a connection (of UDP and protocols without connections: any).
    """

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    port: int = 0
    opens: bool = True

    @property
    def protocol_name(self) -> str:
        """As people write it; the number where nobody gave it a name."""
        return NAMES.get(self.protocol, f"protocol {self.protocol}")

    def end(self, address: bytes, port: int) -> str:
        """An end of it, as `ADDRESS:PORT`."""
        shown = str(ip_address(address))
        if not port:
            return shown
        return f"[{shown}]:{port}" if len(address) == 16 else f"{shown}:{port}"

    def __str__(self) -> str:
        here, there = self.end(self.source, self.source_port), self.end(self.destination, self.port)
        return f"{self.protocol_name} connection from {here} to {there}"


def parse(packet: bytes) -> Packet | None:
    """What the first bytes of a packet say; None if they are none of IP."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        first = not int.from_bytes(packet[6:8], "big") & 0x1FFF
        return _transport(packet[12:16], packet[16:20], packet[9], packet[(packet[0] & 15) * 4 :] if first else b"")
    if version == 6 and len(packet) >= 40:
        protocol, rest = _behind_extensions(packet[6], packet[40:])
        return _transport(packet[8:24], packet[24:40], protocol, rest)
    return None


def _behind_extensions(protocol: int, rest: bytes) -> tuple[int, bytes]:
    while len(rest) >= 8:
        if protocol in _EXTENSIONS:
            protocol, rest = rest[0], rest[(rest[1] + 1) * 8 :]
        elif protocol == _FRAGMENT:
            first = not int.from_bytes(rest[2:4], "big") & 0xFFF8
            protocol, rest = rest[0], rest[8:] if first else b""
        else:
            break
    return protocol, rest


def _transport(source: bytes, destination: bytes, protocol: int, rest: bytes) -> Packet:
    if protocol not in (TCP, UDP, SCTP) or len(rest) < 4:
        return Packet(source, destination, protocol)
    opens = True
    if protocol == TCP and len(rest) > _FLAGS:
        opens = rest[_FLAGS] & (_SYN | _ACK) == _SYN
    if protocol == SCTP and len(rest) > _CHUNK:
        opens = rest[_CHUNK] == _INIT
    ports = (int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:4], "big"))
    return Packet(source, destination, protocol, *ports, opens)
