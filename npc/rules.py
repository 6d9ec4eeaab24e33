"""A plan, or a change of one, as a transaction of nftables.

Pure: values in, messages out. What the kernel refused by itself can be left out (`without`): a policy chain of that
name keeps no rule, so its class chain still drops, and a rule that looks into a set of that name goes.
Source: NPC spec §4.3, §4.4.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from nft import expressions as nf
from nft.elements import Key, KeyType, Member
from nft.ruleset import Hook, Transaction
from npc import plan
from npc.plan import Change, Plan, PortRange, RangeSet, Rule

_COMMENT = "network policy of weave; rewritten by weave-npc"
_KEYS: dict[str, Key] = {
    "ipv4_addr": Key.IPV4,
    "ipv6_addr": Key.IPV6,
    "inet_proto": Key.PROTOCOL,
    "inet_service": Key.PORT,
}
_FIELDS = {
    plan.Field.SOURCE4: nf.Field.SOURCE4,
    plan.Field.SOURCE6: nf.Field.SOURCE6,
    plan.Field.DESTINATION4: nf.Field.DESTINATION4,
    plan.Field.DESTINATION6: nf.Field.DESTINATION6,
    plan.Field.PROTOCOL: nf.Field.PROTOCOL,
    plan.Field.PORT: nf.Field.DESTINATION_PORT,
}
_HOOKS = {
    plan.Hook.PREROUTING: Hook.PREROUTING,
    plan.Hook.FORWARD: Hook.FORWARD,
    plan.Hook.POSTROUTING: Hook.POSTROUTING,
}
_PORTS: KeyType = (Key.PROTOCOL, Key.PORT)
_PORT_FIELDS = (nf.Field.PROTOCOL, nf.Field.DESTINATION_PORT)
_ICMPV6 = 58
_LAST_PORT = 65535

Figures = Mapping[str, tuple[int, int]]


def whole(wanted: Plan, counted: Figures | None = None, without: Collection[str] = ()) -> Transaction:
    """The table as this plan has it, whatever is there now. Counters go on from packets and bytes of `counted`."""
    figures = counted or {}
    change = Transaction(plan.TABLE)
    change.replace_table(_COMMENT)
    for name in wanted.counters:
        change.add_counter(name, *figures.get(name, (0, 0)))
    for one in wanted.sets.values():
        if one.name not in without:
            _add_set(change, one)
            if not isinstance(one, RangeSet):
                change.add_members(one.name, _key(one.key), map(Member, one.elements))
    for name in wanted.maps:
        change.add_verdict_map(name, _key(wanted.maps[name].key))
    for chain in wanted.chains.values():
        _add_chain(change, chain.name, chain.base)
    for chain in wanted.chains.values():
        if chain.name not in without:
            _add_rules(change, chain.name, chain.rules, without)
    for led in wanted.maps.values():
        change.add_members(led.name, _key(led.key), _leading(led.chains))
    return change


def delta(wanted: Change, after: Plan) -> Transaction:
    """The change, on a table that is as it was before it; `after` is the plan behind it."""
    change = Transaction(plan.TABLE)
    for name in wanted.new_counters:
        change.add_counter(name)
    for one in wanted.new_sets.values():
        _add_set(change, one)
    for led in wanted.new_maps.values():
        change.add_verdict_map(led.name, _key(led.key))
    for name, base in wanted.new_chains.items():
        _add_chain(change, name, base)
    for name, elements in wanted.added.items():
        change.add_members(name, _key(after.sets[name].key), map(Member, elements))
    for name, rules in wanted.rules.items():
        if name not in wanted.new_chains:
            change.flush_chain(name)
        _add_rules(change, name, rules)
    for name, elements in wanted.unmapped.items():
        change.delete_members(name, _key(after.maps[name].key), map(Member, elements))
    for name, chains in wanted.mapped.items():
        change.add_members(name, _key(after.maps[name].key), _leading(chains))
    for name, elements in wanted.removed.items():
        change.delete_members(name, _key(after.sets[name].key), map(Member, elements))
    for name in wanted.gone_chains:
        change.flush_chain(name)
    for name in wanted.gone_chains:
        change.delete_chain(name)
    for name in wanted.gone_maps | wanted.gone_sets:
        change.delete_set(name)
    for name in wanted.gone_counters:
        change.delete_counter(name)
    return change


def _leading(chains: Mapping[bytes, str]) -> Iterator[Member]:
    return (Member(key, verdict=nf.to(chain)) for key, chain in chains.items())


def _key(kind: plan.Key) -> KeyType:
    row = tuple(_KEYS[name] for name in kind.value)
    return row if len(row) > 1 else row[0]


def _add_set(change: Transaction, one: plan.Set) -> None:
    interval = isinstance(one, RangeSet)
    change.add_set(one.name, _key(one.key), interval=interval, comment=one.comment)
    if isinstance(one, RangeSet):
        ranges = (Member(first, last) for first, last in one.ranges)
        change.add_members(one.name, _key(one.key), ranges, interval=True)


def _add_chain(change: Transaction, name: str, base: plan.Base | None) -> None:
    if base is None:
        change.add_chain(name)
    else:
        change.add_chain(name, _HOOKS[base.hook], base.priority)


# --- rules ---


def _add_rules(change: Transaction, chain: str, rules: Iterable[Rule], without: Collection[str] = ()) -> None:
    for rule in rules:
        if not any(isinstance(match, plan.InSet) and match.name in without for match in rule.matches):
            row = [*(_match(change, one) for one in rule.matches), *(_action(one) for one in rule.actions)]
            change.add_rule(chain, *row, comment=rule.comment)


def _match(change: Transaction, match: plan.Match) -> nf.Expression:
    match match:
        case plan.Established():
            return nf.state(nf.State.ESTABLISHED | nf.State.RELATED)
        case plan.FromOwnNode():
            return nf.from_this_host()
        case plan.InInterface(name):
            return nf.in_interface(name)
        case plan.Icmp6Types(ranges):
            types = [Member(bytes((first,)), bytes((last,))) for first, last in ranges]
            unnamed = change.add_anonymous(Key.ICMPV6_TYPE, types, interval=True)
            return nf.protocol(_ICMPV6) + nf.within((nf.Field.ICMPV6_TYPE,), unnamed)
        case plan.ToNetwork(network):
            return nf.ip_destination(network)
        case plan.InSet(fields, name, negate):
            return nf.within([_FIELDS[field] for field in fields], name, negate=negate)
        case plan.PortsIn(ranges):
            return _ports(change, ranges)


def _ports(change: Transaction, ranges: tuple[PortRange, ...]) -> nf.Expression:
    """A single port or protocol without a set; several ports in a hash, ranges in an interval set."""
    first = ranges[0]
    if len(ranges) == 1 and (first.first, first.last) == (0, _LAST_PORT):
        return nf.protocol(first.protocol)
    interval = any(one.first != one.last for one in ranges)
    members = [Member(_port_key(one, one.first), _port_key(one, one.last)) for one in ranges]
    if len(ranges) == 1 and not interval:
        return nf.protocol(first.protocol) + nf.port(first.first)
    return nf.within(_PORT_FIELDS, change.add_anonymous(_PORTS, members, interval=interval))


def _port_key(one: PortRange, port: int) -> bytes:
    return plan.element(bytes((one.protocol,)), port.to_bytes(2, "big"))


def _action(action: plan.Action) -> nf.Expression:
    match action:
        case plan.Accept():
            return nf.accept()
        case plan.Drop():
            return nf.drop()
        case plan.Jump(chain):
            return nf.jump(chain)
        case plan.Vmap(field, name):
            return nf.verdict_by((_FIELDS[field],), name)
        case plan.Count(counter):
            return nf.count(counter)
        case plan.Log(prefix, group, snaplen, rate, burst):
            return nf.limit(rate, burst) + nf.log(prefix, group, snaplen)
