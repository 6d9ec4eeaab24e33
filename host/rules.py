"""The packet rules of this host, as data: what they are, how they are written, and how they come back if flushed.

They live in table `inet weave`, a base chain for each hook that needs one: a chain of type nat makes the kernel track
every connection of the host, so there is none before something is exposed. An accept in our table is final for our
table only; what a foreign FORWARD chain must let pass is `host.forward`'s. Rules are known by their comments. Acts in
the namespace of the calling thread. Source: CLI spec §11, data plane spec §9, §10.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network, collapse_addresses

from host import forward
from host.errors import HostError
from host.forward import Accept
from nft import readback
from nft.elements import Key
from nft.expressions import (
    Expression,
    Protocol,
    accept,
    destination_in,
    destination_port,
    drop,
    from_this_host,
    in_interface,
    ip_destination,
    ip_source,
    leave,
    masquerade,
    out_interface,
)
from nft.ruleset import ChainType, Hook, Transaction
from nft.wire import NftError

TABLE = "weave"
POLICY_TABLE = "weave_npc"
# With the connections that it ended.
POLICY_TABLES = (POLICY_TABLE, "weave_npc_ended")
INPUT, FORWARD, NAT = "input", "forward", "postrouting"
_HOOKS = {
    INPUT: (Hook.INPUT, 0, ChainType.FILTER),
    FORWARD: (Hook.FORWARD, 0, ChainType.FILTER),
    NAT: (Hook.POSTROUTING, 100, ChainType.NAT),
}
_LOCAL = "local"
_GROUPS = "224.0.0.0/4"
_LOOPBACK = "127.0.0.1"
_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of ours, known by its comment."""

    comment: str
    expressions: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class DockerBridge:
    """Docker's bridge: its containers reach neither the mesh's ports on its address, nor the overlay past us."""

    name: str
    address: str
    mesh_port: int


@dataclass(frozen=True, slots=True)
class Plan:
    """From what all rules follow. `exposed` maps an address of the bridge to whether its traffic is masqueraded.

    `dns_only` is an address of the bridge that serves names and is not exposed: containers reach nothing else there.
    `local`, with `no_masq_local`, are the networks whose addresses live on this host.
    """

    bridge: str
    control_port: int | None = None
    exposed: Mapping[IPv4Interface, bool] | None = None
    dns_only: IPv4Interface | None = None
    docker: DockerBridge | None = None
    expect_npc: bool = False
    no_masq_local: bool = False
    local: tuple[IPv4Network, ...] = ()

    def networks(self) -> tuple[IPv4Network, ...]:
        """What is exposed, in order, each once."""
        return tuple(dict.fromkeys(address.network for address in self.exposed or {}))

    def masqueraded(self) -> tuple[IPv4Network, ...]:
        """Of those, the ones with NAT."""
        return tuple(dict.fromkeys(address.network for address, nat in (self.exposed or {}).items() if nat))

    def quiet(self) -> IPv4Interface | None:
        """The address that serves names only; none once its network is exposed."""
        hidden = self.dns_only
        return None if hidden is None or any(map(hidden.network.subnet_of, self.networks())) else hidden


# --- what they are ---


def chains(plan: Plan) -> dict[str, tuple[Rule, ...]]:
    """The rules of every chain of ours."""
    return {INPUT: tuple(_input(plan)), FORWARD: tuple(_forward(plan)), NAT: tuple(_nat(plan))}


def accepts(plan: Plan) -> tuple[Accept, ...]:
    """What a foreign FORWARD chain must let pass; with network policy, all that its own table let pass."""
    bridge = plan.bridge
    if plan.expect_npc:
        inner = [Accept("what network policy let pass", bridge, enters=True)]
    else:
        inner = [Accept("between containers", bridge, within=True)]
        inner += [Accept(f"to {net}", bridge, enters=True, destination=str(net)) for net in plan.networks()]
    answers = Accept("answers to containers", bridge, enters=True, known=True)
    return (*inner, Accept("from containers", bridge, leaves=True), answers)


def _input(plan: Plan) -> Iterator[Rule]:
    if plan.control_port is not None:
        where = (ip_destination(_LOOPBACK), destination_port(Protocol.TCP, plan.control_port))
        yield Rule("control port, from elsewhere", (*where, from_this_host(negate=True), drop()))
    if plan.docker is not None:
        here = (in_interface(plan.docker.name), ip_destination(plan.docker.address))
        port = plan.docker.mesh_port
        for protocol, number in ((Protocol.TCP, port), (Protocol.UDP, port), (Protocol.UDP, port + 1)):
            comment = f"Docker containers, {protocol.name.lower()} {number}"
            yield Rule(comment, (*here, destination_port(protocol, number), drop()))
    quiet = plan.quiet()
    if quiet is None:
        return
    inside = in_interface(plan.bridge)
    for protocol in Protocol:
        names = (ip_destination(str(quiet.ip)), destination_port(protocol, _DNS_PORT))
        yield Rule(f"names, {protocol.name.lower()}", (inside, *names, accept()))
    for net in plan.networks():
        yield Rule(f"from {net}", (inside, ip_source(str(net)), accept()))
    yield Rule(f"{quiet.network} is not exposed", (inside, ip_source(str(quiet.network)), drop()))


def _forward(plan: Plan) -> Iterator[Rule]:
    enters, leaves = out_interface(plan.bridge), in_interface(plan.bridge)
    if plan.docker is not None and plan.docker.name != plan.bridge:
        yield Rule("Docker containers to the overlay", (in_interface(plan.docker.name), enters, drop()))
    quiet = plan.quiet()
    if quiet is None:
        return
    for net in plan.networks():
        yield Rule(f"from {net}", (leaves, ip_source(str(net)), accept()))
        yield Rule(f"to {net}", (enters, ip_destination(str(net)), accept()))
    net = quiet.network
    outside = (leaves, out_interface(plan.bridge, negate=True), ip_source(str(net)))
    inside = (enters, in_interface(plan.bridge, negate=True), ip_destination(str(net)))
    yield Rule(f"{net} is not exposed, out", (*outside, drop()))
    yield Rule(f"{net} is not exposed, in", (*inside, drop()))


def _nat(plan: Plan) -> Iterator[Rule]:
    networks = plan.masqueraded()
    if networks and plan.no_masq_local:
        yield Rule("to local containers", (destination_in(_LOCAL, 4), leave()))
    for net in map(str, networks):
        yield Rule(f"{net} multicast", (ip_source(net), ip_destination(_GROUPS), leave()))
        yield Rule(f"{net} in", (ip_destination(net), ip_source(net, negate=True), masquerade()))
        yield Rule(f"{net} out", (ip_source(net), ip_destination(net, negate=True), masquerade()))


# --- how they are written ---


def _write(plan: Plan) -> None:
    with Transaction(TABLE) as change:
        change.ensure_table()
        if plan.no_masq_local:
            change.add_set(_LOCAL, Key.IPV4, interval=True)
            change.flush_set(_LOCAL)
            local = map(str, collapse_addresses(plan.local))
            change.add_elements(_LOCAL, Key.IPV4, local, interval=True)
        for name, rules in chains(plan).items():
            hook, priority, kind = _HOOKS[name]
            change.add_chain(name, hook, priority, kind=kind)
            change.flush_chain(name)
            for rule in rules:
                change.add_rule(name, *rule.expressions, comment=rule.comment)
            if not rules:
                change.delete_chain(name)


def _missing(plan: Plan) -> tuple[str, ...]:
    """Chains of ours that are not as they were written."""
    wanted = {name: [rule.comment for rule in rules] for name, rules in chains(plan).items()}
    return tuple(
        f"chain inet {TABLE} {name}"
        for name, comments in wanted.items()
        if comments != [rule.comment for rule in readback.rules(TABLE, name)]
    )


class Rules:
    """The rules that are in force. Methods block for milliseconds and may be called from any thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan:
        """From what they follow now."""
        return self._plan

    def apply(self) -> None:
        """Write all of them, whatever is there. Raises HostError."""
        with self._lock:
            self._apply(self._plan)

    def change(self, **changes: object) -> None:
        """Follow a plan that differs in these fields. Raises HostError; the old plan stays in force then."""
        with self._lock:
            plan = replace(self._plan, **changes)  # type: ignore[arg-type]
            self._apply(plan)
            self._plan = plan

    def check(self) -> tuple[str, ...]:
        """Write again what somebody removed; what was missing. Raises HostError."""
        with self._lock:
            try:
                missing = _missing(self._plan)
                if missing:
                    _write(self._plan)
                if forward.ensure(accepts(self._plan)):
                    missing += (f"chain ip {forward.TABLE} {forward.CHAIN}",)
            except (NftError, OSError) as error:
                raise HostError(f"unable to look after the packet rules: {error}") from error
        return missing

    def obstacles(self) -> list[str]:
        """What else on this host stands in the way of traffic that should pass, a line each with the remedy.

        Raises HostError.
        """
        try:
            return forward.obstacles(self._plan.bridge, (TABLE, POLICY_TABLE))
        except NftError as error:
            raise HostError(str(error)) from error

    def _apply(self, plan: Plan) -> None:
        try:
            _write(plan)
            forward.ensure(accepts(plan))
        except (NftError, OSError) as error:
            raise HostError(f"unable to write the packet rules: {error}") from error


def remove() -> list[str]:
    """Take every rule of ours away, also from foreign chains; what was removed. Raises HostError."""
    removed = []
    try:
        for name in (TABLE, *POLICY_TABLES):
            if name in readback.tables():
                with Transaction(name) as change:
                    change.delete_table()
                removed.append(f"table inet {name}")
        if forward.ensure(()):
            removed.append(f"rules of {forward.TABLE} {forward.CHAIN}")
    except (NftError, OSError) as error:
        raise HostError(f"unable to remove the packet rules: {error}") from error
    return removed
