"""The site of the table of cases: its nodes, every pod that ever appears in it, and every address outside."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.npc.cases import CASES, FIXTURES
from tests.npc.site import Site, site

Document = dict[str, Any]


@contextlib.contextmanager
def populated() -> Iterator[Site]:
    """With bridges that a cable joins."""
    nodes = {name: node["ips"] for fixture in FIXTURES.values() for name, node in fixture["nodes"].items()}
    with site(nodes, foreign()) as made:
        made.make_bridges()
        populate(made)
        yield made


def foreign() -> list[str]:
    """Addresses that are outside."""
    ends = {end for probe in _probes() for end in (probe["src"], probe["dst"])}
    return sorted(end.removeprefix("ext:") for end in ends if end.startswith("ext:"))


def populate(made: Site) -> None:
    """Every pod, whether a case has it or not."""
    for document in _documents():
        if not document["hostNetwork"] and document["ips"][0] not in made.pods:
            made.add_pod(document["node"], document["ips"])


def _documents() -> Iterator[Document]:
    for fixture in FIXTURES.values():
        yield from fixture["pods"]
    for case in CASES:
        yield from case.get("extra_pods", ())
        for step in case.get("steps", ()):
            for change in step["ops"]:
                if change["op"] == "apply" and change["kind"] == "Pod":
                    yield change["object"]


def _probes() -> Iterator[Document]:
    for case in CASES:
        for part in (case, *case.get("steps", ())):
            yield from part["probes"]
