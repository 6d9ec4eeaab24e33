"""A resource followed, without a network: what is asked, and what differences are told."""

import contextlib
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kube.errors import ApiError, KubeError
from kube.follower import Applied, AskPage, AskWatch, Deleted, Event, Follower, Pause, Synced
from kube.resource import Object
from tests.vectors import ROOT

WORDS = ["metadata", "name", "namespace", "resourceVersion", "uid", "type", "object", "code", "reason", "message"]


def item(name: str, version: int, value: str = "", uid: str = "") -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version), "uid": uid or f"u-{name}"}, "value": value}


def trim(found: Object) -> Object | None:
    """Keeps the name and the value; what has the value `no` is of no interest."""
    return None if found["value"] == "no" else {"name": found["metadata"]["name"], "value": found["value"]}


def page(version: int, *items: Object, token: str = "") -> Object:
    return {"metadata": {"resourceVersion": str(version), "continue": token}, "items": list(items)}


def line(kind: str, found: Object) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode()


def told(events: Any) -> list[str]:
    """`+name=value`, `-name=value`, `.` for Synced."""

    def short(event: Event) -> str:
        match event:
            case Applied(found):
                return f"+{found['name']}={found['value']}"
            case Deleted(found):
                return f"-{found['name']}={found['value']}"
            case Synced():
                return "."

    return [short(event) for event in events]


@pytest.fixture
def follower() -> Follower:
    return Follower(trim, Random(1))


def test_pages_then_a_watch_from_their_version(follower: Follower) -> None:
    assert follower.next() == AskPage(500, "")
    assert told(follower.page(page(7, item("a", 1, "x"), item("n", 2, "no"), token="t"))) == ["+a=x"]
    assert follower.next() == AskPage(500, "t")
    assert told(follower.page(page(7, item("b", 3)))) == ["+b=", "."]
    step = follower.next()
    assert isinstance(step, AskWatch)
    seconds = int(step.query["timeoutSeconds"])
    assert 300 <= seconds <= 600 < step.limit + 300 and step.limit > seconds
    assert (step.query["resourceVersion"], step.query["allowWatchBookmarks"]) == ("7", "true")


def test_watches_are_not_all_as_long(follower: Follower) -> None:
    list(follower.page(page(7)))
    lengths = {step.query["timeoutSeconds"] for _ in range(50) if isinstance(step := follower.next(), AskWatch)}
    assert len(lengths) > 20


def test_events_of_a_watch(follower: Follower) -> None:
    list(follower.page(page(7, item("a", 1, "x"))))
    follower.opened(0.0)
    script = [
        (line("ADDED", item("b", 8, "y")), ["+b=y"]),
        (line("MODIFIED", item("b", 9, "y")), []),  # nothing that is kept changed
        (line("MODIFIED", item("b", 10, "z")), ["+b=z"]),
        (line("MODIFIED", item("b", 11, "no")), ["-b=z"]),  # no longer of interest
        (line("MODIFIED", item("a", 12, "w", uid="other")), ["-a=x", "+a=w"]),  # another object of that name
        (line("BOOKMARK", {"metadata": {"resourceVersion": "20", "creationTimestamp": None}}), []),
        (line("DELETED", item("a", 21, "w")), ["-a=w"]),
        (line("DELETED", item("a", 22, "w")), []),
    ]
    for raw, expected in script:
        assert told(follower.line(raw)) == expected
    follower.ended(400.0)
    step = follower.next()
    assert isinstance(step, AskWatch) and step.query["resourceVersion"] == "22"


def test_a_bookmark_alone_moves_where_the_next_watch_begins(follower: Follower) -> None:
    """As a real server wrote it: with fields that are no object's."""
    list(follower.page(page(7)))
    recorded = json.loads((ROOT / "kube-api" / "43-watch-pods-from-rv.json").read_text())["lines"][-1][1]
    assert recorded["type"] == "BOOKMARK"
    follower.opened(0.0)
    assert told(follower.line(json.dumps(recorded).encode())) == []
    step = follower.next()
    assert isinstance(step, AskWatch) and step.query["resourceVersion"] == "482"


def test_a_recorded_watch_leaves_what_it_left() -> None:
    """Thirty events of three pods that came and went: who is told of, and in which order."""
    kept = Follower(lambda pod: {"name": pod["metadata"]["name"], "value": pod["status"]["phase"]}, Random(1))
    list(kept.page(page(419)))
    kept.opened(0.0)
    recorded = json.loads((ROOT / "kube-api" / "43-watch-pods-from-rv.json").read_text())["lines"]
    events = [name for _, event in recorded for name in told(kept.line(json.dumps(event).encode()))]
    for pod in ("p0", "p1", "p2"):
        assert [name for name in events if pod in name][:2] == [f"+{pod}=Pending", f"+{pod}=Running"]
        assert [name for name in events if pod in name][-1].startswith(f"-{pod}")
    assert not kept.objects


def gone_in_watch(follower: Follower) -> None:
    recorded = json.loads((ROOT / "kube-api" / "46-watch-compacted.json").read_text())["response"]["body"]
    with pytest.raises(ApiError) as caught:
        list(follower.line(json.dumps(recorded).encode()))
    assert caught.value.gone
    follower.failed(caught.value)


def test_an_expired_watch_leads_to_a_list_that_tells_differences(follower: Follower) -> None:
    """Those that are gone first: their addresses may be others' by now. Nothing is told twice."""
    list(follower.page(page(7, item("a", 1, "x"), item("b", 2, "y"), item("c", 3, "z"), item("d", 4, "v", "old"))))
    follower.opened(0.0)
    gone_in_watch(follower)
    assert isinstance(follower.next(), Pause)
    assert follower.next() == AskPage(500, "")
    fresh = page(30, item("b", 2, "y"), item("c", 9, "new"), token="t")
    assert told(follower.page(fresh)) == []
    rest = page(30, item("d", 20, "v", "new"), item("e", 21, "w"))
    assert told(follower.page(rest)) == ["-d=v", "-a=x", "+c=new", "+d=v", "+e=w", "."]
    assert {name for _, name in follower.objects} == {"b", "c", "d", "e"}


def test_a_page_that_expired_begins_the_list_anew_with_larger_pages(follower: Follower) -> None:
    assert told(follower.page(page(7, item("a", 1, "x"), token="t"))) == ["+a=x"]
    follower.failed(ApiError(410, "Expired", "too old"))
    assert isinstance(follower.next(), Pause)
    assert follower.next() == AskPage(2000, "")
    assert told(follower.page(page(9, item("b", 8, "y")))) == ["+b=y", "-a=x", "."]
    list(follower.line(line("BOOKMARK", item("", 9))))
    follower.failed(ApiError(410, "Expired", "too old"))
    follower.next()
    assert follower.next() == AskPage(500, "")


def test_a_list_goes_on_after_trouble_where_it_was(follower: Follower) -> None:
    list(follower.page(page(7, item("a", 1, "x"), token="t")))
    follower.failed(KubeError("reset"))
    assert isinstance(follower.next(), Pause)
    assert follower.next() == AskPage(500, "t")
    assert told(follower.page(page(7, item("b", 2, "y")))) == ["+b=y", "."]


@pytest.mark.parametrize(
    ("error", "lists_after"),
    [
        (ApiError(500, "", "resourceVersion: Invalid value"), 3),
        (ApiError(504, "Timeout", "Too large resource version"), 3),
        (ApiError(429, "TooManyRequests", "later", 5.0), None),
        (ApiError(401, "Unauthorized", "Unauthorized"), None),
        (ApiError(403, "Forbidden", "pods is forbidden"), None),
        (KubeError("the connection broke"), 3),
        (ApiError(410, "Expired", "too old"), 1),
        (ApiError(400, "BadRequest", "what?"), 1),
    ],
)
def test_after_which_failure_of_a_watch_a_list_is_made(
    follower: Follower, error: KubeError, lists_after: int | None
) -> None:
    """At once where the watch can't go on, never where we are to wait, else when three in a row failed."""
    list(follower.page(page(7)))
    follower.opened(0.0)
    list(follower.line(line("ADDED", item("a", 8))))
    for failures in range(1, 6):
        follower.failed(error)
        assert follower.trouble == str(error)
        pause = follower.next()
        assert isinstance(pause, Pause) and pause.seconds >= (5.0 if "later" in str(error) else 0.5)
        assert isinstance(follower.next(), AskPage) == (lists_after is not None and failures >= lists_after)


def test_waits_grow_to_a_limit_and_differ(follower: Follower) -> None:
    waits = []
    for _ in range(12):
        follower.failed(KubeError("down"))
        step = follower.next()
        assert isinstance(step, Pause)
        waits.append(step.seconds)
    assert all(2.0**n / 2 <= wait <= 2.0**n for n, wait in enumerate(waits[:5]))
    assert all(15.0 <= wait <= 30.0 for wait in waits[5:]) and len(set(waits)) == 12


def test_an_open_watch_is_no_trouble_though_nothing_happens(follower: Follower) -> None:
    """Where nobody sends bookmarks it may say nothing for minutes; the wait after its failure is the longer one."""
    list(follower.page(page(7)))
    for failures in (1, 2):
        follower.failed(KubeError("down"))
        assert follower.trouble == "down" and follower.failures == failures
        assert isinstance(follower.next(), Pause) and isinstance(follower.next(), AskWatch)
        follower.opened(10.0 * failures)
        assert not follower.trouble


def test_who_has_sent_bookmarks_sends_more(follower: Follower) -> None:
    """Where none came, or they ended, silence means nothing."""
    list(follower.page(page(7)))
    follower.opened(0.0)
    list(follower.line(line("ADDED", item("a", 8, "x"))))
    assert follower.silence is None
    list(follower.line(line("BOOKMARK", {"metadata": {"resourceVersion": "20"}})))
    assert follower.silence is not None and 120 < follower.silence < 300
    follower.ended(400.0)
    assert follower.silence is not None
    follower.failed(KubeError("mute"))
    assert follower.silence is None and follower.next() == Pause(pytest.approx(0.75, abs=0.25))
    assert isinstance(follower.next(), AskWatch), "no new list"


def test_watches_that_end_at_once_count_as_failures(follower: Follower) -> None:
    list(follower.page(page(7)))
    follower.opened(10.0)
    follower.ended(10.1)
    assert isinstance(follower.next(), Pause) and follower.trouble
    follower.opened(20.0)
    follower.ended(320.0)
    assert isinstance(follower.next(), AskWatch) and not follower.trouble


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"null", b'{"type":"ADDED"}', b'{"type":"ADDED","object":{"metadata":{}}}', b"\xff"]
)
def test_what_is_no_event_ends_the_watch(follower: Follower, raw: bytes) -> None:
    list(follower.page(page(7, item("a", 1, "x"))))
    with pytest.raises(KubeError):
        list(follower.line(raw))
    assert len(follower.objects) == 1


def test_what_is_no_list() -> None:
    with pytest.raises(KubeError):
        list(Follower(trim, Random(1)).page({"metadata": {}, "items": []}))
    with pytest.raises(KubeError):
        list(Follower(trim, Random(1)).page({"metadata": {"resourceVersion": "1"}, "items": [{}]}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(VALUES, VALUES, st.sampled_from(["ADDED", "DELETED", "ERROR", "BOOKMARK", "x"]), st.booleans())
def test_no_answer_makes_it_fall(found: Any, more: Any, kind: str, whole: bool) -> None:
    """Whatever comes is events, or is refused."""
    kept = Follower(lambda found: {"name": "", "value": ""}, Random(1))
    list(kept.page(page(7, item("a", 1))))
    raw = {"type": kind, "object": {"metadata": found, **more} if isinstance(more, dict) and whole else found}
    with contextlib.suppress(KubeError):
        list(kept.line(json.dumps(raw).encode()))
    with contextlib.suppress(KubeError):
        list(kept.line(json.dumps(more).encode()))
    with contextlib.suppress(KubeError):
        list(kept.page({"metadata": {"resourceVersion": "8"}, "items": [raw["object"], more]}))
    kept.failed(KubeError("x"))
    assert isinstance(kept.next(), Pause)
