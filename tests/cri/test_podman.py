"""podman as a second caller: its own way to probe versions, other paths to namespaces, CNI_ARGS with an address."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cni.install import configuration
from lab.net import NETNS, inside, run
from lab.router import RANGE, wait_until
from tests.clusters import Cluster, cluster
from tests.cni.plugin import COURIER
from tests.cri.runtime import PLUGINS, pause_image


def missing() -> str:
    """What is lacking here; empty if nothing."""
    programs = [name for name in ("podman", "runc", "gcc") if shutil.which(name) is None]
    if programs:
        return f"not installed: {', '.join(programs)} (Debian: podman runc gcc)"
    if not (PLUGINS / "portmap").exists():
        return f"{PLUGINS}/portmap is missing (Debian: containernetworking-plugins)"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@dataclass(slots=True)
class Podman:
    """podman with storage and networks of its own, on a node."""

    made: Cluster
    directory: Path

    def __call__(self, *words: str) -> str:
        variables = [
            f"CONTAINERS_CONF={self.directory}/containers.conf",
            f"CONTAINERS_STORAGE_CONF={self.directory}/storage.conf",
        ]
        # Not `ip netns exec`: control groups have to be there.
        node = f"--net={NETNS / self.made.underlay.host(1).namespace}"
        return run("nsenter", node, "env", *variables, "podman", "--cgroup-manager", "cgroupfs", *words).strip()

    def address(self, name: str) -> str:
        found = json.loads(self("inspect", name))[0]["NetworkSettings"]["Networks"]["weave"]
        assert isinstance(found["IPAddress"], str)
        return found["IPAddress"]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with cluster(ipam=RANGE) as made:
        made.start(1, [], "--socket", str(made.directory / "h1/weaver.sock"))
        found = Podman(made, tmp_path_factory.mktemp("podman"))
        plugins, networks = found.directory / "plugins", found.directory / "net.d"
        plugins.mkdir()
        networks.mkdir()
        for plugin in PLUGINS.iterdir():
            (plugins / plugin.name).symlink_to(plugin)
        # A container that ends is cleaned up by a process of its own, which has no variables of ours.
        (found.directory / "weave-net").symlink_to(COURIER)
        here = made.directory / "h1"
        (plugins / "weave-net").write_text(
            f"#!/bin/sh\nexport WEAVE_CNI_SOCKET={here}/weaver.sock WEAVE_CNI_SPOOL={here}/cni\n"
            f"exec {found.directory}/weave-net\n"
        )
        (plugins / "weave-net").chmod(0o755)
        (networks / "10-weave.conflist").write_text(configuration(True))
        (found.directory / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
            f'[engine]\nruntime = "runc"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "cni"\nnetwork_config_dir = "{networks}"\ncni_plugin_dirs = ["{plugins}"]\n'
        )
        (found.directory / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\nrunroot = "{found.directory}/run"\ngraphroot = "{found.directory}/graph"\n'
        )
        image = found.directory / "pause.tar"
        image.write_bytes(pause_image(found.directory))
        found("load", "-q", "-i", str(image))
        try:
            yield found
        finally:
            with contextlib.suppress(Exception):
                found("rm", "-a", "-f", "-t", "1")


def test_containers_of_podman(podman: Podman) -> None:
    router = podman.made.routers[1]
    image = "localhost/pause:1"
    one = podman("run", "-d", "--name", "one", "--network", "weave", "-p", "18081:8080", image)
    podman("run", "-d", "--name", "two", "--network", "weave", "--ip", "10.33.0.7", image)
    assert podman.address("two") == "10.33.0.7"
    assert one in router.get("/ip")
    pid = podman("inspect", "-f", "{{.State.Pid}}", "one")
    run("nsenter", f"--net=/proc/{pid}/ns/net", "ping", "-c", "1", "-W", "3", "10.33.0.7")
    rules = run(*inside(podman.made.underlay.host(1).namespace, "iptables-save", "-t", "nat"))
    assert f"--to-destination {podman.address('one')}:8080" in rules
    podman("rm", "-f", "-t", "1", "one", "two")
    wait_until("no address is held", lambda: one not in router.get("/ip") and "10.33.0.7" not in router.get("/ip"), 10)
    assert "vethwepl" not in run("ip", "-n", podman.made.underlay.host(1).namespace, "link")


def test_the_state_is_podmans_own(podman: Podman) -> None:
    assert str(podman.directory) in podman("info", "-f", "{{.Store.GraphRoot}}")
    assert os.path.exists(podman.directory / "graph")
