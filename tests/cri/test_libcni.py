"""The library that runtimes call plugins with, in a small program: negotiation, its cache of results, CHECK."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.net import NETNS
from lab.router import RANGE, wait_until
from tests.clusters import cluster
from tests.cni.plugin import COURIER
from tests.namespaces import namespace, run

_SOURCE = Path("/usr/share/gocode/src/github.com/containernetworking/cni")


def missing() -> str:
    """What is lacking here; empty if nothing."""
    if shutil.which("go") is None:
        return "not installed: go (Debian: golang-go)"
    return "" if _SOURCE.exists() else f"{_SOURCE} is missing (Debian: golang-github-appc-cni-dev)"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("go") / "libcni"
    variables = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(target.parent / "cache")}
    source = Path(__file__).parent / "libcni/main.go"
    command = ["go", "build", "-o", str(target), str(source)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def router() -> Iterator[Path]:
    with cluster(ipam=RANGE) as made:
        made.start(1, [], "--socket", str(made.directory / "h1/weaver.sock"))
        yield made.directory / "h1"


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_libcni(program: Path, router: Path, tmp_path: Path, version: str) -> None:
    (tmp_path / "weave-net").symlink_to(COURIER)
    conflist = tmp_path / "10-weave.conflist"
    conflist.write_text(
        json.dumps({"cniVersion": version, "name": "weave", "plugins": [{"type": "weave-net", "hairpinMode": True}]})
    )
    variables = {**os.environ, "WEAVE_CNI_SOCKET": str(router / "weaver.sock"), "WEAVE_CNI_SPOOL": str(router / "cni")}

    def call(command: str, pod: str) -> "subprocess.CompletedProcess[str]":
        words = [str(conflist), str(tmp_path), f"{tmp_path}/cache", command, f"lib-{version}", str(NETNS / pod), "eth0"]
        return subprocess.run([program, *words], env=variables, capture_output=True, text=True, check=False, timeout=60)

    with namespace() as pod:
        assert call("validate", pod).returncode == 0
        added = call("add", pod)
        assert added.returncode == 0, added.stderr
        result = json.loads(added.stdout)
        assert (result["cniVersion"], result["interfaces"][2]["name"]) == (version, "eth0")
        if version >= "0.4.0":
            assert call("check", pod).returncode == 0
            run("ip", "-n", pod, "route", "del", "default")
            assert "the default route is missing" in call("check", pod).stderr
        assert call("del", pod).returncode == 0
        wait_until("the interface is gone", lambda: "eth0" not in run("ip", "-n", pod, "link"), 10)
        assert call("del", pod).returncode == 0
