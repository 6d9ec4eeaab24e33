"""Network policy of a large cluster: the whole plan, one change at a time, and the memory it takes.

    python -m bench.npc                     10,000 pods, 100 of them ours, 1,000 policies, 100 namespaces
    python -m bench.npc --pods 1000         a smaller cluster: a change must not cost less for it

Changes are judged by processor time of this process. Beside them what Weave Net 2.8's controller takes for the same.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterable
from statistics import median, quantiles

from bench import npc_objects
from bench.npc_changes import steps
from bench.npc_objects import NODE
from npc.model import Model
from npc.objects import TRIM
from npc.planner import Planner


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--local", type=int, default=100)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--namespaces", type=int, default=100)
    parser.add_argument("--changes", type=int, default=1_000)
    wanted = parser.parse_args()
    before = resident()
    kept = {
        "Namespace": [TRIM["Namespace"](each) for each in npc_objects.namespaces(wanted.namespaces)],
        "NetworkPolicy": [
            TRIM["NetworkPolicy"](each) for each in npc_objects.policies(wanted.policies, wanted.namespaces)
        ],
        "Pod": [TRIM["Pod"](each) for each in npc_objects.pods(wanted.pods, wanted.namespaces, wanted.local)],
    }
    listed = resident()
    started, worked = time.perf_counter(), time.process_time()
    model = Model()
    for kind, documents in kept.items():
        for document in documents:
            model.apply(kind, document)
    modelled = time.perf_counter()
    planner = Planner(model, NODE)
    change = planner.update(model.take())
    planned, worked = time.perf_counter(), time.process_time() - worked
    gc.collect()
    plan = planner.plan
    elements = sum(len(each) for each in change.added.values())
    print(
        f"plan of {wanted.pods} pods ({wanted.local} here), {wanted.policies} policies, {wanted.namespaces} namespaces"
    )
    print(
        f"  {len(plan.chains)} chains, {len(plan.sets)} sets, {elements} elements, {change.size()} with rules and maps"
    )
    print(f"  model {modelled - started:.2f} s, plan {planned - modelled:.2f} s; CPU of both {worked:.2f} s")
    print(f"  resident {before:.0f} MB at first, {listed:.0f} MB with the objects, {resident():.0f} MB with all")
    measure_changes(model, planner, wanted)


def measure_changes(model: Model, planner: Planner, wanted: argparse.Namespace) -> None:
    """One change at a time, of each kind."""
    count = wanted.changes

    def one(step: Callable[[int], None], number: int) -> tuple[float, int]:
        started = time.process_time()
        step(number)
        size = planner.update(model.take()).size()
        return (time.process_time() - started) * 1000, size

    print(f"{count} changes of each kind, CPU milliseconds: median, p99, most; parts of the table; 2.8 beside it")
    for name, step, known in steps(model, wanted):
        report(name, [one(step, number) for number in range(count)], known)


def report(name: str, made: Iterable[tuple[float, int]], known: float) -> None:
    """One line about changes of a kind."""
    costs, sizes = zip(*made, strict=True)
    p99 = quantiles(costs, n=100)[-1]
    print(
        f"  {name:20} {median(costs):7.2f} {p99:7.2f} {max(costs):7.2f}   {median(sizes):6.0f} parts"
        f"   2.8: {known:.1f}, {known / median(costs):.0f} times as much"
    )


def resident() -> float:
    """Memory of this process, MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
