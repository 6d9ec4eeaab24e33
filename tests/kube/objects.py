"""The objects of the stand-in API server: versions, history, lists in pages, what a real server checks and fills in.

No input or output; safe to use from several threads, so that a test changes objects while a server in another thread
serves them. A version is opaque to clients: it grows by uneven steps. History is kept until `compact`.
"""

import base64
import copy
import ipaddress
import itertools
import json
import threading
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.kube import resources
from tests.kube.patches import Selector, patched
from tests.kube.resources import Object, Resource

_STEPS = (1, 2, 1, 5, 3)
_BEGIN = 400
_SNAPSHOTS = 16
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """An object as it was and as it is; `version` is the change's."""

    version: int
    before: Object | None
    after: Object | None

    def event(self, selects: Selector, resource: Resource) -> Object | None:
        """What a watcher with that selector is told, if anything."""
        was = self.before is not None and selects(self.before)
        now = self.after is not None and selects(self.after)
        if now:
            assert self.after is not None
            return {"type": "MODIFIED" if was else "ADDED", "object": typed(self.after, resource)}
        if not was:
            return None
        last = copy.deepcopy(self.after or self.before)
        assert last is not None
        last["metadata"]["resourceVersion"] = str(self.version)
        return {"type": "DELETED", "object": typed(last, resource)}


def typed(found: Object, resource: Resource) -> Object:
    """With kind and apiVersion first, as single objects are served; items of lists have neither."""
    return {"kind": resource.kind, "apiVersion": resource.api_version} | found


class Objects:
    """All objects of one stand-in cluster. `now` gives the text of a time stamp."""

    def __init__(self, extra: Iterable[Resource] = (), now: Callable[[], str] = lambda: "2026-11-23T22:20:59Z") -> None:
        self.resources = {(r.group, r.version, r.plural): r for r in (*resources.RESOURCES, *extra)}
        self.lock = threading.RLock()
        self._now = now
        self._steps = itertools.cycle(_STEPS)
        self._version = _BEGIN
        self._compacted = 0
        self._stored: dict[Resource, dict[Key, Object]] = {r: {} for r in self.resources.values()}
        self._history: dict[Resource, list[Change]] = {r: [] for r in self.resources.values()}
        self._snapshots: dict[tuple[Resource, int], list[Object]] = {}
        self._listeners: set[Callable[[], None]] = set()
        for name in ("default", "kube-system"):
            self.create(self.resource("namespaces"), "", {"metadata": {"name": name}})

    # --- what a test says and asks; `plural` is `pods`, `networkpolicies`, … ---

    def resource(self, plural: str) -> Resource:
        return next(r for r in self.resources.values() if r.plural == plural)

    def put(self, plural: str, document: Object) -> Object:
        """Store an object as it stands, status and all, new or not; its namespace is made if need be."""
        resource = self.resource(plural)
        namespace = document["metadata"].get("namespace", "default") if resource.namespaced else ""
        with self.lock:
            namespaces = self.resource("namespaces")
            if namespace and ("", namespace) not in self._stored[namespaces]:
                self.create(namespaces, "", {"metadata": {"name": namespace}})
            name, bare = document["metadata"]["name"], copy.deepcopy(document)
            bare["metadata"].pop("resourceVersion", None)
            held = self._stored[resource].get((namespace, name))
            if held is not None and bare["metadata"].get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
                self.remove(plural, name, namespace)
                held = None
            if held is None:
                return self.create(resource, namespace, bare, status=True)
            return self.update(resource, namespace, name, bare, "*")

    def get(self, plural: str, name: str, namespace: str = "") -> Object:
        """Raises StatusError 404."""
        return self.read(self.resource(plural), namespace, name)

    def remove(self, plural: str, name: str, namespace: str = "") -> None:
        """At once, grace or not. Raises StatusError 404."""
        resource = self.resource(plural)
        with self.lock:
            before = self._existing(resource, namespace, name)
            del self._stored[resource][namespace, name]
            self._changed(resource, before, None)

    def all(self, plural: str) -> list[Object]:
        with self.lock:
            return [copy.deepcopy(found) for _, found in sorted(self._stored[self.resource(plural)].items())]

    def compact(self) -> None:
        """Forget history: older versions are Expired for watches and for lists that go on."""
        with self.lock:
            self._compacted = self._version
            self._snapshots.clear()
            for changes in self._history.values():
                changes.clear()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call after each change, on the thread that made it; what is returned ends it."""
        with self.lock:
            self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # --- what the server asks ---

    @property
    def version(self) -> int:
        with self.lock:
            return self._version

    def read(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.lock:
            return typed(copy.deepcopy(self._existing(resource, namespace, name)), resource)

    def create(self, resource: Resource, namespace: str, document: Object, *, status: bool = False) -> Object:
        fresh = copy.deepcopy(document)
        meta = fresh.setdefault("metadata", {})
        with self.lock:
            if "generateName" in meta and not meta.get("name"):
                meta["name"] = f"{meta['generateName']}{uuid.uuid4().hex[:5]}"
            name = meta.get("name", "")
            _check(resource, name, fresh, namespace)
            if namespace and ("", namespace) not in self._stored[self.resource("namespaces")]:
                raise resources.not_found(self.resource("namespaces"), namespace)
            if (namespace, name) in self._stored[resource]:
                raise resources.already_exists(resource, name)
            if meta.get("resourceVersion"):
                raise resources.bad_request("resourceVersion should not be set on objects to be created")
            meta |= {"namespace": namespace} if namespace else {}
            meta["uid"] = meta.get("uid") or str(uuid.uuid4())
            meta["creationTimestamp"] = meta.get("creationTimestamp") or self._now()
            if resource.status and not status:
                fresh.pop("status", None)
            return self._store(resource, (namespace, name), None, fresh)

    def update(self, resource: Resource, namespace: str, name: str, document: Object, part: str = "") -> Object:
        """Replace all but the status (`part` ""), the status alone ("status"), or all of it ("*")."""
        with self.lock:
            before = self._existing(resource, namespace, name)
            meta = document.get("metadata", {})
            if meta.get("name", name) != name:
                raise resources.bad_request("the name of the object does not match the name on the URL")
            held = before["metadata"]
            if meta.get("resourceVersion") not in (None, "", held["resourceVersion"]):
                raise resources.conflict(resource, name)
            if meta.get("uid") not in (None, "", held["uid"]):
                raise resources.conflict(resource, name)
            fresh = copy.deepcopy(before if part == "status" else document)
            if part == "status":
                fresh["status"] = copy.deepcopy(document.get("status", {}))
            elif resource.status and part != "*":
                fresh.pop("status", None)
                fresh |= {"status": before["status"]} if "status" in before else {}
            kept = {k: held[k] for k in ("namespace", "uid", "creationTimestamp", "resourceVersion") if k in held}
            fresh["metadata"] = fresh.get("metadata", {}) | kept
            _check(resource, name, fresh, namespace)
            return self._store(resource, (namespace, name), before, fresh)

    def patch(
        self, resource: Resource, namespace: str, name: str, patch: Any, content_type: str, part: str = ""
    ) -> Object:
        with self.lock:
            before = self._existing(resource, namespace, name)
            return self.update(resource, namespace, name, patched(before, patch, content_type), part)

    def delete(self, resource: Resource, namespace: str, name: str, grace: int | None = None) -> Object:
        """As a client asks: a pod on a node only begins to end, unless `grace` is 0; the test removes it."""
        with self.lock:
            before = self._existing(resource, namespace, name)
            if resource.plural == "pods" and before.get("spec", {}).get("nodeName") and grace != 0:
                fresh = copy.deepcopy(before)
                fresh["metadata"] |= {"deletionTimestamp": self._now(), "deletionGracePeriodSeconds": grace or 30}
                return self._store(resource, (namespace, name), before, fresh)
            self.remove(resource.plural, name, namespace)
            if resource.plural == "namespaces":
                self._empty(name)
                return typed(before | {"status": {"phase": "Terminating"}}, resource)
            said = resources.details(resource, name) | {"uid": before["metadata"]["uid"]}
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": said}

    def page(self, resource: Resource, namespace: str, selects: Selector, limit: int, token: str) -> Object:
        """A list, or so much of it; the pages of one list show one moment. Raises StatusError 410."""
        with self.lock:
            version, start = self._version, 0
            if token:
                version, start = json.loads(base64.urlsafe_b64decode(token))
            elif limit:
                self._snapshots[resource, version] = self._matching(resource, "", lambda found: True)
                while len(self._snapshots) > _SNAPSHOTS:
                    del self._snapshots[next(iter(self._snapshots))]
            if limit or token:
                if (resource, version) not in self._snapshots:
                    raise resources.expired(_token(self._version, start))
                whole = [
                    found
                    for found in self._snapshots[resource, version]
                    if namespace in ("", found["metadata"].get("namespace", "")) and selects(found)
                ]
            else:
                whole = self._matching(resource, namespace, selects)
            end = start + limit if limit else len(whole)
            meta: Object = {"resourceVersion": str(version)}
            if end < len(whole):
                meta |= {"continue": _token(version, end), "remainingItemCount": len(whole) - end}
            kind = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
            return kind | {"metadata": meta, "items": whole[start:end]}

    def since(self, resource: Resource, version: int) -> tuple[list[Change], int]:
        """Changes after a version, and the version up to which that is all. Raises StatusError 410."""
        with self.lock:
            if version < self._compacted:
                raise resources.expired()
            changes = self._history[resource]
            return changes[bisect_right(changes, version, key=lambda change: change.version) :], self._version

    # --- inside ---

    def _existing(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self._stored[resource].get((namespace, name))
        if found is None:
            raise resources.not_found(resource, name)
        return found

    def _matching(self, resource: Resource, namespace: str, selects: Selector) -> list[Object]:
        items = sorted(self._stored[resource].items())
        return [found for (where, _), found in items if namespace in ("", where) and selects(found)]

    def _store(self, resource: Resource, key: Key, before: Object | None, fresh: Object) -> Object:
        """What does not change an object makes no version."""
        for name in ("kind", "apiVersion"):
            fresh.pop(name, None)
        _fill(resource, fresh)
        if before is None or fresh != before:
            self._version += next(self._steps)
            fresh["metadata"]["resourceVersion"] = str(self._version)
            self._stored[resource][key] = fresh
            self._told(resource, Change(self._version, before, fresh))
        return typed(copy.deepcopy(fresh), resource)

    def _changed(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        self._version += next(self._steps)
        self._told(resource, Change(self._version, before, after))

    def _told(self, resource: Resource, change: Change) -> None:
        self._history[resource].append(change)
        for listener in tuple(self._listeners):
            listener()

    def _empty(self, namespace: str) -> None:
        for resource, stored in self._stored.items():
            for where, name in [key for key in stored if key[0] == namespace]:
                self.remove(resource.plural, name, where)


def _token(version: int, start: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([version, start]).encode()).decode()


def _check(resource: Resource, name: str, fresh: Object, namespace: str) -> None:
    if not name:
        message = "Required value: name or generateName is required"
        raise resources.invalid(resource, name, "metadata.name", message)
    if fresh["metadata"].get("namespace", namespace) != namespace:
        raise resources.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if resource.kind == "NetworkPolicy":
        for path, cidr in _blocks(fresh.get("spec", {})):
            try:
                ipaddress.ip_network(cidr)
            except ValueError:
                wrong = f'Invalid value: "{cidr}": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)'
                raise resources.invalid(resource, name, path, wrong) from None


def _blocks(spec: Object) -> Iterable[tuple[str, str]]:
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for n, rule in enumerate(spec.get(direction) or []):
            for m, peer in enumerate(rule.get(peers) or []):
                if "ipBlock" in peer:
                    yield f"spec.{direction}[{n}].{peers}[{m}].ipBlock.cidr", peer["ipBlock"].get("cidr", "")


def _fill(resource: Resource, fresh: Object) -> None:
    """The defaults that clients may count on."""
    if resource.kind == "Namespace":
        labels = fresh["metadata"].setdefault("labels", {})
        labels["kubernetes.io/metadata.name"] = fresh["metadata"]["name"]
        fresh.setdefault("spec", {"finalizers": ["kubernetes"]})
        fresh.setdefault("status", {"phase": "Active"})
    elif resource.kind == "NetworkPolicy":
        spec = fresh.setdefault("spec", {})
        for direction in ("ingress", "egress"):
            for rule in spec.get(direction) or []:
                for port in rule.get("ports") or []:
                    port.setdefault("protocol", "TCP")
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    elif resource.kind == "Pod":
        fresh.setdefault("status", {"phase": "Pending"})
