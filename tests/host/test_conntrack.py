"""Connections that the kernel remembers."""

import socket
from ipaddress import IPv4Interface

from host.bridge import ensure_bridge
from host.conntrack import forget_udp
from host.rules import Plan, Rules
from tests.namespaces import namespace, within


def test_what_is_known_of_the_mesh_is_forgotten() -> None:
    def talk() -> None:
        for port in (6783, 6783, 9):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", ("127.0.0.1", port))

    with namespace() as host:
        within(host, lambda: ensure_bridge("weave", "0a:00:00:00:00:01", 1400))
        assert within(host, lambda: forget_udp(6783)) == 0
        # NAT makes the kernel track connections.
        within(host, Rules(Plan("weave", exposed={IPv4Interface("10.32.0.1/12"): True})).apply)
        within(host, talk)
        assert within(host, lambda: forget_udp(6783)) == 2
        assert within(host, lambda: forget_udp(6783)) == 0
        assert within(host, lambda: forget_udp(9)) == 1
