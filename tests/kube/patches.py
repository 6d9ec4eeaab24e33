"""Patches and selectors, as far as the stand-in API server needs them.

Source: RFC 7386 (merge), RFC 6902 (JSON patch); strategic merge for lists whose merge key is in `_MERGE_KEYS`.
"""

import copy
import re
from collections.abc import Callable
from typing import Any

from tests.kube.resources import Object, bad_request

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON = "application/json-patch+json"

_MERGE_KEYS = {"conditions": "type", "addresses": "type", "containers": "name", "taints": "key", "podIPs": "ip"}
_SET = re.compile(r"^\s*([^\s!=]+)\s+(in|notin)\s+\(([^)]*)\)\s*$")


def patched(current: Object, patch: Any, content_type: str) -> Object:
    """The object after the patch. Raises StatusError 400 or 415."""
    fresh = copy.deepcopy(current)
    if content_type == JSON:
        for operation in patch:
            _apply(fresh, operation)
        return fresh
    return _merged(fresh, patch, strategic=content_type == STRATEGIC)


def _merged(current: Object, patch: Object, *, strategic: bool) -> Object:
    for key, value in patch.items():
        if value is None:
            current.pop(key, None)
        elif isinstance(value, dict):
            inner = current.get(key)
            current[key] = _merged(inner if isinstance(inner, dict) else {}, value, strategic=strategic)
        elif strategic and isinstance(value, list) and key in _MERGE_KEYS:
            current[key] = _merged_list(current.get(key) or [], value, _MERGE_KEYS[key])
        else:
            current[key] = copy.deepcopy(value)
    return current


def _merged_list(current: list[Object], patch: list[Object], key: str) -> list[Object]:
    fresh = list(current)
    for item in patch:
        index = next((n for n, old in enumerate(fresh) if old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if index is not None:
                del fresh[index]
        elif index is None:
            fresh.append(_merged({}, item, strategic=True))
        else:
            fresh[index] = _merged(dict(fresh[index]), item, strategic=True)
    return fresh


def _apply(document: Object, operation: Object) -> None:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    holder: Any = document
    try:
        for part in parts[:-1]:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        last: Any = parts[-1]
        if isinstance(holder, list):
            last = len(holder) if last == "-" else int(last)
        match operation["op"]:
            case "add" if isinstance(holder, list):
                holder.insert(last, operation["value"])
            case "add":
                holder[last] = operation["value"]
            case "replace":
                holder[last]
                holder[last] = operation["value"]
            case "remove":
                del holder[last]
            case "test":
                if holder[last] != operation["value"]:
                    raise bad_request(f"testing value {operation['path']} failed")
            case other:
                raise bad_request(f"unsupported operation {other}")
    except (KeyError, IndexError, ValueError) as error:
        raise bad_request(f"the JSON patch does not fit: {operation['path']}") from error


Selector = Callable[[Object], bool]


def label_selector(text: str) -> Selector:
    """`a=b,c!=d,e in (f,g),h,!i` as a test of an object. Source: Kubernetes' label selectors."""
    terms = [_label_term(term) for term in re.split(r",(?![^(]*\))", text) if term.strip()]

    def selects(found: Object) -> bool:
        labels = found["metadata"].get("labels") or {}
        return all(term(labels) for term in terms)

    return selects


def _label_term(term: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(term):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        return lambda labels: (labels.get(key) in values) == (operator == "in")
    term = term.strip()
    if "!=" in term:
        key, _, value = term.partition("!=")
        return lambda labels: labels.get(key) != value
    if "=" in term:
        key, _, value = term.partition("=")
        return lambda labels: labels.get(key) == value.removeprefix("=")
    return lambda labels: (term.lstrip("!") in labels) != term.startswith("!")


def field_selector(text: str) -> Selector:
    """`metadata.name=x,spec.nodeName!=y` as a test of an object."""
    terms = []
    for term in filter(None, text.split(",")):
        path, unequal, value = term.partition("!=") if "!=" in term else term.partition("=")
        terms.append((path.split("."), unequal == "!=", value.removeprefix("=")))

    def selects(found: Object) -> bool:
        return all((_field(found, path) == value) != negated for path, negated, value in terms)

    return selects


def _field(found: Any, path: list[str]) -> str:
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return "" if found is None else str(found)
