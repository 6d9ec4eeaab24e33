"""What the cluster is told about our node: its condition NetworkUnavailable, as long as we run.

False, with the reason 2.8 gives, as soon as the router works; True, which keeps new pods away, once it has had no
connectivity for a while. Told on a change, and again where somebody else changed it. No input or output but `patch`.
Source: Kubernetes and CNI spec §4.5, §8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kube.client import Client
from kube.peers import CONDITION, condition_of
from kube.resource import NODES, Object

UP = "WeaveIsUp"
DOWN = "WeaveHasNoConnectivity"
_UP_TEXT = "Weave pod has set this"
# Seconds without connectivity after which the node says so, and those between two words about the same.
PATIENCE = 60.0
_REPEAT = 60.0


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition as we want it: `unavailable`, and why."""

    unavailable: bool
    text: str

    @property
    def reason(self) -> str:
        return DOWN if self.unavailable else UP

    def holds(self, node: Object) -> bool:
        """Whether that is what the node says."""
        said = condition_of(node, CONDITION) or {}
        return (said.get("status"), said.get("reason")) == (str(self.unavailable), self.reason)


class NodeStatus:
    """Decides what to say. `patience`: seconds; all times are seconds on a clock that never goes back."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._unwell_since: float | None = None
        self._wanted: Condition | None = None
        self._said: Condition | None = None
        self._said_at = 0.0

    def health(self, now: float, trouble: str) -> None:
        """How the router is: blank where it works, else what is wrong."""
        if not trouble:
            self._unwell_since = None
            self._wanted = Condition(False, _UP_TEXT)
            return
        if self._unwell_since is None:
            self._unwell_since = now
        if now - self._unwell_since >= self._patience and not (self._wanted and self._wanted.unavailable):
            self._wanted = Condition(True, trouble)

    def due(self, now: float, node: Object | None) -> Condition | None:
        """What is to be said now, if anything. `node`: as the cluster has it, None where that is not known."""
        if self._wanted is None or (self._wanted == self._said and now - self._said_at < _REPEAT):
            return None
        if self._wanted == self._said and (node is None or self._wanted.holds(node)):
            return None
        return self._wanted

    def said(self, now: float, condition: Condition) -> None:
        """The cluster knows."""
        self._said, self._said_at = condition, now


async def patch(client: Client, node: str, condition: Condition, clock: Callable[[], float]) -> None:
    """Tell the cluster. `clock`: seconds since 1970. Raises KubeError."""
    now = datetime.fromtimestamp(clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = {
        "type": CONDITION,
        "status": str(condition.unavailable),
        "reason": condition.reason,
        "message": condition.text,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    await client.patch(NODES, node, {"status": {"conditions": [said]}}, subresource="status")
