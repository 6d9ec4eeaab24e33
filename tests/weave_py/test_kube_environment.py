"""The environment of Weave Net's manifests, as flags of the router."""

import pytest

from weave_py.kube_environment import KubeEnvironment, KubeEnvironmentError, read
from weave_py.settings import Settings, check, parse


def told(**environment: str) -> KubeEnvironment:
    return read({"HOSTNAME": "node-1", **environment})


def settings(**environment: str) -> Settings:
    values, given, peers = parse(told(**environment).arguments(["192.0.2.2"], 3))
    return check(values, given, peers, environment)


def test_defaults_are_weave_nets() -> None:
    made = settings()
    assert (made.nickname, made.port, made.peers) == ("node-1", 6783, ("192.0.2.2",))
    assert str(made.ipalloc_range) == "10.32.0.0/12"
    assert (made.http_address, made.metrics_address, made.status_address) == ("127.0.0.1:6784", "0.0.0.0:6782", "")
    assert (made.db_prefix, made.host_root, made.conn_limit) == ("/weavedb/weave-net", "/host", 200)
    assert made.expect_npc and made.no_masq_local and made.fastdp and made.names is None
    assert made.socket_path == "/run/weave/weaver.sock"
    assert made.ready_patience == 60
    assert made.missing == ()
    environment = told()
    assert environment.peers is None and environment.init == "" and len(environment.expose) == 1
    assert environment.prepares_node, "a manifest without an init container leaves that to us"


def test_ourselves_are_counted() -> None:
    """Weave Net counted the others only, so half of a cluster of two or four could begin a ring by itself."""
    assert told().arguments([], 4)[-2:] == ["--ipalloc-init", "consensus=4"]
    assert told(IPALLOC_INIT="observer").arguments([], 4)[-2:] == ["--ipalloc-init", "observer"]


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("IPALLOC_RANGE", "10.40.0.0/16", "ipalloc_range", "10.40.0.0/16"),
        ("WEAVE_PASSWORD", "secret", "passwords", (b"secret",)),
        ("WEAVE_MTU", "1337", "mtu", 1337),
        ("WEAVE_NO_FASTDP", "1", "fastdp", False),
        ("WEAVE_NO_FASTDP", "", "fastdp", True),
        ("WEAVE_HTTP_ADDR", "127.0.0.1:7000", "http_address", "127.0.0.1:7000"),
        ("WEAVE_METRICS_ADDR", "127.0.0.1:7002", "metrics_address", "127.0.0.1:7002"),
        ("WEAVE_STATUS_ADDR", "0.0.0.0:7001", "status_address", "0.0.0.0:7001"),
        ("WEAVE_SOCKET", "/run/other.sock", "socket_path", "/run/other.sock"),
        ("EXPECT_NPC", "0", "expect_npc", False),
        ("EXPECT_NPC", "", "expect_npc", True),
        ("NO_MASQ_LOCAL", "0", "no_masq_local", False),
        ("CONN_LIMIT", "30", "conn_limit", 30),
        ("DB_PREFIX", "/data/weave", "db_prefix", "/data/weave"),
        ("HOST_ROOT", "", "host_root", ""),
        ("WEAVE_DEBUG", "1", "log_level", "debug"),
        ("WEAVE_READY_PATIENCE", "0", "ready_patience", 0.0),
        ("WEAVE_READY_PATIENCE", "5m", "ready_patience", 300.0),
        ("EXTRA_ARGS", "--log-level=debug --name 0a::1", "name", 0x0A0000000001),
        ("EXTRA_ARGS", "--port 7777", "port", 6783),
        ("EXTRA_ARGS", "--weave-bridge=other", "bridge", "other"),
        ("CHECKPOINT_DISABLE", "1", "port", 6783),
        ("IPTABLES_BACKEND", "legacy", "port", 6783),
    ],
)
def test_variables(variable: str, value: str, field: str, expected: object) -> None:
    found = getattr(settings(**{variable: value}), field)
    assert (str(found) if field == "ipalloc_range" else found) == expected


def test_what_the_router_is_not_told() -> None:
    environment = told(
        KUBE_PEERS="192.0.2.1  192.0.2.2", WEAVE_EXPOSE_IP="10.32.0.9/12 net:10.40.0.0/24", INIT_CONTAINER="true"
    )
    assert environment.peers == ("192.0.2.1", "192.0.2.2")
    assert [str(wish.address or wish.subnet) for wish in environment.expose] == ["10.32.0.9/12", "10.40.0.0/24"]
    assert not environment.prepares_node
    assert told(EXTRA_ARGS="--weave-bridge other").bridge == "other"


@pytest.mark.parametrize("words", [{"EXTRA_ARGS": "--kube-dns-names"}, {"WEAVE_KUBE_DNS_NAMES": "1"}])
def test_names_of_pods(words: dict[str, str]) -> None:
    """Names are served on the node's own address, at a port that nobody else there uses."""
    made = settings(**words, HOST_IP="192.0.2.1")
    assert told(**words).names and made.names is not None and made.dns_address == ("192.0.2.1", 6785)
    assert made.missing == ()


def test_what_makes_no_sense() -> None:
    with pytest.raises(KubeEnvironmentError, match="HOSTNAME is not set"):
        read({})
    with pytest.raises(KubeEnvironmentError, match="WEAVE_EXPOSE_IP: invalid address"):
        told(WEAVE_EXPOSE_IP="10.32.0.9")
