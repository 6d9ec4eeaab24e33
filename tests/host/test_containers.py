"""Who is on the bridge, and by what name, in real namespaces."""

import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from host.attach import attach
from host.bridge import ensure_bridge
from host.containers import EXPOSED, ident_of, scan
from host.errors import HostError
from host.expose import add_address
from tests.namespaces import namespace, run, within

MAC = "0a:00:00:00:00:01"
ONE = ip_interface("10.32.0.5/12")


@pytest.fixture
def host() -> Iterator[str]:
    with namespace() as name:
        within(name, lambda: ensure_bridge("weave", MAC, 1400))
        yield name


def test_this_host_and_a_named_namespace(host: str) -> None:
    with namespace() as container:
        made = within(host, lambda: attach(container, [ONE]))
        add_address_of_host = ip_interface("10.32.0.1/12")
        within(host, lambda: add_address("weave", add_address_of_host))  # type: ignore[arg-type]
        ours, found = within(host, lambda: scan("weave"))
        assert (ours.ident, ours.port, ours.mac, ours.cidrs) == (EXPOSED, "weave", MAC, ("10.32.0.1/12",))
        assert (found.ident, found.port, found.interface) == (container, made.host_interface, "ethwe")
        assert (found.mac, found.cidrs, found.pid) == (made.mac, ("10.32.0.5/12",), None)
        assert found.namespace == f"/run/netns/{container}"
        assert ident_of(container) == container


def test_a_host_without_a_bridge() -> None:
    with namespace() as host:
        assert within(host, lambda: scan("weave")) == []


def test_a_namespace_without_a_name(host: str) -> None:
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as process:
        try:
            inode = wait_for_own_namespace(process.pid)
            within(host, lambda: attach(str(process.pid), [ONE]))
            _, found = within(host, lambda: scan("weave"))
            assert (found.ident, found.pid) == (f"netns:{inode}", process.pid)
            assert ident_of(str(process.pid)) == found.ident
            assert ident_of(f"/proc/{process.pid}/ns/net") == found.ident
        finally:
            process.kill()


def wait_for_own_namespace(pid: int) -> int:
    """The number of the namespace that a child has made by now."""
    ours = Path("/proc/self/ns/net").stat().st_ino
    while (inode := Path(f"/proc/{pid}/ns/net").stat().st_ino) == ours:
        pass
    return inode


CONTAINER = "0123456789abcdef" * 4
GROUPS = [
    f"0::/system.slice/docker-{CONTAINER}.scope",
    f"0::/docker/{CONTAINER}",
    f"12:cpu:/kubepods/burstable/pod5a1b/{CONTAINER}\n0::/kubepods/burstable/pod5a1b/{CONTAINER}",
    f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER}.scope",
    f"0::/machine.slice/libpod-{CONTAINER}.scope/container",
    f"0::/kubepods.slice/crio-{CONTAINER}.scope",
]


@pytest.mark.parametrize("group", GROUPS)
def test_a_container_is_known_by_its_control_group(host: str, tmp_path: Path, group: str) -> None:
    with namespace() as container:
        within(host, lambda: attach(container, [ONE]))
        process = tmp_path / "77"
        (process / "ns").mkdir(parents=True)
        (process / "ns/net").symlink_to(f"/run/netns/{container}")
        (process / "cgroup").write_text(f"{group}\n")
        _, found = within(host, lambda: scan("weave", str(tmp_path)))
        assert (found.ident, found.pid) == (CONTAINER, 77)


def test_names_that_a_runtime_made_up_are_none(host: str) -> None:
    name = "cni-01234567-89ab-cdef-0123-456789abcdef"
    run("ip", "netns", "add", name)
    try:
        within(host, lambda: attach(name, [ONE]))
        _, found = within(host, lambda: scan("weave"))
        assert found.ident == f"netns:{Path('/run/netns', name).stat().st_ino}"
    finally:
        run("ip", "netns", "del", name)


def test_a_container_that_is_none() -> None:
    with pytest.raises(HostError, match="no container, namespace or process"):
        ident_of("nobody")
