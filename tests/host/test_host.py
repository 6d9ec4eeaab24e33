"""What is made on a host, made for real in network namespaces."""

import json
import os
import subprocess
from ipaddress import ip_interface
from pathlib import Path

import pytest

from host import netns
from host.attach import attach, detach, host_names
from host.bridge import MAX_TAP_MTU, TAP_NAME, bridge_type, ensure_bridge, open_tap, reset
from host.errors import HostError
from host.identity import hashed_name, system_name
from nft.expressions import drop, in_interface
from nft.ruleset import Hook, Transaction
from nft.wire import NftError
from tests.namespaces import namespace, run, within

MAC = "0a:00:00:00:00:01"


@pytest.mark.parametrize(
    ("machine_id", "uuid", "name"),
    [
        (b"0123456789abcdef0123456789abcdef\n", b"4C4C4544-0042-3510-8054-B4C04F4D3332\n", "b2:90:48:6f:19:ae"),
        (b"", b"4C4C4544-0042-3510-8054-B4C04F4D3332\n", "f6:28:7b:e2:f2:77"),
        (b"0123456789abcdef0123456789abcdef\n", b"", "0a:39:ab:6e:42:c6"),
        (b"aaaabbbbccccddddeeeeffff00001111\n", b"", "42:35:1d:71:f3:a6"),
    ],
)
def test_names_are_those_of_the_reference(machine_id: bytes, uuid: bytes, name: str) -> None:
    assert hashed_name(machine_id, uuid) == name


def test_no_ids_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="All system IDs are blank"):
        system_name(str(tmp_path), str(tmp_path))


def test_the_second_machine_id_is_used(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dbus").mkdir(parents=True)
    (tmp_path / "var/lib/dbus/machine-id").write_bytes(b"aaaabbbbccccddddeeeeffff00001111\n")
    assert system_name(str(tmp_path), str(tmp_path)) == "42:35:1d:71:f3:a6"


def links(name: str) -> dict[str, dict[str, object]]:
    return {link["ifname"]: link for link in json.loads(run("ip", "-n", name, "-d", "-j", "link"))}


def test_bridge_and_tap() -> None:
    with namespace() as host:
        assert within(host, lambda: bridge_type("weave")) in ("none", "bridge")
        for _ in range(2):
            within(host, lambda: ensure_bridge("weave", MAC, MAX_TAP_MTU))
        tap = within(host, lambda: open_tap("weave", MAX_TAP_MTU))
        made = links(host)
        assert made["weave"]["address"] == MAC
        assert made["weave"]["mtu"] == made[TAP_NAME]["mtu"] == MAX_TAP_MTU
        assert made[TAP_NAME]["master"] == "weave"
        assert made[TAP_NAME]["linkinfo"]["info_slave_data"]["isolated"] is True  # type: ignore[index]
        with pytest.raises(HostError, match="another router runs here"):
            within(host, lambda: open_tap("weave", MAX_TAP_MTU))
        os.close(tap)
        assert TAP_NAME not in links(host)
        assert within(host, lambda: reset("weave")) == ["weave"]


def test_an_old_capture_pair_goes() -> None:
    with namespace() as host:
        run("ip", "-n", host, "link", "add", "weave", "type", "bridge")
        run("ip", "-n", host, "link", "add", "vethwe-bridge", "type", "veth", "peer", "name", "vethwe-pcap")
        within(host, lambda: ensure_bridge("weave", MAC, 1400))
        assert set(links(host)) == {"lo", "weave"}


def test_a_bridge_that_is_none_is_refused() -> None:
    with namespace() as host:
        run("ip", "-n", host, "link", "add", "weave", "type", "veth", "peer", "name", "other")
        with pytest.raises(HostError, match="no Linux bridge"):
            within(host, lambda: ensure_bridge("weave", MAC, 1400))


def test_mtu_out_of_range() -> None:
    with pytest.raises(HostError, match="choose one from 576"):
        ensure_bridge("weave", MAC, 65535)


def test_attach_and_detach() -> None:
    with namespace() as host, namespace() as container:
        within(host, lambda: ensure_bridge("weave", MAC, 1400))
        one, two = ip_interface("10.32.0.5/12"), ip_interface("10.40.0.5/24")
        for _ in range(2):
            made = within(host, lambda: attach(container, [one, ip_interface("fd00::5/64")]))
        assert made.interface == "ethwe"
        assert set(made.addresses) == {"10.32.0.5/12", "fd00::5/64"}
        assert len(made.host_interface) <= 15
        port = links(host)[made.host_interface]
        assert port["master"] == "weave"
        assert port["linkinfo"]["info_slave_data"]["hairpin"] is True  # type: ignore[index]
        assert links(container)["ethwe"]["mtu"] == 1400
        assert "224.0.0.0/4 dev ethwe scope link" in run("ip", "-n", container, "route")
        within(host, lambda: attach(container, [two]))
        rules = run("ip", "netns", "exec", container, "nft", "list", "ruleset")
        for expected in (
            'iifname "ethwe" ip saddr 10.32.0.0/12 ip daddr 224.0.0.0/4 accept',
            'iifname "ethwe" ip saddr 10.40.0.0/24 ip daddr 224.0.0.0/4 accept',
            'iifname "ethwe" ip daddr 224.0.0.0/4 drop',
        ):
            assert expected in rules
        assert within(host, lambda: detach(container, [two])) == ("10.40.0.5/24",)
        assert "10.40.0.0/24" not in run("ip", "netns", "exec", container, "nft", "list", "ruleset")
        assert set(within(host, lambda: detach(container))) == {"10.32.0.5/12", "fd00::5/64"}
        assert set(links(host)) == {"lo", "weave"}
        assert run("ip", "netns", "exec", container, "nft", "list", "ruleset") == ""
        assert within(host, lambda: detach(container)) == ()


def test_a_failed_attach_leaves_nothing() -> None:
    with namespace() as host, namespace() as container:
        within(host, lambda: ensure_bridge("weave", MAC, 1400))
        run("ip", "netns", "exec", container, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        with pytest.raises(HostError, match="unable to attach"):
            within(host, lambda: attach(container, [ip_interface("fd00::5/64")]))
        assert set(links(host)) == {"lo", "weave"}
        assert set(links(container)) == {"lo"}


def test_whom_not_to_attach() -> None:
    with pytest.raises(HostError, match="host's own network namespace"):
        netns.find(str(os.getpid()))
    with pytest.raises(HostError, match="no container, namespace or process 'nosuch'"):
        netns.find("nosuch")
    with pytest.raises(HostError, match="unable to open"):
        netns.find("/nonexistent")


def test_a_pid_is_a_target() -> None:
    with namespace() as container:
        child = subprocess.Popen(["ip", "netns", "exec", container, "sleep", "60"])
        try:
            while within(container, lambda: None) is None and os.readlink(f"/proc/{child.pid}/ns/net") == os.readlink(
                "/proc/self/ns/net"
            ):
                pass
            assert netns.find(str(child.pid)).identity == str(child.pid)
        finally:
            child.kill()
            child.wait()


def test_interface_names_are_safe_and_unique() -> None:
    assert host_names("12345") == ("vethwepl12345", "vethwepg12345")
    long = {host_names(f"container-{number}")[0] for number in range(100)}
    assert len(long) == 100
    assert all(len(name) <= 15 for name in long)


def test_a_refused_transaction_names_the_object_and_changes_nothing() -> None:
    with namespace() as host:

        def bad() -> None:
            with Transaction("weave") as change:
                change.ensure_table()
                change.add_chain("input", Hook.INPUT)
                change.add_rule("nosuch", in_interface("x"), drop())

        with pytest.raises(NftError, match="a rule of chain inet weave nosuch: No such file"):
            within(host, bad)
        assert run("ip", "netns", "exec", host, "nft", "list", "ruleset") == ""
