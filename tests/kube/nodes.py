"""Nodes as a cluster has them, and a client that speaks to the stand-in's objects without a network."""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

from kube.client import Client
from kube.config import Config
from kube.errors import ApiError
from kube.resource import Object, Resource
from tests.kube.objects import Objects
from tests.kube.resources import StatusError


def node(name: str, *addresses: tuple[str, str], windows: bool = False, ready: str = "") -> Object:
    """`addresses`: kind and text. `ready`: the status of the condition Ready."""
    labels = {"kubernetes.io/os": "windows" if windows else "linux"}
    conditions = [{"type": "Ready", "status": ready, "reason": "x", "lastHeartbeatTime": "now"}] if ready else []
    stated = [{"type": kind, "address": address} for kind, address in addresses]
    return {
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": stated, "conditions": conditions, "images": []},
    }


class Direct(Client):
    """Requests that take a random number of the loop's turns, before and after they take effect."""

    def __init__(self, objects: Objects, rng: Random) -> None:
        super().__init__(Config("http://nowhere"))
        self._objects = objects
        self._rng = rng

    async def _turns(self) -> None:
        for _ in range(self._rng.randint(0, 4)):
            await asyncio.sleep(0)

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        await self._turns()
        try:
            return self._objects.get(resource.plural, name, namespace)
        except StatusError as error:
            raise _refused(error) from error
        finally:
            await self._turns()

    async def list_all(
        self, resource: Resource, namespace: str = "", *, query: Mapping[str, str] | None = None
    ) -> Sequence[Object]:
        await self._turns()
        found = self._objects.all(resource.plural)
        await self._turns()
        return found

    async def create(self, resource: Resource, document: Object, namespace: str = "", *, manager: str = "") -> Object:
        await self._turns()
        try:
            return self._objects.create(self._objects.resource(resource.plural), namespace, document)
        except StatusError as error:
            raise _refused(error) from error
        finally:
            await self._turns()

    async def update(self, resource: Resource, document: Object, *, manager: str = "") -> Object:
        await self._turns()
        meta = document["metadata"]
        kind = self._objects.resource(resource.plural)
        try:
            return self._objects.update(kind, meta["namespace"], meta["name"], document)
        except StatusError as error:
            raise _refused(error) from error
        finally:
            await self._turns()


def _refused(error: StatusError) -> ApiError:
    return ApiError(error.code, error.reason, str(error))
