"""What Weave Net 2.8 left in iptables and ipsets: its chains, the rules that jump there, and those about its bridge.

2.8 wrote by iptables, so into nftables' compatible tables or into legacy ones, as the host's iptables was then; this
looks into both. Chains of ours, in tables of our own, are not concerned. Source: CLI spec §11, data plane spec §9.
"""

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise

from host.errors import HostError
from host.forward import LEGACY_TABLES, MARK, legacy_iptables, quoted, run_iptables, search_path
from nft import readback
from nft.ruleset import Family, Transaction

_TABLES = ("mangle", "nat", "filter")
_CONTROL_PORT = "Block non-local access to Weave Net control port"
# What 2.8 refuses and allows to Docker's containers: the mesh's ports and names.
_DOCKER_PORTS = (53, 6783, 6784)
_DOCKER_WORDS = tuple(map(str, _DOCKER_PORTS))
_OLD = re.compile(r"WEAVE(-.*)?")
# What leaves marked by 2.8 and not encrypted is dropped.
_UNENCRYPTED = ["-A", "OUTPUT", "!", "-p", "esp", "-m", "policy", "--dir", "out", "--pol", "none", "-m", "mark"]
_UNENCRYPTED += ["--mark", "0x20000/0x20000", "-j", "DROP"]
_UNENCRYPTED_SHAPE = ("meta", "cmp", "match", "meta", "bitwise", "cmp", "counter", "immediate")
_ENCRYPTION = "WEAVE-IPSEC-IN"
_OLD_SETS = re.compile(r"weave-.*|weaver-no-masq-local")


def old_chains() -> list[str]:
    """2.8's chains that are there, as `table chain`. Raises HostError, NftError."""
    found = [f"{table} {chain}" for table in _TABLES for chain in readback.chains(table, Family.IP)]
    for program, table in _legacy_tables():
        lines = map(str.split, run_iptables(program, "-w", "5", "-t", table, "-S").splitlines())
        found += [f"{table} {words[1]}" for words in lines if words[0] == "-N"]
    return [one for one in found if _OLD.fullmatch(one.partition(" ")[2])]


def remove_old(bridge: str) -> list[str]:
    """Remove all of it; what was removed. Raises HostError, NftError."""
    removed = [f"chain ip {table} {chain}" for table in _TABLES for chain in _remove_native(table, bridge)]
    for program, table in _legacy_tables():
        removed += [f"chain {table} {chain} (legacy)" for chain in _remove_legacy(program, table, bridge)]
    return removed + _remove_sets()


def _legacy_tables() -> Iterator[tuple[str, str]]:
    """The legacy tables that are in use, each with the program for them."""
    program = legacy_iptables()
    if program is not None and LEGACY_TABLES.exists():
        there = LEGACY_TABLES.read_text().split()
        yield from ((program, table) for table in _TABLES if table in there)


def pass_joined(bridge: str) -> None:
    """What leaves by our bridge keeps its sender, whatever Docker's rules say of its bridge. Idempotent.

    In the chain that a Docker of this host writes, with the program that it uses: an accept in a table of ours would
    not keep that chain from translating. Where that program is missing, nobody translates. `remove_old` takes the rule
    away. Raises HostError.
    """
    program = shutil.which("iptables", path=search_path())
    if program is None:
        return
    rule = ("POSTROUTING", "-o", bridge, "-j", "ACCEPT")
    if ["-A", *rule] not in map(shlex.split, run_iptables(program, "-w", "5", "-t", "nat", "-S", rule[0]).splitlines()):
        run_iptables(program, "-w", "5", "-t", "nat", "-I", *rule)


def _remove_native(table: str, bridge: str) -> list[str]:
    chains = readback.chains(table, Family.IP)
    old = [chain for chain in chains if _OLD.fullmatch(chain)]
    rules = [rule for chain in chains if chain not in old for rule in readback.rules(table, chain, Family.IP)]
    encrypted = _ENCRYPTION in old
    stale = [rule for rule in rules if _is_old(rule, bridge) or (encrypted and _drops_unencrypted(rule))]
    with Transaction(table, Family.IP) as change:
        for rule in stale:
            change.delete_rule(rule.chain, rule.handle)
        for chain in old:
            change.flush_chain(chain)
        for chain in old:
            change.delete_chain(chain)
    return old + [f"{rule.chain}, a rule" for rule in stale]


def _drops_unencrypted(rule: readback.Rule) -> bool:
    return (rule.chain, rule.verdict, rule.expressions) == ("OUTPUT", "drop", _UNENCRYPTED_SHAPE)


def _is_old(rule: readback.Rule, bridge: str) -> bool:
    """Whether a rule of a foreign chain jumps to one of 2.8's chains, or is one of those that 2.8 itself puts there."""
    enters, leaves = f"out {bridge}", f"in {bridge}"
    if rule.comment.startswith(MARK):
        return False
    if _OLD.fullmatch(rule.verdict) or rule.comment == _CONTROL_PORT:
        return True
    if rule.chain == "POSTROUTING":
        return (rule.interfaces, rule.verdict) == ((enters,), "accept")
    if rule.chain == "INPUT":
        return rule.port in _DOCKER_PORTS and rule.interfaces == ("in docker0",)
    if rule.chain != "FORWARD":
        return False
    if rule.interfaces == (enters,):
        return rule.verdict != "accept" or "match" in rule.expressions or "ct" in rule.expressions
    return rule.interfaces in ((leaves, enters), (leaves, f"not {enters}"))


def _remove_legacy(program: str, table: str, bridge: str) -> list[str]:
    lines = [shlex.split(line) for line in run_iptables(program, "-w", "5", "-t", table, "-S").splitlines()]
    old = [words[1] for words in lines if words[0] == "-N" and _OLD.fullmatch(words[1])]
    stale = list(_stale(lines, old, bridge))
    if not old and not stale:
        return []
    script = [f"*{table}", *(quoted(["-D", *words[1:]]) for words in stale)]
    script += [f"-F {chain}" for chain in old] + [f"-X {chain}" for chain in old]
    run_iptables(f"{program}-restore", "-w", "5", "--noflush", stdin="\n".join([*script, "COMMIT", ""]))
    return old + [f"{words[1]}, a rule" for words in stale]


def _stale(lines: Sequence[Sequence[str]], old: Sequence[str], bridge: str) -> Iterator[Sequence[str]]:
    """The same by words, as `iptables -S` gives them."""
    forward, enters, leaves = ["-A", "FORWARD"], ["-o", bridge], ["-i", bridge]
    accept = ["-j", "ACCEPT"]
    known = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    log = ["-m", "state", "--state", "NEW", "-j", "NFLOG", "--nflog-group", "86"]
    theirs = (
        [*forward, *leaves, *enters, *accept],
        [*forward, *leaves, "!", *enters, *accept],
        [*forward, *enters, *known, *accept],
        [*forward, *enters, *log],
        [*forward, *enters, "-j", "DROP"],
        ["-A", "POSTROUTING", *enters, *accept],
        *([_UNENCRYPTED] if _ENCRYPTION in old else []),
    )
    for words in lines:
        if words[0] == "-A" and words[1] not in old:
            values = dict(pairwise(words))
            docker = words[1] == "INPUT" and values.get("-i") == "docker0" and values.get("--dport") in _DOCKER_WORDS
            if words in theirs or values.get("-j") in old or values.get("--comment") == _CONTROL_PORT or docker:
                yield words


def _remove_sets() -> list[str]:
    program = shutil.which("ipset", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return []
    names = [name for name in run_iptables(program, "list", "-n").split() if _OLD_SETS.fullmatch(name)]
    removed = []
    for name in names:
        try:
            run_iptables(program, "destroy", name)
            removed.append(f"ipset {name}")
        except HostError:
            # Still in a rule of somebody else's.
            continue
    return removed
