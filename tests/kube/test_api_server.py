"""The stand-in API server says what a real one said: recorded requests are asked again, answers compared.

Not compared is what only a whole cluster does: spec fields that admission fills in, what a kubelet writes.
"""

import json
from typing import Any

import aiohttp
import pytest

from tests.kube.api_server import ApiServer, serving
from tests.kube.resources import Object, StatusError
from tests.vectors import ROOT

RECORDED = ROOT / "kube-api"
# In the order in which they were recorded. 34 and 35 name versions that only that server had: below.
REPLAYED = [f"{number:02}" for number in (1, 2, 3, 4, *range(6, 9), *range(10, 16), *range(17, 29), 32, 39, 40)]


def recorded(number: str) -> Any:
    (path,) = RECORDED.glob(f"{number}-*.json")
    return json.loads(path.read_text())


class Replay:
    """Asks what was asked then, with this server's uids, versions and tokens in the place of that one's."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._ours: dict[str, str] = {}

    async def ask(self, number: str) -> tuple[Any, int, Any]:
        """The recorded response, and ours."""
        exchange = recorded(number)
        request = self._renamed(exchange["request"])
        body = None if request["body"] is None else json.dumps(request["body"])
        url = f"{self._url}{request['path']}"
        async with self._session.request(request["method"], url, data=body, headers=request["headers"]) as answer:
            text = await answer.text()
        ours = json.loads(text) if text.startswith("{") else text
        self._learn(exchange["response"]["body"], ours)
        return exchange["response"], answer.status, ours

    def _renamed(self, request: Any) -> Any:
        text = json.dumps(request)
        for theirs, ours in self._ours.items():
            text = text.replace(theirs, ours)
        return json.loads(text)

    def _learn(self, theirs: Any, ours: Any) -> None:
        if not isinstance(theirs, dict) or not isinstance(ours, dict):
            return
        for key, value in theirs.items():
            if key == "resourceVersion" and key in ours and value != ours[key]:
                self._ours[f'"resourceVersion": "{value}"'] = f'"resourceVersion": "{ours[key]}"'
            elif key in ("uid", "continue") and key in ours:
                self._ours[value] = ours[key]
            else:
                self._learn(value, ours.get(key))


def within(ours: Any, theirs: Any, path: str = "") -> None:
    """All we say, they said; numbers that name a moment or an object aside."""
    if isinstance(ours, dict):
        assert isinstance(theirs, dict), path
        for key, value in ours.items():
            assert key in theirs, f"{path}.{key} is no field of theirs"
            if key not in ("resourceVersion", "uid", "creationTimestamp", "continue", "serverAddress"):
                within(value, theirs[key], f"{path}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for n, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            within(our, their, f"{path}[{n}]")
    else:
        assert ours == theirs, path


def stripped(document: Any) -> Any:
    """Without what only a cluster fills in."""
    if isinstance(document, dict):
        return {k: stripped(v) for k, v in document.items() if k not in ("managedFields", "generation")}
    return [stripped(item) for item in document] if isinstance(document, list) else document


async def test_what_was_recorded_is_said_again() -> None:
    """Order matters: requests refer to what those before them made."""
    async with ApiServer() as server, aiohttp.ClientSession() as session:
        for node in recorded("06")["response"]["body"]["items"]:
            server.objects.put("nodes", stripped(node))
        for name in ("kube-node-lease", "kube-public"):
            server.objects.put("namespaces", {"metadata": {"name": name}})
        replay = Replay(session, server.url)
        for number in REPLAYED:
            if number == "13":
                for pod in recorded("13")["response"]["body"]["items"]:
                    server.objects.put("pods", stripped(pod))
            theirs, code, ours = await replay.ask(number)
            assert code == theirs["status"], f"{number}: {ours}"
            if isinstance(ours, str):
                assert ours == theirs["body"]
            elif ours.get("kind") == "Status":
                assert _without_uid(ours) == _without_uid(theirs["body"]), number
            elif number != "32":
                within(ours, theirs["body"], number)
        condition = recorded("32")["request"]["body"]["status"]["conditions"][0]
        conditions = server.objects.get("nodes", "n1")["status"]["conditions"]
        assert [c for c in conditions if c["type"] == "NetworkUnavailable"] == [condition]
        assert len(conditions) == 5


def _without_uid(status: Object) -> Object:
    return status | {"details": {k: v for k, v in status.get("details", {}).items() if k != "uid"}}


async def test_refusals_are_said_in_their_words() -> None:
    async with ApiServer() as server, aiohttp.ClientSession() as session:
        server.allow("good", "system:serviceaccount:recns:default", [])
        for number, token in (("29", "bad"), ("30", ""), ("31", "good")):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            exchange = recorded(number)
            async with session.get(f"{server.url}{exchange['request']['path']}", headers=headers) as answer:
                assert (answer.status, await answer.json()) == (
                    exchange["response"]["status"],
                    exchange["response"]["body"],
                )
        server.allow("admin")
        headers = {"Authorization": "Bearer admin"}
        exchange = recorded("35")
        async with session.get(f"{server.url}{exchange['request']['path']}", headers=headers) as answer:
            assert (answer.status, await answer.json()) == (500, exchange["response"]["body"])
        async with session.get(f"{server.url}{recorded('34')['request']['path']}", headers=headers) as answer:
            theirs = recorded("34")["response"]
            ours = await answer.json()
            assert (answer.status, answer.headers["Retry-After"]) == (504, "1")
            assert ours["details"] == theirs["body"]["details"] and ours["reason"] == theirs["body"]["reason"]


async def lines(session: aiohttp.ClientSession, url: str) -> list[Any]:
    async with session.get(url) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) for line in (await answer.read()).splitlines()]


async def test_watches_end_as_they_did() -> None:
    async with ApiServer(initial_events=False) as server, aiohttp.ClientSession() as session:
        path = "/api/v1/pods?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
        assert await lines(session, server.url + path) == [line for _, line in recorded("09")["lines"]]
        begin = server.objects.version
        server.objects.put("events", {"metadata": {"name": "e", "namespace": "default"}})
        server.objects.compact()
        path = f"/api/v1/events?watch=1&resourceVersion={begin}&timeoutSeconds=3"
        assert await lines(session, server.url + path) == [recorded("46")["response"]["body"]]
        # Plain end of file at the timeout.
        path = f"/api/v1/pods?watch=1&resourceVersion={server.objects.version}&timeoutSeconds=0"
        assert await lines(session, server.url + path) == []


async def test_a_watch_tells_what_happens_to_what_it_selects() -> None:
    async with ApiServer() as server, aiohttp.ClientSession() as session:
        put = server.objects.put
        put("pods", {"metadata": {"name": "a", "namespace": "x", "labels": {"app": "web"}}})
        begin = server.objects.version
        put("pods", {"metadata": {"name": "b", "namespace": "x", "labels": {"app": "db"}}})
        put("pods", {"metadata": {"name": "b", "namespace": "x", "labels": {"app": "web"}}})
        put("pods", {"metadata": {"name": "b", "namespace": "x", "labels": {"app": "web", "t": "1"}}})
        put("pods", {"metadata": {"name": "a", "namespace": "x", "labels": {}}})
        server.objects.remove("pods", "b", "x")
        path = f"/api/v1/namespaces/x/pods?watch=true&labelSelector=app%3Dweb&resourceVersion={begin}&timeoutSeconds=0"
        told = await lines(session, server.url + path)
        said = [(event["type"], event["object"]["metadata"]["name"]) for event in told]
        assert said == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a"), ("DELETED", "b")]
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in told]
        assert versions == sorted(versions) and versions[-1] == server.objects.version
        # Without a version: first what there is.
        put("pods", {"metadata": {"name": "c", "namespace": "x"}})
        told = await lines(session, f"{server.url}/api/v1/pods?watch=true&timeoutSeconds=0")
        assert [(event["type"], event["object"]["metadata"]["name"]) for event in told] == [
            ("ADDED", "a"),
            ("ADDED", "c"),
        ]


async def test_initial_events_end_with_a_bookmark() -> None:
    async with ApiServer() as server, aiohttp.ClientSession() as session:
        server.objects.put("nodes", {"metadata": {"name": "n"}})
        path = "/api/v1/nodes?watch=1&sendInitialEvents=true&allowWatchBookmarks=true"
        path += "&resourceVersionMatch=NotOlderThan&timeoutSeconds=0"
        added, mark = await lines(session, server.url + path)
        assert (added["type"], mark["type"]) == ("ADDED", "BOOKMARK")
        assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_pages_show_one_moment_until_it_is_forgotten() -> None:
    async with ApiServer() as server, aiohttp.ClientSession() as session:
        for name in "abc":
            server.objects.put("nodes", {"metadata": {"name": name}})
        async with session.get(f"{server.url}/api/v1/nodes?limit=2") as answer:
            first = await answer.json()
        server.objects.put("nodes", {"metadata": {"name": "d"}})
        token = first["metadata"]["continue"]
        async with session.get(f"{server.url}/api/v1/nodes?limit=2&continue={token}") as answer:
            rest = await answer.json()
        assert [item["metadata"]["name"] for item in first["items"] + rest["items"]] == ["a", "b", "c"]
        assert first["metadata"]["resourceVersion"] == rest["metadata"]["resourceVersion"]
        server.objects.compact()
        async with session.get(f"{server.url}/api/v1/nodes?limit=2&continue={token}") as answer:
            assert answer.status == 410 and (await answer.json())["reason"] == "Expired"


async def test_rules_hold() -> None:
    rules: list[Object] = [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["weave-net"], "verbs": ["get"],
         "namespace": "kube-system"},
    ]  # fmt: skip
    async with ApiServer() as server, aiohttp.ClientSession(headers={"Authorization": "Bearer t"}) as session:
        server.allow("t", "weave", rules)
        server.objects.put("configmaps", {"metadata": {"name": "weave-net", "namespace": "kube-system"}})
        codes = []
        for path in (
            "nodes",
            "nodes?watch=1",
            "pods",
            "namespaces/kube-system/configmaps/weave-net",
            "namespaces/kube-system/configmaps/other",
            "namespaces/default/configmaps/weave-net",
        ):
            async with session.get(f"{server.url}/api/v1/{path}") as answer:
                codes.append(answer.status)
        assert codes == [200, 403, 403, 200, 403, 403]
        assert server.refused == ["watch nodes", "list pods", "get configmaps", "get configmaps"]
        assert [(asked.verb, asked.resource) for asked in server.requests[:2]] == [
            ("list", "nodes"),
            ("watch", "nodes"),
        ]


async def test_faults() -> None:
    async with ApiServer() as server, aiohttp.ClientSession() as session:
        server.fail(429, path="/nodes", retry=7)
        async with session.get(f"{server.url}/api/v1/pods") as answer:
            assert answer.status == 200
        async with session.get(f"{server.url}/api/v1/nodes") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        server.drop()
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{server.url}/api/v1/nodes", json={})
        async with session.get(f"{server.url}/api/v1/nodes") as answer:
            assert answer.status == 200
        server.hang(path="/pods")
        with pytest.raises(TimeoutError):
            await session.get(f"{server.url}/api/v1/pods", timeout=aiohttp.ClientTimeout(0.1))
        async with session.get(f"{server.url}/api/v1/nodes?watch=1") as answer:
            server.reset_watches()
            with pytest.raises(aiohttp.ClientError):
                await answer.read()


def test_it_serves_from_a_thread() -> None:
    with serving() as server:
        server.objects.put("nodes", {"metadata": {"name": "n"}})
        assert server.objects.get("nodes", "n")["kind"] == "Node"
        with pytest.raises(StatusError):
            server.objects.get("nodes", "m")
