"""Where tests of network policy take place: the site of the table of cases, and weave-npc that follows a cluster there.

A module that needs another place makes its own by the same name.
"""

from collections.abc import Iterator

import pytest

from tests.kube.api_server import ApiServer
from tests.npc.cases import policy
from tests.npc.daemons import Daemon, cluster, daemons
from tests.npc.populated import populated
from tests.npc.site import Site


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    """Two nodes with every pod."""
    with populated() as made:
        yield made


@pytest.fixture
def api(place: Site) -> Iterator[tuple[ApiServer, str]]:
    """An API server outside and its URL; its one policy lets the friend in to the server, and not the stranger."""
    with cluster(place) as made:
        made[0].objects.put("networkpolicies", policy("front", {"matchLabels": {"app": "front"}}))
        yield made


@pytest.fixture
def both(place: Site, api: tuple[ApiServer, str]) -> Iterator[list[Daemon]]:
    """weave-npc on both nodes, ready."""
    with daemons(place, api[1]) as made:
        yield made
