"""What the router asks weave-npc before a pod starts, and what becomes of the answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.errors import TRY_AGAIN_LATER, CniError
from weave_py.policy_controller import PolicyController

POD = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "db", "K8S_POD_UID": "u", "interface": "c/e"}


@asynccontextmanager
async def answering(path: Path, answer: Any) -> AsyncIterator[list[Any]]:
    """Somebody who gives this answer to everything; what was asked."""
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(json.loads(await reader.readline()))
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield asked


async def test_a_pod_waits(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", {"ok": True}) as asked:
        policy = PolicyController(str(tmp_path / "s"))
        await policy.ready(["10.32.0.5"], POD)
        await policy.gone(POD)
    identity = {"namespace": "shop", "name": "db", "uid": "u", "interface": "c/e"}
    assert asked == [{"wait": ["10.32.0.5"], **identity}, {"release": True, **identity}]


async def test_what_is_no_pod_does_not_wait(tmp_path: Path) -> None:
    policy = PolicyController(str(tmp_path / "nobody"))
    # podman names its container, too, but no namespace.
    await policy.ready(["10.32.0.5"], {"IgnoreUnknown": "1", "K8S_POD_NAME": "of podman"})
    await policy.gone({})


@pytest.mark.parametrize("answer", [{"ok": False, "reason": "not yet"}, {"error": "what"}, [], None])
async def test_a_refusal_is_tried_again_later(tmp_path: Path, answer: Any) -> None:
    async with answering(tmp_path / "s", answer):
        with pytest.raises(CniError) as raised:
            await PolicyController(str(tmp_path / "s")).ready(["10.32.0.5"], POD)
    assert raised.value.code == TRY_AGAIN_LATER


async def test_nobody_there_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="weave-npc does not answer") as raised:
        await PolicyController(str(tmp_path / "nobody")).ready(["10.32.0.5"], POD)
    assert raised.value.code == TRY_AGAIN_LATER
