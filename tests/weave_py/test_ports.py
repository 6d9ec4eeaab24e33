"""What the router makes on its host: with the kernel's data path, and with a reason why not."""

import logging
import os
from collections.abc import Callable

import pytest

from fastdp.ipsec import problem
from fastdp.kernel import KernelError
from host import peer_vxlan
from host.errors import HostError
from mesh.names import PeerName
from tests.namespaces import namespace, run, within
from weave_py import ports
from weave_py.ports import Ports, prepare
from weave_py.settings import Settings, check, parse

LOG = logging.getLogger("test.ports")
NAME = PeerName(0x020000000001)


def settings(*flags: str, password: str = "") -> Settings:
    values, given, peers = parse(flags)
    return check(values, given, peers, {"WEAVE_PASSWORD": password} if password else {})


def made(*flags: str, password: str = "") -> tuple[Ports, str]:
    """What there is then, and the links."""
    with namespace() as host:
        result = within(host, lambda: prepare(settings(*flags, password=password), NAME, LOG))
        links = run("ip", "-n", host, "-d", "link")
        os.close(result.tap)
        if result.kernel is not None:
            result.kernel.close()
        return result, links


def test_the_kernel_carries() -> None:
    result, links = made()
    assert result.kernel is not None and result.mtu == 1376
    assert "vxlan-6784" in links and "dstport 6784" in links and "vethwe-ctl" in links
    port = links[links.index("vxlan-6784") :]
    assert "isolated on" in port and "flood on" in port
    assert "flood off mcast_flood" not in port[: port.index("isolated on")]


@pytest.mark.parametrize(
    ("flags", "password", "fast"),
    [
        (("--no-fastdp",), "", False),
        ((), "secret", not problem()),
        (("--trusted-subnets", "10.0.0.0/8"), "secret", True),
        (("--mtu", "8950"), "", True),
    ],
    ids=["told not to", "all encrypted", "some in clear", "another MTU"],
)
def test_when_it_is_had(flags: tuple[str, ...], password: str, fast: bool) -> None:
    result, links = made(*flags, password=password)
    assert (result.kernel is not None) == fast == ("vxlan-6784" in links)
    assert result.mtu == (8950 if "8950" in flags else 1376 if fast else 65521)


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(device: Callable[[int], int], port: int, *rest: object) -> None:
        device(port)
        raise KernelError("no BPF: Operation not permitted")

    def refuse_devices(*arguments: object) -> None:
        raise HostError("unable to make vxlan-p: Operation not supported")

    monkeypatch.setattr(ports, "Kernel", refuse)
    with caplog.at_level("WARNING"):
        result, links = made()
    assert result.kernel is None and result.devices is not None and result.mtu == 1376
    assert "vxlan" not in links and "vethwe-ctl" not in links, "the first peer's device is made when it connects"
    assert "by a device each: no BPF: Operation not permitted" in caplog.text
    caplog.clear()
    monkeypatch.setattr(peer_vxlan, "make", refuse_devices)
    with caplog.at_level("WARNING"):
        result, links = made()
    assert result.kernel is None and result.devices is None and result.mtu == 65521
    assert "vxlan" not in links and "vethwe-ctl" not in links and "mtu 65521" in links
    assert "frames are carried over sleeve only: no BPF: Operation not permitted; unable to make" in caplog.text


def test_an_old_datapath_is_replaced_by_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: object) -> None:
        raise KernelError("no BPF: Operation not permitted")

    monkeypatch.setattr(ports, "Kernel", refuse)
    with namespace() as host:
        run("ip", "-n", host, "link", "add", "vxlan-6784", "type", "vxlan", "external", "dstport", "6784")
        run("ip", "-n", host, "link", "set", "vxlan-6784", "up")
        result = within(host, lambda: prepare(settings(), NAME, LOG))
        assert result.devices is not None and "vxlan-6784" not in run("ip", "-n", host, "link")
        os.close(result.tap)


def test_an_old_datapath_is_replaced() -> None:
    """What a 2.8 router leaves: a device of that name which is no port of the bridge."""
    with namespace() as host:
        run("ip", "-n", host, "link", "add", "vxlan-6784", "type", "vxlan", "external", "dstport", "6784")
        run("ip", "-n", host, "link", "set", "vxlan-6784", "up")
        before = run("ip", "-n", host, "-o", "link", "show", "vxlan-6784").partition(":")[0]
        result = within(host, lambda: prepare(settings(), NAME, LOG))
        assert result.kernel is not None
        after = run("ip", "-n", host, "-o", "link", "show", "vxlan-6784")
        assert after.partition(":")[0] != before and "master weave" in after
        os.close(result.tap)
        result.kernel.close()
