"""What `weave setup-cni` leaves on a node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cni.install import COURIER, InstallError, configuration, install

OLD = """{
    "cniVersion": "0.3.0",
    "name": "weave",
    "plugins": [
        {
            "name": "weave",
            "type": "weave-net",
            "hairpinMode": HAIRPIN
        },
        {
            "type": "portmap",
            "capabilities": {"portMappings": true},
            "snat": true
        }
    ]
}
"""


def test_a_fresh_node(tmp_path: Path) -> None:
    plugins, where = tmp_path / "opt/cni/bin", tmp_path / "etc/cni/net.d"
    install(plugins, where, "1.2", None)
    assert sorted(os.listdir(plugins)) == ["weave-ipam", "weave-net", "weave-plugin-1.2"]
    assert [os.readlink(plugins / name) for name in ("weave-net", "weave-ipam")] == ["weave-plugin-1.2"] * 2
    assert (plugins / "weave-net").read_bytes() == COURIER.read_bytes()
    assert os.access(plugins / "weave-net", os.X_OK)
    assert os.listdir(where) == ["10-weave.conflist"]
    document = json.loads((where / "10-weave.conflist").read_text())
    assert (document["cniVersion"], document["cniVersions"]) == ("1.0.0", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    assert [each["type"] for each in document["plugins"]] == ["weave-net", "portmap"]
    assert install(plugins, where, "1.2", None) == []


def test_over_an_old_version(tmp_path: Path) -> None:
    for name in ("weave-net", "weave-ipam"):
        (tmp_path / name).write_text("a copy, as very old versions had")
    (tmp_path / "weave-plugin-2.8.1").write_text("theirs")
    (tmp_path / "10-weave.conf").write_text("{}")
    install(tmp_path, tmp_path, "1.2", None)
    assert os.readlink(tmp_path / "weave-net") == "weave-plugin-1.2"
    assert (tmp_path / "weave-plugin-2.8.1").read_text() == "theirs"
    assert not (tmp_path / "10-weave.conf").exists()


@pytest.mark.parametrize(
    ("before", "asked", "after"), [("true", None, True), ("false", None, False), ("true", False, False)]
)
def test_the_old_default_becomes_ours(tmp_path: Path, before: str, asked: bool | None, after: bool) -> None:
    path = tmp_path / "10-weave.conflist"
    path.write_text(OLD.replace("HAIRPIN", before))
    install(tmp_path, tmp_path, "1.2", asked)
    assert path.read_text() == configuration(after)


def test_what_somebody_changed_stays(tmp_path: Path) -> None:
    path = tmp_path / "10-weave.conflist"
    path.write_text(OLD.replace("HAIRPIN", "true").replace('"snat": true', '"snat": false'))
    said = install(tmp_path, tmp_path, "1.2", None)
    assert said[-1] == f"left {path} as it is: it was changed by hand"
    assert '"snat": false' in path.read_text()


def test_without_the_courier(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="absent is missing: it is built by script/bootstrap"):
        install(tmp_path, tmp_path, "1.2", None, tmp_path / "absent")


def test_the_command(tmp_path: Path) -> None:
    environment = {**os.environ, "HOST_ROOT": str(tmp_path), "HAIRPIN_MODE": "false"}
    command = [sys.executable, "-m", "weave_py.cli", "setup-cni"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (tmp_path / "opt/cni/bin/weave-net").exists()
    assert (tmp_path / "etc/cni/net.d/10-weave.conflist").read_text() == configuration(False)
    assert f"wrote {tmp_path}/etc/cni/net.d/10-weave.conflist" in done.stderr
