"""What `weave npc` asks of this node, as documents for programs. Source: NPC spec §7."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping
from ipaddress import ip_address

from kube.errors import KubeError
from nft.wire import NftError
from npc import flows
from npc.controller import Controller
from npc.drops import Drop
from npc.explain import explained, text
from npc.node import Node
from npc.objects import Pod, packed
from npc.plan import Direction
from npc.policy import Policy
from npc.question import UnknownError, questions
from npc.server import Answer, AskError, Request
from npc.simulate import Packet, run
from npc.verdict import Connection, Exemption, Verdict

_ADMIT = 5.0


class Answers:
    """Answers from the model, the figures and the kernel."""

    def __init__(self, controller: Controller, node: Node, log: logging.Logger, *, closed: bool) -> None:
        self._controller = controller
        self._node = node
        self._log = log
        self._closed = closed
        self._started = time.time()

    async def answer(self, request: Request) -> Answer:
        """One question."""
        if "wait" in request:
            return await self._wait(request)
        if "release" in request:
            await self._controller.release(*_identity(request))
            return {"ok": True}
        asked = request.get("ask")
        if asked == "status":
            return {"answer": self.status()}
        if asked == "pods":
            return {"answer": self.pods()}
        if asked == "policies":
            return {"answer": self.policies()}
        if asked == "drops":
            return {"answer": [drop.document() for drop in self._node.drops.last]}
        if asked == "explain":
            return {"answer": await self._explain(request)}
        if asked == "check":
            return {"answer": await self._controller.audit(repair=False)}
        if asked == "clear":
            return {"answer": await self._controller.clear()}
        raise AskError(f"no such question: {asked!r}")

    async def follow(self, request: Request) -> AsyncIterator[Answer]:
        """Drops as they happen."""
        if request["follow"] != "drops":
            raise AskError(f"nothing of this name to follow: {request['follow']!r}")
        queue: asyncio.Queue[Drop] = asyncio.Queue(1000)
        self._node.followers.add(queue)
        try:
            for drop in list(self._node.drops.last)[-10:]:
                yield {"answer": drop.document()}
            while True:
                yield {"answer": (await queue.get()).document()}
        finally:
            self._node.followers.discard(queue)

    # --- pods that start ---

    async def _wait(self, request: Request) -> Answer:
        """Whether a pod may start: its rules are in the kernel, or it is no pod, or it is to start all the same."""
        listed = request["wait"]
        addresses = [packed(text) for text in listed] if isinstance(listed, list) else [None]
        if None in addresses:
            raise AskError(f"not addresses: {listed!r}")
        namespace, name, uid, interface = _identity(request)
        try:
            async with asyncio.timeout(_ADMIT):
                if not name:
                    # A container that Kubernetes knows nothing of: no policy selects it.
                    return {"ok": True}
                wanted = [address for address in addresses if address is not None]
                known = await self._controller.admit(namespace, name, uid, wanted, interface)
                # A bridge that was made a moment ago may let packets past the rules.
                reason = await self._node.look_at_bridge() if known else f"nobody knows a pod {namespace}/{name}"
        except TimeoutError:
            missing = ", ".join(self._controller.awaited())
            reason = f"not all is known yet of: {missing}" if missing else "the rules are not in the kernel"
        except (KubeError, NftError, OSError) as error:
            self._log.error("unable to look after pod %s/%s, which starts: %s", namespace, name, error)
            reason = str(error)
        except Exception as error:
            # The outermost edge of a question: a fault of ours must not keep the reason from who asks.
            self._log.exception("unexpected error while pod %s/%s starts", namespace, name)
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            return {"ok": True}
        if self._closed:
            return {"ok": False, "reason": f"network policy of {namespace}/{name} is not in force: {reason}"}
        return {"ok": True, "unfiltered": reason}

    # --- what is ---

    def status(self) -> dict[str, object]:
        """Whether policy is in force, and why not."""
        controller, plan = self._controller, self._controller.planner.plan
        figures = controller.figures
        isolated = {key for led in plan.maps.values() for key in led.chains}
        return {
            "node": controller.node,
            "ready": controller.ready,
            "state": "ready" if controller.ready else "degraded" if controller.degraded else "starting",
            "degraded": dict(controller.degraded),
            "warnings": dict(controller.warnings),
            "awaited": controller.awaited(),
            "hook": self._node.options.hook.value,
            "bridge": self._node.options.bridge,
            "objects": {
                "pods": len(controller.model.pods),
                "namespaces": len(controller.model.namespaces),
                "policies": len(controller.model.policies),
                "isolatedAddresses": len(isolated),
                "sets": len(plan.sets),
                "chains": len(plan.chains),
            },
            "commits": figures.commits,
            "lastCommitSeconds": (figures.took or [0.0])[-1],
            "latencySeconds": _spread(figures.latency),
            "repairs": figures.repairs,
            "flowsCut": figures.flows_cut,
            "dropsPerMinute": round(self._node.per_minute, 1),
            "refused": dict(controller.table.refused),
            "policyErrors": {
                str(policy): policy.error for policy in controller.model.policies.values() if policy.error
            },
        }

    async def _explain(self, request: Request) -> list[dict[str, object]]:
        """For each family: what is modelled, what the kernel holds, what was dropped, which connections there are."""
        words = [request.get(field) for field in ("source", "destination", "port")]
        if not all(isinstance(word, str) for word in words):
            raise AskError("source, destination and port are texts")
        controller = self._controller
        source, destination, port = map(str, words)
        options = self._node.options
        try:
            asked = questions(controller.model, source, destination, port)
        except UnknownError as error:
            raise AskError(str(error)) from error
        found = []
        for question in asked:
            proposals = bool(request.get("whyNot"))
            explanation = explained(
                controller.model, question, multicast=options.multicast, closed=options.closed, proposals=proposals
            )
            connection = explanation.connection
            document: dict[str, object] = explanation.document()
            document["programmed"] = await self._programmed(connection, explanation.verdict)
            drops = self._node.drops.between(connection.source, connection.destination)
            document["drops"] = [str(drop) for drop in drops[-3:]]
            known = await asyncio.to_thread(flows.known, {connection.source, connection.destination})
            ends = (connection.source, connection.destination)
            document["flows"] = [_flow(one.flow) for one in known if (one.flow.source, one.flow.destination) == ends][
                :3
            ]
            document["text"] = text(document)
            found.append(document)
        return found

    async def _programmed(self, connection: Connection, verdict: Verdict) -> str:
        """What the rules that are loaded say of it, on this node alone."""
        local = [
            pod
            for pod in map(self._controller.model.owner, (connection.source, connection.destination))
            if pod is not None and pod.node == self._controller.node
        ]
        if not local:
            return "neither end is here: its own nodes decide"
        different = await self._controller.audit(repair=False)
        if not self._controller.synced or different:
            return f"the kernel does not hold what was meant: {'; '.join(different[:3]) or 'not written yet'}"
        if verdict.exemption is Exemption.OWN_NODE:
            return "between a node and its own pods no packet meets the rules"
        passes = run(self._controller.planner.plan, Packet(connection)).accepted
        if passes == verdict.allowed:
            return f"the rules that are loaded say the same: {'accept' if passes else 'drop'}"
        if passes:
            return "the rules here let it pass; the other end's node decides the rest"
        return "DISAGREES: the rules that are loaded drop it"

    def pods(self) -> list[dict[str, object]]:
        """The pods of this node, with what isolates them."""
        model = self._controller.model
        local = (pod for pod in model.pods.values() if pod.node == self._controller.node and not pod.finished)
        return [self._pod(pod) for pod in sorted(local, key=lambda pod: pod.key)]

    def _pod(self, pod: Pod) -> dict[str, object]:
        model = self._controller.model
        selecting = model.selecting(pod)
        return {
            "pod": str(pod),
            "addresses": [str(ip_address(address)) for address in model.addresses(pod.key)],
            "hostNetwork": pod.host_network,
            **{way.name.lower(): [str(one) for one in selecting if way in one.rules] for way in Direction},
        }

    def policies(self) -> list[dict[str, object]]:
        """All policies, with the pods of this node that each isolates."""
        model = self._controller.model
        targets: dict[tuple[str, str], list[str]] = {}
        for pod in model.pods.values():
            if pod.node == self._controller.node:
                for policy in model.selecting(pod):
                    targets.setdefault(policy.key, []).append(str(pod))
        dropped = self._dropped()
        return [
            self._policy(policy, targets.get(key, []), dropped.get(key, 0))
            for key, policy in sorted(model.policies.items())
        ]

    def _policy(self, policy: Policy, targets: list[str], dropped: int) -> dict[str, object]:
        return {
            "policy": str(policy),
            "directions": [way.name.lower() for way in Direction if way in policy.rules],
            "pods": sorted(targets),
            "dropped": dropped,
            "error": policy.error,
        }

    def _dropped(self) -> Mapping[tuple[str, str], int]:
        """Packets that the classes dropped to which a policy belongs."""
        totals: dict[tuple[str, str], int] = {}
        for name, (packets, _octets) in self._controller.table.counters().items():
            for key in self._controller.planner.policies_of(name):
                totals[key] = totals.get(key, 0) + packets
        return totals


def _spread(seconds: Collection[float]) -> dict[str, float]:
    """The middle and the worst but one in a hundred of some times."""
    row = sorted(seconds)
    return {"median": row[len(row) // 2], "p99": row[len(row) * 99 // 100]} if row else {}


def _flow(flow: flows.Flow) -> str:
    ends = f"{ip_address(flow.source)} -> {ip_address(flow.destination)}"
    return f"{ends}, protocol {flow.protocol}, port {flow.port}, is known to the kernel and passes"


def _identity(request: Request) -> tuple[str, str, str, str]:
    found = [request.get(field) or "" for field in ("namespace", "name", "uid", "interface")]
    if not all(isinstance(each, str) for each in found):
        raise AskError("namespace, name, uid and interface are texts")
    return found[0], found[1], found[2], found[3]
