"""What a node is prepared with."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.errors import HostError
from weave_py.kube_init import install_plugin, load_modules, open_settings, plugin_directory

LOG = logging.getLogger("test")


def test_where_plugins_go(tmp_path: Path) -> None:
    told = {"HOST_ROOT": str(tmp_path)}
    with pytest.raises(
        HostError, match=f"Failed to install the Weave CNI plugin: there is neither {tmp_path}/opt/cni/bin"
    ):
        plugin_directory(told)
    (tmp_path / "home/kubernetes/bin").mkdir(parents=True)
    assert plugin_directory(told) == tmp_path / "home/kubernetes/bin"
    (tmp_path / "opt/cni/bin").mkdir(parents=True)
    assert plugin_directory(told) == tmp_path / "opt/cni/bin"
    assert plugin_directory({**told, "WEAVE_CNI_PLUGIN_DIR": "/elsewhere"}) == Path("/elsewhere")


def test_the_plugin_is_installed(tmp_path: Path) -> None:
    """Beside whatever else the node has there, and its configuration is ours from the first start."""
    (tmp_path / "opt/cni/bin").mkdir(parents=True)
    install_plugin({"HOST_ROOT": str(tmp_path), "HAIRPIN_MODE": "false"}, LOG)
    plugin = tmp_path / "opt/cni/bin/weave-net"
    assert os.access(plugin, os.X_OK)
    written = json.loads((tmp_path / "etc/cni/net.d/10-weave.conflist").read_text())
    assert written["plugins"][0]["hairpinMode"] is False


def test_modules_that_are_not_there_are_no_error() -> None:
    load_modules(LOG)


def test_settings_become_writable() -> None:
    """As in a container that is not privileged: /proc/sys is mounted once more, read-only."""
    program = (
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys && "
        "! (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && python3 -c 'import logging;"
        'from weave_py.kube_init import open_settings; open_settings(logging.getLogger("test"))\' && '
        "echo 1 > /proc/sys/net/ipv4/ip_forward"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["unshare", "--mount", "--net", "bash", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path}, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    open_settings(LOG)
