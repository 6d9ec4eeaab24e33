"""The list of peers as nodes of 2.8 keep it, and what is recorded about the first ring."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kube import registry
from kube.client import Client
from kube.config import Config
from kube.errors import KubeError
from kube.reclaim import Registry
from kube.registry import Listed, Ring
from kube.resource import Object
from tests.kube.api_server import ApiServer
from tests.kube.nodes import node
from tests.vectors import ROOT

A, B, D = (Listed(f"00:00:00:00:00:{n}", f"node-{m}") for n, m in (("01", "a"), ("0b", "b"), ("0d", "d")))


def recorded() -> Iterator[tuple[str, str, Any]]:
    """Requests of 2.8: method, path without query, and annotations that a PUT carries."""
    lines = (ROOT / "api" / "kube-api-requests.txt").read_text().splitlines()
    for number, text in enumerate(lines):
        if match := re.match(r"(GET|PUT) (\S+) ", text):
            path, _, query = match[2].partition("?")
            if "watch=true" in query or "resourceVersion=0" in query:
                continue
            annotations = None
            if match[1] == "PUT":
                assert query == "fieldManager=kube-peers.weave.works"
                annotations = json.loads(lines[number + 1].removeprefix("  body: "))["metadata"]["annotations"]
            yield match[1], path, annotations


def asked(server: ApiServer) -> list[tuple[str, str, Any]]:
    said = []
    for request in server.requests:
        if request.method == "PUT":
            assert request.query == {"fieldManager": "kube-peers.weave.works"}
        annotations = request.body["metadata"]["annotations"] if request.method == "PUT" else None
        said.append((request.method, request.path, annotations))
    return said


async def test_requests_are_those_of_2_8() -> None:
    """Three peers list themselves, one node goes, its peer is removed: request by request, byte by byte.

    2.8's last two requests are its list of peers and its list of nodes to dial; we follow a watch for that.
    """
    removed = []

    async def remove(peer: str) -> None:
        removed.append(peer)

    async with ApiServer() as server, Client(Config(server.url)) as client:
        for name in ("node-a", "node-b", "node-d"):
            server.objects.put("nodes", node(name))
        server.objects.put("configmaps", {"metadata": {"name": "weave-net", "namespace": "kube-system"}})
        for own in (B, D, A):
            await Registry(client, own).add()
            assert await Registry(client, own).reclaim(remove)
        assert not await Registry(client, A).lacks_us()
        server.objects.remove("nodes", "node-b")
        assert await Registry(client, A).reclaim(remove)
        theirs = list(recorded())
        assert theirs[-1] == ("GET", "/api/v1/nodes", None)
        assert asked(server) == theirs[:-1]
        assert removed == [B.peer]


def document(annotations: dict[str, str] | None = None) -> Object:
    return {"metadata": {"name": "weave-net", **({} if annotations is None else {"annotations": annotations})}}


def test_the_lock_is_named_as_2_8_names_it() -> None:
    assert registry.lock_name("00:00:00:00:00:0b") == "kube-peers.weave.works/00_00_00_00_00_0b"
    locked = registry.with_lock(document(), B.peer, A.peer)
    assert registry.lock_holder(locked, B.peer) == A.peer and registry.lock_holder(locked, D.peer) == ""
    assert registry.without_lock(locked, B.peer)["metadata"]["annotations"] == {}
    assert registry.without_locks_of(locked, A.peer)["metadata"]["annotations"] == {}


def test_what_others_wrote_stays() -> None:
    annotations = {"kube-peers.weave.works/peers": '{"Peers":[]}', "theirs": "x"}
    before = document(annotations) | {"data": {"k": "v"}}
    after = registry.with_peer(before, A)
    assert after is not None and after["data"] == {"k": "v"} and after["metadata"]["annotations"]["theirs"] == "x"
    assert annotations["kube-peers.weave.works/peers"] == '{"Peers":[]}'
    assert registry.with_peer(after, A) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"Peers":[{}]}', '{"Peers":1}'])
def test_a_list_that_cannot_be_read_is_not_begun_anew(text: str) -> None:
    with pytest.raises(KubeError, match="cannot be read"):
        registry.with_peer(document({"kube-peers.weave.works/peers": text}), A)


def test_whose_nodes_are_gone() -> None:
    """Also a peer that was on our node under another name; never ourselves."""
    listed: Object | None = document()
    for entry in (A, B, D, Listed("old", "node-a")):
        assert listed is not None
        listed = registry.with_peer(listed, entry)
    assert listed is not None
    assert [peer for peer, _ in registry.departed(listed, A, {"node-a", "node-d"})] == [B.peer, "old"]
    assert [peer for peer, _ in registry.departed(listed, A, set())] == [B.peer, D.peer, "old"]


async def test_whether_somebody_removed_us() -> None:
    """As 2.8's check; but an object that is new, or empty, is no reason to discard what we own."""
    async with ApiServer() as server, Client(Config(server.url)) as client:
        ours = Registry(client, A)
        assert not await ours.lacks_us()
        assert server.objects.get("configmaps", "weave-net", "kube-system")
        await Registry(client, B).add()
        assert await ours.lacks_us()
        await ours.add()
        assert not await ours.lacks_us()


def cluster(*numbers: int, unheard: int = 0) -> list[Object]:
    heard = [node(f"n{number}", ready="False") for number in numbers]
    return heard + [node(f"u{number}", ready="Unknown") for number in range(unheard)]


@pytest.mark.parametrize(
    ("said", "nodes", "expected"),
    [
        (Ring(3, False), cluster(1, 2, 3), 3),  # a first ring: half and one more
        (Ring(1, False), cluster(1), 1),
        (Ring(1, False), cluster(1, 2, 3), 4),  # whoever was first needs nobody: a second ring takes all three
        (Ring(3, True), cluster(1, 2, 3), 4),
        (Ring(3, True), cluster(1, 2, unheard=1), 2),
        (Ring(3, True), cluster(1), 1),
        (None, cluster(1, 2, 3, 4), 6),  # nodes of 2.8 are here: not fewer than they count
        (Ring(2, False), [*cluster(1, 2), node("w", windows=True)], 2),
        (Ring(1, False), [], 1),
    ],
)
def test_how_many_it_takes_to_begin_a_ring(said: Ring | None, nodes: list[Object], expected: int) -> None:
    held = document() if said is None else registry.with_ring(document(), said)
    assert registry.ring(held) == said
    assert registry.consensus(held, nodes) == expected


async def test_the_first_who_asks_records_how_many_there_are() -> None:
    """The first node of a cluster begins a ring alone; two that come later, and meet first, do not."""
    async with ApiServer() as server, Client(Config(server.url)) as client:
        first = Registry(client, A)
        assert await first.consensus(cluster(1)) == 1
        await first.add()
        assert await first.consensus(cluster(1)) == 1
        assert await Registry(client, B).consensus(cluster(1, 2, 3)) == 4
        await first.founded()
        await Registry(client, B).add()
        assert await Registry(client, D).consensus(cluster(1, 2, 3)) == 4
        written = len([request for request in server.requests if request.method == "PUT"])
        await Registry(client, D).founded()
        assert len([request for request in server.requests if request.method == "PUT"]) == written
        annotations = server.objects.get("configmaps", "weave-net", "kube-system")["metadata"]["annotations"]
        assert annotations["weave-py/ring"] == '{"Nodes":1,"Founded":true}'


async def test_nothing_is_recorded_where_2_8_was_first() -> None:
    async with ApiServer() as server, Client(Config(server.url)) as client:
        await Registry(client, B).add()
        assert await Registry(client, A).consensus(cluster(1, 2, 3)) == 4
        assert all(request.method != "PUT" for request in server.requests[3:])


async def test_nobody_is_removed_where_our_own_node_is_not_known() -> None:
    """HOSTNAME is not the node's name: then everybody would seem to be gone."""

    async def remove(peer: str) -> None:
        raise AssertionError(peer)

    async with ApiServer() as server, Client(Config(server.url)) as client:
        for own in (A, B):
            await Registry(client, own).add()
        server.objects.put("nodes", node("node-a.example"))
        assert not await Registry(client, A).reclaim(remove)


async def test_a_peer_that_is_still_connected_keeps_what_it_owns() -> None:
    """Its Node object was deleted by hand; the machine runs."""
    removed = []

    async def remove(peer: str) -> None:
        removed.append(peer)

    connected = {B.peer}
    async with ApiServer() as server, Client(Config(server.url)) as client:
        for own in (A, B):
            await Registry(client, own).add()
        server.objects.put("nodes", node("node-a"))
        ours = Registry(client, A, reachable=connected.__contains__)
        assert not await ours.reclaim(remove)
        assert not removed
        connected.clear()
        assert await ours.reclaim(remove)
        assert removed == [B.peer]
