"""The way back to Weave Net: what is ours goes, what containers stand on stays."""

from ipaddress import IPv4Interface

from host.attach import attach
from host.bridge import ensure_bridge
from host.hand_back import hand_back
from host.rules import Plan, Rules
from host.vxlan import ensure_vxlan
from nft import readback
from nft.ruleset import Transaction
from tests.namespaces import namespace, run, within

NAME = "0a:00:00:00:00:01"


def checksums(place: str, interface: str) -> str:
    """`on` or `off`."""
    return run("ip", "netns", "exec", place, "ethtool", "-k", interface).partition("tx-checksumming: ")[2].split()[0]


def test_what_is_ours_goes_and_containers_stay() -> None:
    with namespace() as host, namespace() as container:
        within(host, lambda: ensure_bridge("weave", NAME, 1376))
        within(host, lambda: ensure_vxlan("weave", 6784, 1376, floods=True))
        run("ip", "-n", host, "addr", "add", "10.32.0.1/12", "dev", "weave")
        within(host, lambda: attach(container, [IPv4Interface("10.32.0.2/12")]))
        within(host, Rules(Plan("weave", exposed={IPv4Interface("10.32.0.1/12"): True})).apply)
        within(host, _policy)
        face = run("ip", "-n", container, "-br", "addr", "show", "ethwe")
        assert (checksums(host, "weave"), checksums(container, "ethwe")) == ("on", "on")
        said = within(host, lambda: hand_back("weave"))
        assert said[:3] == ["removed vxlan-6784", "removed table inet weave", "removed table inet weave_npc"]
        assert said[3] == f"checksums of container {container} are its own"
        assert said[4].endswith("start Weave Net with --no-fastdp (WEAVE_NO_FASTDP=1)") and len(said) == 5
        assert within(host, readback.tables) == ()
        assert (checksums(host, "weave"), checksums(container, "ethwe")) == ("off", "off")
        assert run("ip", "-n", container, "-br", "addr", "show", "ethwe") == face
        assert "10.32.0.1/12" in run("ip", "-n", host, "addr", "show", "weave")
        run("ip", "netns", "exec", host, "ping", "-c", "1", "-W", "3", "10.32.0.2")
        assert within(host, lambda: hand_back("weave"))[0].startswith("checksums of container")


def _policy() -> None:
    with Transaction("weave_npc") as change:
        change.ensure_table()


def test_a_host_without_a_bridge() -> None:
    with namespace() as host:
        assert within(host, lambda: hand_back("weave")) == []
