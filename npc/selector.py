"""Label selectors: what they match, why they do not, and which of many match a set of labels.

A selector is kept in one canonical form, so that two that mean the same are equal and are one set in the kernel.
Source: NPC spec §2 (Selector), §4.2.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Generic, TypeVar

from npc.errors import PolicyError

Labels = Mapping[str, str]
Pair = tuple[str, str]

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One condition on one label. `values` are sorted; empty for Exists and DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...]

    def matches(self, labels: Labels) -> bool:
        """Whether labels satisfy it. A missing key satisfies NotIn."""
        if self.operator == "In":
            return labels.get(self.key) in self.values
        if self.operator == "NotIn":
            return labels.get(self.key) not in self.values
        return (self.key in labels) == (self.operator == "Exists")

    def __str__(self) -> str:
        if self.operator == "In" and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        if self.operator in ("In", "NotIn"):
            return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"
        return self.key if self.operator == "Exists" else f"!{self.key}"


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """All of its requirements must be met; without any, it selects everything."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Labels) -> bool:
        """Whether labels satisfy every requirement."""
        # A loop: this is called for every pod of a namespace, and a generator costs more than what it yields.
        for requirement in self.requirements:  # noqa: SIM110
            if not requirement.matches(labels):
                return False
        return True

    def mismatch(self, labels: Labels) -> Requirement | None:
        """The first requirement that labels do not meet."""
        return next((each for each in self.requirements if not each.matches(labels)), None)

    def pair(self) -> Pair | None:
        """A label that everything selected has; None if there is no single one."""
        for each in self.requirements:
            if each.operator == "In" and len(each.values) == 1:
                return each.key, each.values[0]
        return None

    def __str__(self) -> str:
        return ",".join(str(each) for each in self.requirements) or "all"


EVERYTHING = Selector(())


def parse(document: object, what: str) -> Selector:
    """The selector of a LabelSelector of the API. Raises PolicyError, which says what is wrong with `what`."""
    if not isinstance(document, Mapping):
        raise PolicyError(f"{what} is no selector: {document!r}")
    labels = document.get("matchLabels") or {}
    if not isinstance(labels, Mapping):
        raise PolicyError(f"{what}.matchLabels is no map: {labels!r}")
    found = {_requirement(str(key), "In", (str(value),)) for key, value in labels.items()}
    for expression in document.get("matchExpressions") or ():
        found.add(_expression(expression, f"{what}.matchExpressions"))
    return Selector(tuple(sorted(found)))


def _expression(document: Mapping[str, Any], what: str) -> Requirement:
    operator, values = document.get("operator"), document.get("values") or ()
    if operator not in _OPERATORS:
        raise PolicyError(f"{what}: operator {operator!r} is none of {', '.join(_OPERATORS)}")
    if not document.get("key"):
        raise PolicyError(f"{what}: a condition without a key")
    if (operator in ("In", "NotIn")) != bool(values):
        raise PolicyError(f"{what}: {operator} of {document['key']} with {'' if values else 'no '}values")
    return _requirement(str(document["key"]), str(operator), values)


def _requirement(key: str, operator: str, values: Iterable[str]) -> Requirement:
    return Requirement(intern(key), intern(operator), tuple(sorted({intern(str(value)) for value in values})))


Item = TypeVar("Item")


class Index(Generic[Item]):
    """Many selectors, each with an item, found by the labels they match without trying all of them.

    A scope keeps them apart, here namespaces. A selector that wants a certain label lies under it.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, Pair | None], dict[Item, Selector]] = {}

    def add(self, scope: str, selector: Selector, item: Item) -> None:
        """An item, once in a scope."""
        self._buckets.setdefault((scope, selector.pair()), {})[item] = selector

    def discard(self, scope: str, selector: Selector, item: Item) -> None:
        """Take out an item that was added with this selector."""
        bucket = (scope, selector.pair())
        items = self._buckets.get(bucket, {})
        items.pop(item, None)
        if not items:
            self._buckets.pop(bucket, None)

    def matching(self, scope: str, labels: Labels) -> Iterator[Item]:
        """The items of a scope whose selectors match."""
        for pair in (None, *labels.items()):
            for item, selector in self._buckets.get((scope, pair), {}).items():
                if selector.matches(labels):
                    yield item
