"""Metrics of network policy as Prometheus reads them: names of Weave Net 2.8 first. Source: NPC spec §1.5, §7."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from npc.base import UNKNOWN
from npc.controller import Controller
from npc.node import Node
from npc.plan import Direction, ElementSet

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """`ages` gives the seconds since the API server said anything of each resource."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._seconds = Histogram(
            "weavenpc_sync_seconds",
            "Time from a change to its rules in the kernel.",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def observe(self, seconds: float, full: bool) -> None:
        """A commit took so long."""
        self._seconds.labels("full" if full else "incremental").observe(seconds)

    def follow(self, controller: Controller, node: Node, ages: Callable[[], Mapping[str, float]]) -> None:
        """Show the figures of these."""
        self._registry.register(_Figures(controller, node, ages))

    def text(self) -> bytes:
        """All of them now."""
        return generate_latest(self._registry)


class _Figures(Collector):
    def __init__(self, controller: Controller, node: Node, ages: Callable[[], Mapping[str, float]]) -> None:
        self._controller = controller
        self._node = node
        self._ages = ages

    def collect(self) -> Iterator[Metric]:
        controller, figures = self._controller, self._controller.figures
        blocked = CounterMetricFamily(
            "weavenpc_blocked_connections",
            "Connection attempts blocked by policy controller.",
            labels=["protocol", "dport"],
        )
        for (protocol, port), count in self._node.drops.blocked.items():
            blocked.add_metric([protocol, port], count)
        yield blocked
        # This name has no ending that a counter has today; dashboards know it as it is.
        errors = Metric("weavenpc_policy_enforcement_errors", "Number of policy enforcement errors.", "unknown")
        failed = figures.handler_errors + sum(figures.failures.values())
        errors.add_sample("weavenpc_policy_enforcement_errors", {}, failed)
        yield errors
        yield self._drops()
        failures = CounterMetricFamily("weavenpc_sync_failures", "Commits that failed, by errno.", labels=["reason"])
        for reason, count in figures.failures.items():
            failures.add_metric([reason], count)
        yield failures
        yield self._objects()
        ages = GaugeMetricFamily(
            "weavenpc_watch_age_seconds", "Seconds since the API server said anything.", labels=["resource"]
        )
        for resource, seconds in self._ages().items():
            ages.add_metric([resource], seconds)
        yield ages
        ready = float(controller.ready)
        yield GaugeMetricFamily("weavenpc_ready", "Whether policy is in force as it should be.", value=ready)
        degraded = GaugeMetricFamily("weavenpc_degraded", "What is wrong with enforcement.", labels=["reason"])
        for reason in controller.degraded:
            degraded.add_metric([reason], 1)
        yield degraded
        yield CounterMetricFamily(
            "weavenpc_flows_cut", "Connections ended since policy no longer allows them.", value=figures.flows_cut
        )
        yield CounterMetricFamily("weavenpc_repairs", "Times that foreign changes were undone.", value=figures.repairs)

    def _drops(self) -> Metric:
        family = CounterMetricFamily(
            "weavenpc_drops", "Packets dropped by policy.", labels=["direction", "namespace", "policies"]
        )
        for name, (packets, _octets) in self._controller.table.counters().items():
            policies = self._controller.planner.policies_of(name)
            if name == UNKNOWN:
                family.add_metric([Direction.INGRESS.name.lower(), "", UNKNOWN], packets)
            elif policies:
                direction = Direction(name[1]).name.lower()
                labels = [direction, policies[0][0], ",".join("/".join(key) for key in policies)]
                family.add_metric(labels, packets)
        return family

    def _objects(self) -> Metric:
        controller, plan = self._controller, self._controller.planner.plan
        model = controller.model
        sets = plan.sets.values()
        elements = sum(len(one.elements if isinstance(one, ElementSet) else one.ranges) for one in sets)
        isolated = {key for led in plan.maps.values() for key in led.chains}
        family = GaugeMetricFamily("weavenpc_objects", "What is known and what is in the kernel.", labels=["kind"])
        for kind, count in (
            ("pods", len(model.pods)),
            ("namespaces", len(model.namespaces)),
            ("policies", len(model.policies)),
            ("local_isolated_addresses", len(isolated)),
            ("sets", len(plan.sets)),
            ("elements", elements),
            ("chains", len(plan.chains)),
        ):
            family.add_metric([kind], count)
        return family
