"""What the router asks weave-npc: whether a pod that is about to start may, since its rules are in force.

A pod starts in a network that is there already, but without a container that could use it; so isolation comes before
its first packet. Containers that Kubernetes knows nothing of are no pods, and are not asked for.
Source: NPC spec §4.5.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence

from cni.errors import TRY_AGAIN_LATER, CniError
from npc.settings import SOCKET

# Seconds; weave-npc itself gives up after five.
_PATIENCE = 7.0


class PolicyController:
    """weave-npc on its socket, which WEAVE_NPC_SOCKET may name."""

    def __init__(self, path: str = "") -> None:
        self._path = path or os.environ.get("WEAVE_NPC_SOCKET") or SOCKET

    async def ready(self, addresses: Sequence[str], pod: Mapping[str, str]) -> None:
        """Returns when the pod may start. Raises CniError: try again later."""
        identity = _identity(pod)
        if identity is None:
            return
        try:
            answer = await self._ask({"wait": list(addresses), **identity})
        except (OSError, ValueError, TimeoutError) as error:
            raise CniError(
                f"network policy is not in force: weave-npc does not answer: {error}", TRY_AGAIN_LATER
            ) from error
        if not answer.get("ok"):
            raise CniError(str(answer.get("reason") or answer.get("error")), TRY_AGAIN_LATER)

    async def gone(self, pod: Mapping[str, str]) -> None:
        """The pod has no network any more; weave-npc hears of it from the API server, too, only later."""
        identity = _identity(pod)
        if identity is not None:
            try:
                await self._ask({"release": True, **identity})
            except (OSError, ValueError, TimeoutError):
                return

    async def _ask(self, question: Mapping[str, object]) -> dict[str, object]:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_unix_connection(self._path)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
        if not isinstance(answer, dict):
            raise ValueError(f"no answer but {answer!r}")
        return answer


def _identity(pod: Mapping[str, str]) -> dict[str, str] | None:
    """A pod's namespace, name and UID; None for what is no pod: podman tells a name, too, but no namespace."""
    names = {"namespace": "K8S_POD_NAMESPACE", "name": "K8S_POD_NAME", "uid": "K8S_POD_UID", "interface": "interface"}
    found = {field: pod.get(name, "") for field, name in names.items()}
    return found if found["namespace"] and found["name"] else None
