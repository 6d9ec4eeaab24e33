"""Requests: who we are, how the server is known, what a refusal becomes, and that nothing waits for ever."""

import shutil
from pathlib import Path
from random import Random

import pytest

from kube.backoff import delay
from kube.client import JSON_PATCH, MERGE, Client
from kube.config import Config, in_cluster
from kube.errors import ApiError, ConfigError, KubeError
from kube.lines import Lines
from kube.resource import CONFIG_MAPS, NETWORK_POLICIES, NODES, PODS
from tests.kube.api_server import ApiServer
from tests.kube.certificate import self_signed

MAP = {"metadata": {"name": "weave-net", "namespace": "kube-system"}}


def service_account(directory: Path, token: str = "first") -> Path:
    (directory / "token").write_text(token)
    (directory / "ca.crt").write_text("")
    return directory


def test_paths() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert NODES.path("ignored", "n", "status") == "/api/v1/nodes/n/status"
    assert NETWORK_POLICIES.path("a/b", "c") == "/apis/networking.k8s.io/v1/namespaces/a%2Fb/networkpolicies/c"


def test_in_a_pod(tmp_path: Path) -> None:
    service_account(tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    assert in_cluster(environ, tmp_path) == Config(
        "https://10.96.0.1:443", token_file=tmp_path / "token", ca_file=tmp_path / "ca.crt"
    )
    assert in_cluster(environ | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, tmp_path).url == "https://[fd00::1]:443"
    with pytest.raises(ConfigError, match="no pod"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="no service account"):
        in_cluster(environ, tmp_path)


async def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    """In time, and at once when the server refuses the old one."""
    clock = [0.0]
    config = Config("", token_file=service_account(tmp_path) / "token")
    async with ApiServer() as server:
        server.allow("first")
        async with Client(Config(server.url, token_file=config.token_file), clock=lambda: clock[0]) as client:
            await client.list(NODES)
            (tmp_path / "token").write_text("second\n")
            server.allow("second")
            await client.list(NODES)
            assert server.requests[-1].headers["Authorization"] == "Bearer first"
            clock[0] = 11.0
            await client.list(NODES)
            assert server.requests[-1].headers["Authorization"] == "Bearer second"
            (tmp_path / "token").write_text("third")
            server.allow("third")
            server.disallow("second")
            await client.list(NODES)
            assert server.requests[-1].headers["Authorization"] == "Bearer third"
            # A file that is gone for a moment is no reason to forget who we are.
            (tmp_path / "token").unlink()
            clock[0] = 30.0
            await client.list(NODES)
            server.disallow("third")
            with pytest.raises(ApiError) as caught:
                await client.list(NODES)
            assert (caught.value.status, caught.value.reason) == (401, "Unauthorized")


async def test_objects() -> None:
    async with ApiServer() as server, Client(Config(server.url), agent="test/1") as client:
        made = await client.create(CONFIG_MAPS, MAP, "kube-system", manager="m")
        assert server.requests[-1].query == {"fieldManager": "m"}
        assert server.requests[-1].headers["User-Agent"] == "test/1"
        with pytest.raises(ApiError) as caught:
            await client.create(CONFIG_MAPS, MAP, "kube-system")
        assert caught.value.conflict and caught.value.reason == "AlreadyExists"
        changed = await client.update(CONFIG_MAPS, {**made, "data": {"a": "b"}}, manager="m")
        with pytest.raises(ApiError) as caught:
            await client.update(CONFIG_MAPS, {**made, "data": {"a": "c"}})
        assert caught.value.conflict and caught.value.reason == "Conflict"
        assert await client.get(CONFIG_MAPS, "weave-net", "kube-system") == changed
        await client.patch(CONFIG_MAPS, "weave-net", {"data": {"a": None}}, "kube-system", kind=MERGE)
        added = [{"op": "add", "path": "/data/x", "value": "y"}]
        patched = await client.patch(CONFIG_MAPS, "weave-net", added, "kube-system", kind=JSON_PATCH)
        assert patched["data"] == {"x": "y"}
        await client.delete(CONFIG_MAPS, "weave-net", "kube-system")
        with pytest.raises(ApiError, match=r'configmaps "weave-net" not found \(404 NotFound\)'):
            await client.get(CONFIG_MAPS, "weave-net", "kube-system")


async def test_what_is_no_answer() -> None:
    async with ApiServer() as server, Client(Config(server.url)) as client:
        # The transport itself asks once more where nothing can have happened.
        server.drop(times=2)
        with pytest.raises(KubeError):
            await client.list(NODES)
        server.fail(429, "TooManyRequests", retry=7)
        with pytest.raises(ApiError) as caught:
            await client.list(NODES)
        assert caught.value.retry_after == 7
        # `ok`, which is no JSON.
        with pytest.raises(KubeError, match="no JSON"):
            await client._object("GET", "/healthz")
        url = server.url
    async with Client(Config(url)) as client:
        with pytest.raises(KubeError):
            await client.list(NODES)


async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kube.client._REQUEST", 0.2)
    async with ApiServer() as server, Client(Config(server.url)) as client:
        server.hang()
        with pytest.raises(KubeError, match="no answer in time"):
            await client.list(NODES)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
async def test_the_server_is_known_by_the_cluster_authority(tmp_path: Path) -> None:
    certificate, context = self_signed(tmp_path)
    async with ApiServer(tls=context) as server:
        async with Client(Config(server.url, ca_file=certificate)) as client:
            assert (await client.list(NODES))["items"] == []
        async with Client(Config(server.url)) as client:
            with pytest.raises(KubeError, match="certificate"):
                await client.list(NODES)
        (tmp_path / "bad").write_text("nothing")
        async with Client(Config(server.url, ca_file=tmp_path / "bad")) as client:
            with pytest.raises(ConfigError, match="bad cannot be used"):
                await client.list(NODES)


def test_lines_of_all_sizes() -> None:
    rng = Random(5)
    for _ in range(200):
        lines = [bytes(rng.choices(b"ab", k=rng.randint(1, 9))) for _ in range(rng.randint(1, 9))]
        stream, cutter, out = b"\n".join(lines) + b"\n", Lines(9), []
        while stream:
            size = rng.randint(1, 12)
            out += cutter.feed(stream[:size])
            stream = stream[size:]
        assert out == lines
    cutter = Lines(9)
    with pytest.raises(KubeError):
        [cutter.feed(b"12345") for _ in range(2)]


def test_a_server_is_left_alone_as_long_as_it_wants() -> None:
    rng = Random(1)
    assert 7 <= delay(1, rng, 7.0) <= 8
    assert delay(1, rng, 86400.0) <= 121
