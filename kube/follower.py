"""A resource followed: what to ask next, and what an answer means for whoever wants to know the objects.

A core without input or output: `next` says what to do, `page`, `line`, `ended` and `failed` are told how it went, and
give events. First a list in pages, then watches from its version on; each ends after some minutes and the next one goes
on. A version that is too old, or trouble that does not pass, leads to a new list: it gives what differs from what is
known, never a moment without objects. An object is trimmed before it is stored, and what does not change the trimmed
object is no event. Source: Kubernetes API concepts ("Efficient detection of changes"); spec npc §5.2, kube-testing §4.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from kube.backoff import delay
from kube.errors import ApiError, KubeError
from kube.resource import Object

# An object reduced to what is needed of it, of whatever type can be compared, or None: not of interest.
Trim = Callable[[Object], Any]
Key = tuple[str, str]

# Seconds a watch is asked to last, and those after which a server that did not end it is given up.
_WATCH = (300, 600)
_GRACE = 30.0
# Bookmarks come every minute where they come at all: so long, and a watch that had some is mute.
_SILENCE = 180.0
# A watch that brings nothing and is over sooner than this has failed.
_SHORT = 1.0
# What passes, though not by asking for something else: no rights, too many requests.
_PATIENCE = (401, 403, 429)
# Failures of watches in a row that lead to a new list.
_TRIES = 3
_PAGE = 500
_LARGEST_PAGE = 32000


@dataclass(frozen=True, slots=True)
class Applied:
    """An object is new, or what is kept of it changed; as it is kept."""

    object: Any


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object is no more, or no longer of interest; as it was last kept."""

    object: Any


@dataclass(frozen=True, slots=True)
class Synced:
    """A list is complete: what is known now is what there is. Comes again after each new list."""


Event = Applied | Deleted | Synced


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AskPage:
    limit: int
    token: str


@dataclass(frozen=True, slots=True)
class AskWatch:
    """`limit`: seconds after which it is stuck."""

    query: dict[str, str]
    limit: float


@dataclass(slots=True)
class _Listing:
    """A list under way: what was seen, what changed, what was replaced."""

    limit: int = _PAGE
    token: str = ""
    seen: set[Key] = field(default_factory=set)
    changed: dict[Key, Any] = field(default_factory=dict)
    replaced: list[Any] = field(default_factory=list)


class Follower:
    """One resource. `objects`: what is kept, by namespace and name; do not change it.

    `trouble`: the last failure in words, blank once all is well; `failures` in a row; `lists`, `watches`: how many were
    complete, or began.
    """

    def __init__(self, trim: Trim, rng: Random) -> None:
        self.objects: dict[Key, Any] = {}
        self.synced = False
        self.trouble = ""
        self.failures = 0
        self.lists = 0
        self.watches = 0
        self._trim = trim
        self._rng = rng
        self._uids: dict[Key, str] = {}
        self._version = ""
        self._listing = _Listing()
        self._pause = 0.0
        self._began = 0.0
        self._brought = False
        self._bookmarks = False

    @property
    def silence(self) -> float | None:
        """Seconds without a word after which a watch is to be given up; None where nothing need be said.

        Nobody promises bookmarks: a server that had some and now has none costs one new watch, and is believed then.
        """
        return _SILENCE if self._bookmarks else None

    def next(self) -> Pause | AskPage | AskWatch:
        if self._pause:
            pause, self._pause = self._pause, 0.0
            return Pause(pause)
        if not self._version:
            return AskPage(self._listing.limit, self._listing.token)
        seconds = self._rng.randint(*_WATCH)
        query = {"watch": "true", "allowWatchBookmarks": "true"}
        query |= {"resourceVersion": self._version, "timeoutSeconds": str(seconds)}
        return AskWatch(query, seconds + _GRACE)

    def page(self, document: Object) -> Iterator[Event]:
        """A page came. Raises KubeError where it has no version."""
        meta, listing = document["metadata"], self._listing
        version = meta.get("resourceVersion")
        if not version or not isinstance(version, str):
            raise KubeError("a list has no resourceVersion")
        first = not self.synced
        for item in document.get("items") or []:
            key, fresh = self._kept(item)
            if fresh is None:
                continue
            listing.seen.add(key)
            # What was known before keeps its place until all is seen; of what was not, each page is told at once.
            for former in self._replaced(key, item):
                if first:
                    yield Deleted(former)
                else:
                    listing.replaced.append(former)
            if self._store(key, item, fresh):
                if first:
                    yield Applied(fresh)
                else:
                    listing.changed[key] = fresh
        listing.token = meta.get("continue") or ""
        if not listing.token:
            yield from self._complete(version)

    def opened(self, now: float) -> None:
        """A watch began, at that time in seconds: nothing is wrong, though nothing need happen for a long time."""
        self._began, self._brought = now, False
        self.trouble = ""
        self.watches += 1

    def line(self, raw: bytes) -> Iterator[Event]:
        """A line of the watch came. Raises KubeError where the watch is to be given up."""
        try:
            event = json.loads(raw)
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                raise _refusal(found)
            version = found["metadata"]["resourceVersion"]
            if not version or not isinstance(version, str):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise KubeError(f"a line of a watch is no event: {raw[:80]!r}") from error
        self._version = version
        self._bookmarks = self._bookmarks or kind == "BOOKMARK"
        self._well()
        if kind in ("ADDED", "MODIFIED"):
            yield from self._applied(found)
        elif kind == "DELETED":
            yield from self._deleted(_key(found))

    def ended(self, now: float) -> None:
        """The watch ended as it should; a server that ends all of them at once is left alone for a moment."""
        if not self._brought and now - self._began < _SHORT:
            self._failed("watches end at once")
        else:
            self._well()

    def failed(self, error: KubeError) -> None:
        """A list, or a watch, failed."""
        refusal = error if isinstance(error, ApiError) else None
        self._failed(str(error), refusal.retry_after if refusal else None)
        if refusal and refusal.status in _PATIENCE:
            return
        senseless = refusal is not None and refusal.status < 500
        if self._version:
            if senseless or self.failures >= _TRIES:
                self._version = ""
        elif senseless:
            if self._listing.token:
                # It took longer than the server remembers: ask for more at a time.
                self._listing.limit = min(self._listing.limit * 4, _LARGEST_PAGE)
            self._listing.token = ""
            self._listing.seen.clear()

    # --- inside ---

    def _failed(self, text: str, retry_after: float | None = None) -> None:
        self.failures += 1
        self._bookmarks = False
        self.trouble = text
        self._pause = delay(self.failures, self._rng, retry_after)

    def _well(self) -> None:
        self.failures = 0
        self.trouble = ""
        self._brought = True

    def _kept(self, found: Object) -> tuple[Key, Any]:
        return _key(found), self._trim(found)

    def _store(self, key: Key, found: Object, fresh: Any) -> bool:
        """Whether that is news."""
        self._uids[key] = found["metadata"].get("uid", "")
        if self.objects.get(key) == fresh:
            return False
        self.objects[key] = fresh
        return True

    def _replaced(self, key: Key, found: Object) -> list[Any]:
        """The former object of that name, if it was another one."""
        if self._uids.get(key, uid := found["metadata"].get("uid", "")) == uid:
            return []
        del self._uids[key]
        return [self.objects.pop(key)]

    def _applied(self, found: Object) -> Iterator[Event]:
        key, fresh = self._kept(found)
        if fresh is None:
            yield from self._deleted(key)
            return
        for former in self._replaced(key, found):
            yield Deleted(former)
        if self._store(key, found, fresh):
            yield Applied(fresh)

    def _deleted(self, key: Key) -> Iterator[Event]:
        self._uids.pop(key, None)
        former = self.objects.pop(key, None)
        if former is not None:
            yield Deleted(former)

    def _complete(self, version: str) -> Iterator[Event]:
        """All pages came: who was not on them is gone, and goes first, as addresses are used again."""
        listing, self._listing = self._listing, _Listing()
        self._version = version
        self.lists += 1
        self.synced = True
        for former in listing.replaced:
            yield Deleted(former)
        for key in [key for key in self.objects if key not in listing.seen]:
            yield from self._deleted(key)
        for key, fresh in listing.changed.items():
            if self.objects.get(key) is fresh:
                yield Applied(fresh)
        yield Synced()


def _key(found: Object) -> Key:
    meta = found.get("metadata") if isinstance(found, dict) else None
    if isinstance(meta, dict):
        namespace, name = meta.get("namespace") or "", meta.get("name")
        if isinstance(namespace, str) and isinstance(name, str):
            return namespace, name
    raise KubeError("an object has no name")


def _refusal(status: Any) -> ApiError:
    """An event of type ERROR: the object is a Status. Raises TypeError, ValueError."""
    if not isinstance(status, dict):
        raise TypeError
    return ApiError(int(status.get("code") or 0), str(status.get("reason") or ""), str(status.get("message") or ""))
