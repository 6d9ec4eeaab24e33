"""Metrics as Prometheus reads them, written from the report: names and help of Weave Net, then ours.

Source: CLI spec §7; Prometheus, "Exposition formats".
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dns.service import NameFigures
from weave_py.report import Document

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Name, help, and the figure of address allocation that it shows.
_IPAM = (
    ("weave_max_ips", "Size of IP address space used by allocator."),
    ("weave_ipam_unreachable_count", "Number of unreachable peers."),
    ("weave_ipam_unreachable_percentage", "Percentage of IP addresses owned  by unreachable peers."),
    ("weave_ipam_pending_allocates", "Number of pending allocates."),
    ("weave_ipam_pending_claims", "Number of pending claims."),
    ("weave_ipam_disputes", "Number of ranges that peers dispute; their free addresses are not given out."),
    ("weave_ipam_withheld_ips", "Number of addresses not given out since their range is disputed."),
    ("weave_ipam_orphans", "Number of owners of addresses that are not seen on this host."),
    ("weave_ipam_ring_entries", "Number of entries of the ring of address ranges."),
)


def text(report: Callable[[], Document], addresses: Mapping[str, float] | None, names: NameFigures | None) -> bytes:
    """All metrics now. `addresses` and `names` are figures of services; None where one is off."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Router(report, addresses, names))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return generate_latest(registry)


class _Router(Collector):
    """The router's own part."""

    def __init__(
        self,
        report: Callable[[], Document],
        addresses: Mapping[str, float] | None,
        names: NameFigures | None,
    ) -> None:
        self._report = report
        self._addresses = addresses
        self._names = names

    def collect(self) -> Iterator[Metric]:
        report = self._report()
        router = report["Router"]
        yield _connections(router)
        yield CounterMetricFamily(
            "weave_connection_terminations",
            "Number of peer-to-peer connections terminated.",
            value=router["TerminationCount"],
        )
        if "CNI" in report:
            labels = ["verb", "outcome"]
            calls = CounterMetricFamily("weave_cni_calls", "Number of calls of the CNI plugin.", labels=labels)
            for verb, outcomes in report["CNI"]["Calls"].items():
                for outcome, count in outcomes.items():
                    calls.add_metric([verb, outcome], count)
            yield calls
        yield GaugeMetricFamily(
            "weave_flows", "Number of forwarding entries in use.", value=len(router.get("MACs") or ())
        )
        if self._addresses is not None:
            ips = GaugeMetricFamily("weave_ips", "Number of IP addresses.", labels=["state"])
            ips.add_metric(["local-used"], self._addresses["weave_ips"])
            yield ips
            for name, help_ in _IPAM:
                if name in self._addresses:
                    yield GaugeMetricFamily(name, help_, value=self._addresses[name])
        if self._names is not None:
            yield from _names(self._names)
        yield from _traffic(router)
        yield from _health(report)


def _connections(router: Document) -> Metric:
    """Both values of `encryption` for each pair of state and type that is there; the other is 0."""
    counts: Counter[tuple[str, str, str]] = Counter()
    pairs = set()
    for row in router["Connections"] or ():
        attrs = row["Attrs"] or {}
        state, kind = row["State"], str(attrs.get("name", "unknown"))
        pairs.add((state, kind))
        counts[state, kind, "yes" if attrs.get("encrypted") else ""] += 1
    family = GaugeMetricFamily(
        "weave_connections", "Number of peer-to-peer connections.", labels=["state", "type", "encryption"]
    )
    for state, kind in sorted(pairs):
        for encryption in ("", "yes"):
            family.add_metric([state, kind, encryption], counts[state, kind, encryption])
    return family


def _health(report: Document) -> Iterator[Metric]:
    """Peers that hold something else than we do, for longer than a change travels; and whether our state is whole."""
    if report.get("Agreement"):
        differing = Counter(
            difference["Subject"]
            for peer in report["Agreement"]["Peers"]
            for difference in peer["Differs"]
            if difference["Lasting"]
        )
        family = GaugeMetricFamily(
            "weave_differing_peers", "Number of peers that hold another topology, ring or names.", labels=["subject"]
        )
        for row in report["Agreement"]["Subjects"]:
            family.add_metric([row["Subject"]], differing[row["Subject"]])
        yield family
    if report.get("State"):
        lost = report["State"]["Lost"] is not None
        yield GaugeMetricFamily(
            "weave_state_lost", "1 until what a damaged state file held is known again.", value=lost
        )


def _names(figures: NameFigures) -> Iterator[Metric]:
    """What is registered here, what the server did, and how long upstream servers took."""
    yield GaugeMetricFamily("weave_dns_entries", "Number of DNS entries.", value=figures.own)
    events = CounterMetricFamily("weave_dns_events", "What the DNS server did, by kind.", labels=["event"])
    for event, count in figures.counts.items():
        events.add_metric([event], count)
    yield events
    yield GaugeMetricFamily(
        "weave_dns_upstream_pending", "Questions that upstream DNS servers are being asked.", value=figures.pending
    )
    total, buckets = 0, []
    for bound, count in figures.latency:
        total += count
        buckets.append(("+Inf" if bound == math.inf else str(bound), float(total)))
    yield HistogramMetricFamily(
        "weave_dns_upstream_seconds",
        "How long upstream DNS servers took to answer, the next one's turn included.",
        buckets=buckets,
        sum_value=figures.latency_sum,
    )


def _traffic(router: Document) -> Iterator[Metric]:
    """Per connection what went each way, and what became of frames."""
    volume = CounterMetricFamily(
        "weave_connection_bytes",
        "Bytes of a connection; plane is data or control.",
        labels=["peer", "direction", "plane"],
    )
    packets = CounterMetricFamily(
        "weave_connection_packets", "Datagrams of a connection.", labels=["peer", "direction"]
    )
    for row in router["Connections"] or ():
        counters = row.get("Counters")
        if not counters:
            continue
        for direction in ("In", "Out"):
            labels = [counters["Peer"], direction.lower()]
            volume.add_metric([*labels, "data"], counters[f"Bytes{direction}"])
            volume.add_metric([*labels, "control"], counters[f"ControlBytes{direction}"])
            packets.add_metric(labels, counters[f"Packets{direction}"])
    yield volume
    yield packets
    yield from _fastdp(router.get("Fastdp") or {})
    frames = CounterMetricFamily("weave_frames", "What became of frames of the overlay.", labels=["event"])
    for event, count in (router.get("Frames") or {}).items():
        frames.add_metric([event], count)
    yield frames
    datagrams = CounterMetricFamily(
        "weave_sleeve_events", "What sleeve counts that belongs to no connection.", labels=["event"]
    )
    for event, count in ((router.get("Sleeve") or {}).get("Counts") or {}).items():
        datagrams.add_metric([event], count)
    yield datagrams


def _fastdp(fastdp: Document) -> Iterator[Metric]:
    """What the kernel's programs counted, and links that changed to sleeve or back; nothing where there are none."""
    if not fastdp:
        return
    events = CounterMetricFamily("weave_fastdp_events", "What fastdp did with frames.", labels=["event"])
    for event, count in fastdp["Counts"].items():
        if event not in fastdp["Drops"]:
            events.add_metric([event], count)
    yield events
    drops = CounterMetricFamily("weave_fastdp_drops", "Frames that the kernel's data path dropped.", labels=["reason"])
    for reason, count in fastdp["Drops"].items():
        drops.add_metric([reason], count)
    yield drops
    changes = CounterMetricFamily(
        "weave_fastdp_changes", "Times that a link left fastdp or came back.", labels=["peer"]
    )
    for link in fastdp["Links"] or ():
        changes.add_metric([link["Peer"]], link["Changes"])
    yield changes
