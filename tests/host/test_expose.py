"""Addresses of the host in the overlay, routes that are in the way, and a host that is as it was afterwards."""

from collections.abc import Iterator
from ipaddress import IPv4Interface, ip_interface
from pathlib import Path

import pytest

from host.attach import attach
from host.bridge import ensure_bridge
from host.errors import HostError
from host.expose import expose, hide, on_bridge
from host.reset import reset
from host.routes import overlap
from host.rules import Plan, Rules
from tests.host.iptables import LEGACY, NATIVE, iptables, works
from tests.host.views import addresses, ruleset, watching
from tests.namespaces import namespace, run, within
from tests.vectors import ROOT

MAC = "00:00:00:00:00:01"
ONE, SECOND, OTHER = (IPv4Interface(text) for text in ("10.32.0.2/12", "10.32.0.3/12", "10.33.7.1/24"))


@pytest.fixture
def host() -> Iterator[str]:
    with namespace() as name:
        within(name, lambda: ensure_bridge("weave", MAC, 1400))
        yield name


def test_an_exposed_host_is_as_the_captured_one(host: str) -> None:
    rules = Rules(Plan("weave"))
    for _ in range(2):
        within(host, lambda: expose(rules, ONE, True))
    captured = (ROOT / "api/ip-addr.host1-exposed.txt").read_text()
    line = "inet 10.32.0.2/12 brd 10.47.255.255 scope global weave"
    assert line in captured
    assert line in run("ip", "-n", host, "addr")
    route = (ROOT / "api/ip-route.host1-exposed.txt").read_text().splitlines()[0].strip()
    assert run("ip", "-n", host, "route").replace(" linkdown", "").strip() == route
    assert within(host, lambda: on_bridge("weave")) == (ONE,)
    assert within(host, lambda: hide(rules, ONE))
    assert not within(host, lambda: hide(rules, ONE))
    assert run("ip", "-n", host, "route") == ""
    assert rules.plan.exposed == {}


def test_hiding_one_of_a_network_leaves_the_other(host: str) -> None:
    rules = Rules(Plan("weave"))
    for address in (ONE, SECOND, OTHER):
        within(host, lambda address=address: expose(rules, address, True))  # type: ignore[misc]
    within(host, lambda: hide(rules, ONE))
    assert addresses(host, "weave") == {"10.32.0.3/12", "10.33.7.1/24"}
    assert "10.32.0.0/12" in ruleset(host)
    within(host, lambda: hide(rules, SECOND))
    assert "10.32.0.0/12" not in ruleset(host)


def test_exposing_is_announced(host: str) -> None:
    with namespace() as container:
        within(host, lambda: attach(container, [ip_interface("10.32.0.9/12")]))

        with watching(container) as sock:
            within(host, lambda: expose(Rules(Plan("weave")), ONE, True))
            assert sock.recv(100)[22:42] == bytes.fromhex("000000000001") + ONE.ip.packed + b"\xff" * 6 + ONE.ip.packed


def test_without_a_bridge_nothing_is_exposed() -> None:
    with namespace() as empty:
        assert within(empty, lambda: on_bridge("weave")) == ()
        with pytest.raises(HostError, match="bridge weave does not exist: is the router running"):
            within(empty, lambda: expose(Rules(Plan("weave")), ONE, True))
        assert not within(empty, lambda: hide(Rules(Plan("weave")), ONE))


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("10.32.0.0/12", "Network 10.32.0.0/12 overlaps with existing route 10.40.0.0/16 on host"),
        ("10.40.5.1/24", "Address 10.40.5.1/24 overlaps with existing route 10.40.0.0/16 on host"),
        ("10.41.0.1/12", None),
        ("172.16.0.0/12", None),
        ("10.50.0.0/16", None),
    ],
)
def test_routes_in_the_way(host: str, wanted: str, problem: str | None) -> None:
    run("ip", "-n", host, "link", "set", "lo", "up")
    run("ip", "-n", host, "route", "add", "10.40.0.0/16", "dev", "lo")
    run("ip", "-n", host, "route", "add", "default", "dev", "lo")
    run("ip", "-n", host, "addr", "add", "10.50.0.1/16", "dev", "weave")
    assert within(host, lambda: overlap(IPv4Interface(wanted), "weave")) == problem


# --- reset ---


def state(place: str) -> tuple[str, ...]:
    """Links, addresses, routes, rules and settings of a host."""
    shown = [run("ip", "-n", place, *words) for words in (("-o", "link"), ("-o", "addr"), ("route",), ("rule",))]
    settings = run("ip", "netns", "exec", place, "sysctl", "-a", check=False)
    stable = [line for line in settings.splitlines() if line.startswith("net.") and "_count" not in line]
    return (*shown, ruleset(place), "\n".join(stable))


@pytest.mark.parametrize("program", [None, NATIVE, LEGACY])
def test_reset_leaves_the_host_as_it_was(tmp_path: Path, program: str | None) -> None:
    with namespace() as host, namespace() as container:
        if program is not None:
            works(host, program)
            iptables(host, program, "-P", "FORWARD", "DROP")
        before, inside = state(host), state(container)
        filtered = "" if program is None else iptables(host, program, "-S")
        within(host, lambda: ensure_bridge("weave", MAC, 1400))
        within(host, lambda: attach(container, [ip_interface("10.32.0.9/12")]))
        rules = Rules(Plan("weave", control_port=6784))
        within(host, lambda: expose(rules, ONE, True))
        assert state(host) != before
        within(host, lambda: reset("weave"))
        assert state(host) == before
        assert state(container) == inside
        assert program is None or iptables(host, program, "-S") == filtered
