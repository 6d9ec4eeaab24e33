"""Names of pods follow the pods."""

from ipaddress import IPv4Network
from typing import Any

import pytest

from weave_py.kube_names import Named, PodNames, trim


def pod(name: str = "web", address: str = "10.32.0.5", **more: Any) -> dict[str, Any]:
    """As the API server sends it."""
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "resourceVersion": "7", "labels": {}},
        "spec": {"hostNetwork": more.get("host", False), "nodeName": "node-1"},
        "status": {"podIP": address, "phase": more.get("phase", "Running")},
    }


def names() -> PodNames:
    return PodNames(IPv4Network("10.32.0.0/12"), "weave.local.")


def kept(document: dict[str, Any]) -> dict[str, Any]:
    found = trim(document)
    assert found is not None
    return found


WEB = Named("web.shop.weave.local.", "pod:uid-web", "10.32.0.5")


def test_over_a_pods_life() -> None:
    made = names()
    assert list(made.applied(kept(pod()))) == [(True, WEB)]
    assert list(made.applied(kept(pod()))) == []
    moved = Named(WEB.hostname, WEB.holder, "10.32.0.6")
    assert list(made.applied(kept(pod(address="10.32.0.6")))) == [(False, WEB), (True, moved)]
    assert list(made.deleted(kept(pod()))) == [(False, moved)]
    assert list(made.deleted(kept(pod()))) == []


@pytest.mark.parametrize("other", [pod(address=""), pod(host=True), pod(phase="Succeeded"), pod(phase="Failed")])
def test_pods_without_an_address_of_their_own(other: dict[str, Any]) -> None:
    assert trim(other) is None


def test_pods_outside_the_overlay_have_no_name() -> None:
    made = names()
    for address in ("192.168.1.5", "fd00::5"):
        assert list(made.applied(kept(pod(address=address)))) == []


def test_only_what_matters_is_kept() -> None:
    assert kept(pod()) == {
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"},
        "status": {"podIP": "10.32.0.5"},
    }
