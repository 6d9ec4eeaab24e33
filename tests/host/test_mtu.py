"""MTUs that follow the bridge's, and the underlay's."""

from host.bridge import ensure_bridge
from host.links import ports
from host.mtu import fit_containers, underlay_mtu
from tests.namespaces import namespace, run, within


def test_a_container_of_a_larger_bridge_is_fitted() -> None:
    with namespace() as host, namespace() as container:
        within(host, lambda: ensure_bridge("weave", "02:00:00:00:00:01", 9000))
        run(
            "ip",
            "-n",
            host,
            "link",
            "add",
            "vethwepl1",
            "mtu",
            "9000",
            "type",
            "veth",
            "peer",
            "name",
            "ethwe",
            "mtu",
            "9000",
        )
        run("ip", "-n", host, "link", "set", "vethwepl1", "master", "weave", "up")
        run("ip", "-n", host, "link", "set", "ethwe", "netns", container)
        assert within(host, lambda: fit_containers("weave", 9000)) == []
        assert within(host, lambda: fit_containers("weave", 1376)) == [container]
        assert "mtu 1376 " in run("ip", "-n", container, "link", "show", "ethwe")
        assert {port.mtu for port in within(host, lambda: ports("weave"))} == {1376}
        assert within(host, lambda: fit_containers("weave", 1376)) == []


def test_the_underlay() -> None:
    with namespace() as host:
        assert within(host, underlay_mtu) is None
        run(
            "ip",
            "-n",
            host,
            "link",
            "add",
            "eth0",
            "mtu",
            "9000",
            "type",
            "veth",
            "peer",
            "name",
            "other",
            "mtu",
            "9000",
        )
        run("ip", "-n", host, "addr", "add", "10.99.0.1/24", "dev", "eth0")
        run("ip", "-n", host, "link", "set", "eth0", "up")
        run("ip", "-n", host, "route", "add", "default", "via", "10.99.0.254")
        assert within(host, underlay_mtu) == 9000
