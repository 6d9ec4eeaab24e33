"""Network policy of a large cluster in the kernel: the whole table, one change at a time, an audit.

    python -m bench.npc_kernel              10,000 pods, 100 of them ours, 1,000 policies, 100 namespaces

In a network namespace of its own, which goes when it ends. From the object to the rules in the kernel: model, plan,
transaction. Beside it what Weave Net 2.8's controller takes for the same.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable
from statistics import median, quantiles

from bench import npc_objects
from bench.npc import resident
from bench.npc_changes import steps
from bench.npc_objects import NODE
from host.netns import inside
from lab.net import run
from npc import rules
from npc.kernel import Table
from npc.model import Model
from npc.objects import TRIM
from npc.planner import Planner


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("pods", 10_000), ("local", 100), ("policies", 1_000), ("namespaces", 100), ("changes", 300)):
        parser.add_argument(f"--{name}", type=int, default=count)
    wanted = parser.parse_args()
    name = f"bench-npc{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        inside(f"/run/netns/{name}", lambda: measure(wanted))
    finally:
        run("ip", "netns", "del", name)


def measure(wanted: argparse.Namespace) -> None:
    """All of it, in the namespace of the calling thread."""
    kept = {
        "Namespace": npc_objects.namespaces(wanted.namespaces),
        "NetworkPolicy": npc_objects.policies(wanted.policies, wanted.namespaces),
        "Pod": npc_objects.pods(wanted.pods, wanted.namespaces, wanted.local),
    }
    trimmed = {kind: [TRIM[kind](each) for each in documents] for kind, documents in kept.items()}
    table = Table()
    started = time.perf_counter()
    model = Model()
    for kind, documents in trimmed.items():
        for document in documents:
            model.apply(kind, document)
    planner = Planner(model, NODE)
    planner.update(model.take())
    planned = time.perf_counter()
    change = rules.whole(planner.plan)
    written = time.perf_counter()
    table.replace(planner.plan)
    loaded = time.perf_counter()
    print(f"{wanted.pods} pods ({wanted.local} here), {wanted.policies} policies, {wanted.namespaces} namespaces")
    size = sum(len(message.body) for message in change.messages)
    print(f"  model and plan {planned - started:.2f} s, encoding {written - planned:.2f} s, encoding and commit "
          f"{loaded - written:.2f} s of {len(change.messages)} messages, {size / 1e6:.1f} MB")  # fmt: skip
    print(f"  from the lists to the rules in force {loaded - started - (written - planned):.2f} s")
    started = time.perf_counter()
    assert table.audit(planner.plan) == []
    print(f"  an audit takes {time.perf_counter() - started:.2f} s; resident {resident():.0f} MB")
    # As the daemon does once the cluster is known.
    gc.collect()
    gc.freeze()
    measure_changes(table, model, planner, wanted)
    table.remove()


def measure_changes(table: Table, model: Model, planner: Planner, wanted: argparse.Namespace) -> None:
    """One change at a time, of each kind, until the kernel has it."""
    count = wanted.changes

    def one(step: Callable[[int], None], number: int) -> tuple[float, float, float]:
        began, processor = time.perf_counter(), time.process_time()
        step(number)
        change = planner.update(model.take())
        planned = time.perf_counter()
        if change:
            table.apply(change, planner.plan)
        over = time.perf_counter()
        return (over - began) * 1e3, (time.process_time() - processor) * 1e3, (over - planned) * 1e3

    print(f"{count} changes of each kind, milliseconds (median, p99): wall, CPU, of it encoding and commit")
    for name, step, known in steps(model, wanted):
        columns = list(zip(*(one(step, number) for number in range(count)), strict=True))
        shown = "   ".join(f"{median(column):6.2f} {quantiles(column, n=100)[-1]:6.2f}" for column in columns)
        print(f"  {name:20} {shown}   2.8: {known:.1f}, {known / median(columns[0]):.1f} times as much")
    assert table.audit(planner.plan) == []


if __name__ == "__main__":
    main()
