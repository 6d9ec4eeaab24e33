"""What somebody else's FORWARD chain must let pass: where Docker or ufw drop, our own accept is too little.

Our accepts go first into `ip filter FORWARD`: where that is an nftables chain (iptables-nft) by netlink, written so
that iptables can still show and change the table; where it is a legacy table by `iptables-legacy`, which alone can do
that. Each carries a comment, by which it is found again. Nothing else of a foreign chain is touched, and no chain is
made. Acts in the namespace of the calling thread. Source: CLI spec §11.
"""

import errno
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from host.errors import HostError
from nft import readback
from nft.expressions import (
    Expression,
    accept,
    counter,
    in_interface,
    ip_destination,
    iptables_known_connection,
    out_interface,
)
from nft.ruleset import Family, Hook, Policy, Transaction
from nft.wire import NftError

TABLE, CHAIN = "filter", "FORWARD"
MARK = "weave: "
LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")
_ATTEMPTS = 3
_TIMEOUT = 20.0
_LOCK_WAIT = "5"
_SBIN = "/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Accept:
    """Packets that pass. `within`: between ports of the bridge; `known`: of a connection that was seen both ways."""

    why: str
    bridge: str
    enters: bool = False
    leaves: bool = False
    within: bool = False
    destination: str = ""
    known: bool = False

    @property
    def comment(self) -> str:
        """By which the rule is known."""
        return MARK + self.why

    def expressions(self) -> tuple[Expression, ...]:
        """As iptables-nft writes it, so that it can read it."""
        row = []
        if self.leaves or self.within:
            row.append(in_interface(self.bridge))
        if self.enters or self.leaves or self.within:
            row.append(out_interface(self.bridge, negate=self.leaves))
        if self.destination:
            row.append(ip_destination(self.destination, bare=True))
        if self.known:
            row.append(iptables_known_connection())
        return (*row, counter(), accept())

    def words(self) -> list[str]:
        """As the arguments of iptables."""
        row = []
        if self.leaves or self.within:
            row += ["-i", self.bridge]
        if self.enters or self.leaves or self.within:
            row += [*(["!"] if self.leaves else []), "-o", self.bridge]
        if self.destination:
            row += ["-d", self.destination]
        if self.known:
            row += ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        return [*row, "-m", "comment", "--comment", self.comment, "-j", "ACCEPT"]


def ensure(accepts: Sequence[Accept]) -> bool:
    """The accepts, in this order, at the top of each foreign FORWARD chain; whether any had to be written.

    They stay where they are as long as they are all there in order. Raises HostError.
    """
    wanted = [one.comment for one in accepts]
    written = False
    if _native_chain() and _native_comments() != wanted:
        _write_native(accepts)
        written = True
    program = _legacy_program()
    if program is not None and [_comment(words) for words in _legacy_ours(program)] != wanted:
        _write_legacy(program, accepts)
        written = True
    return written


def obstacles(bridge: str, own_tables: Sequence[str]) -> list[str]:
    """Other chains that drop what containers and this host send each other, a line each with the remedy."""
    found = []
    if _legacy_in_use() and _legacy_program() is None:
        found.append(
            "this host filters with legacy iptables and has no iptables-legacy: install it, or let the FORWARD chain "
            f"accept what enters and leaves by {bridge}"
        )
    for chain in readback.base_chains(Hook.FORWARD):
        ours = chain.table in own_tables or (chain.family, chain.table, chain.name) == (Family.IP, TABLE, CHAIN)
        if chain.policy is Policy.DROP and chain.family is not Family.IP6 and not ours:
            name = f"{chain.family.name.lower()} {chain.table} {chain.name}"
            found.append(
                f"chain {name} drops what it does not know: add to it 'iifname \"{bridge}\" accept' "
                f"and 'oifname \"{bridge}\" accept'"
            )
    return found


# --- where the chain is one of nftables ---


def _native_chain() -> bool:
    return CHAIN in readback.chains(TABLE, Family.IP)


def _native_ours() -> list[readback.Rule]:
    return [rule for rule in readback.rules(TABLE, CHAIN, Family.IP) if rule.comment.startswith(MARK)]


def _native_comments() -> list[str]:
    return [rule.comment for rule in _native_ours()]


def _write_native(accepts: Sequence[Accept]) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            with Transaction(TABLE, Family.IP) as change:
                for rule in _native_ours():
                    change.delete_rule(CHAIN, rule.handle)
                for one in reversed(accepts):
                    change.add_rule(CHAIN, *one.expressions(), comment=one.comment, first=True)
            return
        except NftError as error:
            # Somebody rewrote the chain between our look and our change, or took it away.
            if error.errno != errno.ENOENT or attempt == _ATTEMPTS - 1:
                raise HostError(str(error)) from error
            if not _native_chain():
                return


# --- where it is a legacy table ---


def _legacy_in_use() -> bool:
    """Whether the legacy table exists: to ask iptables itself would make it."""
    try:
        return TABLE in LEGACY_TABLES.read_text().split()
    except OSError:
        return False


def _legacy_program() -> str | None:
    """The program for legacy tables, where there is one and a table to change."""
    return legacy_iptables() if _legacy_in_use() else None


def search_path() -> str:
    """Where programs of the host are looked for: a service's PATH may lack sbin."""
    return os.pathsep.join((os.environ.get("PATH", ""), _SBIN))


def legacy_iptables() -> str | None:
    """`iptables-legacy`, or an `iptables` that is of that kind."""
    path = search_path()
    found = shutil.which("iptables-legacy", path=path)
    plain = shutil.which("iptables", path=path)
    if found is None and plain is not None and "nf_tables" not in run_iptables(plain, "--version"):
        return plain
    return found


def run_iptables(program: str, *words: str, stdin: str = "") -> str:
    """What the program prints. Raises HostError with what it says of its failure."""
    try:
        done = subprocess.run(
            (program, *words), input=stdin, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"unable to run {program}: {error}") from error
    if done.returncode:
        raise HostError(f"{' '.join((program, *words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _legacy_ours(program: str) -> list[list[str]]:
    """Our rules of the chain, as words."""
    lines = run_iptables(program, "-w", _LOCK_WAIT, "-S", CHAIN).splitlines()
    return [words for words in map(shlex.split, lines) if _comment(words).startswith(MARK)]


def _comment(words: Sequence[str]) -> str:
    return words[words.index("--comment") + 1] if "--comment" in words else ""


def _write_legacy(program: str, accepts: Sequence[Accept]) -> None:
    wanted = [quoted(["-I", CHAIN, str(place), *one.words()]) for place, one in enumerate(accepts, 1)]
    for attempt in range(_ATTEMPTS):
        stale = [quoted(["-D", *words[1:]]) for words in _legacy_ours(program)]
        script = "\n".join([f"*{TABLE}", *stale, *wanted, "COMMIT", ""])
        try:
            run_iptables(f"{program}-restore", "-w", _LOCK_WAIT, "--noflush", stdin=script)
            return
        except HostError:
            # Here too somebody may have been between.
            if attempt == _ATTEMPTS - 1:
                raise


def quoted(words: Sequence[str]) -> str:
    """A line for iptables-restore, which knows double quotes only."""
    return " ".join(f'"{word}"' if " " in word else word for word in words)
