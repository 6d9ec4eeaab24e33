"""Where names meet their neighbours: who asks, what keeps manual names, and what a forwarder sends with."""

from collections.abc import Callable, Sequence
from typing import Protocol

from mesh.names import PeerName


class NameJournal(Protocol):
    """Keeps the names that were registered here, over restarts. Called on a worker thread, one call at a time.

    A row is (hostname as registered, container, address as text). Errors are of any class, with a text for a person.
    """

    def names(self) -> Sequence[tuple[str, str, str]]:
        """All rows, in the order in which they came."""

    def add_name(self, hostname: str, container: str, address: str) -> None:
        """Keep a row, durably when this returns; once more changes nothing."""

    def remove_name(self, hostname: str, container: str, address: str) -> None:
        """Forget a row, durably when this returns."""


class Client(Protocol):
    """Who asked one question, and waits for its answer."""

    @property
    def tcp(self) -> bool:
        """Whether an answer of any size fits."""

    def send(self, reply: bytes) -> None:
        """Give the answer; harmless when the client is gone."""


Known = Callable[[PeerName], bool]
