"""The rights in the manifest are those that are needed: all is done with them, and nothing is refused."""

import asyncio
from pathlib import Path

import yaml

from kube.client import Client
from kube.config import Config
from kube.membership import Membership
from kube.reclaim import Registry
from kube.resource import NAMESPACES, NETWORK_POLICIES, NODES, PODS, Object
from tests.kube.api_server import ApiServer
from tests.kube.test_membership import OTHER, OWN, Router, put, until

MANIFEST = Path(__file__).parents[2] / "deploy" / "weave-daemonset.yaml"


def granted() -> list[Object]:
    """Rules of all roles, those of a namespace with its name."""
    rules: list[Object] = []
    for document in yaml.safe_load_all(MANIFEST.read_text()):
        if document and document["kind"] in ("Role", "ClusterRole"):
            where = {"namespace": document["metadata"]["namespace"]} if document["kind"] == "Role" else {}
            rules += [rule | where for rule in document["rules"]]
    assert rules
    return rules


async def test_a_node_lives_by_the_rights_of_the_manifest() -> None:
    """From its first start to the removal of a departed peer, and what weave-npc follows."""
    async with ApiServer() as server, Client(Config(server.url, token="t")) as client:
        server.allow("t", "system:serviceaccount:kube-system:weave-net", granted())
        put(server, 1)
        put(server, 2)
        registry = Registry(client, OWN)
        assert not await registry.lacks_us()
        await registry.consensus(await client.list_all(NODES))
        await Registry(client, OTHER).add()
        router = Router()
        running = asyncio.create_task(Membership(client, registry, router, ()).run())
        await until(lambda: server.watching == 1)
        server.objects.remove("nodes", "n2")
        await until(lambda: OTHER.peer in router.told)
        await until(lambda: any(asked.resource == "nodes/status" for asked in server.requests))
        running.cancel()
        await asyncio.wait([running])
        for resource in (PODS, NAMESPACES, NETWORK_POLICIES, NODES):
            await client.list(resource)
            async for _ in client.stream(resource, "", {"watch": "true", "timeoutSeconds": "0"}, limit=20):
                pass
        assert server.refused == []
