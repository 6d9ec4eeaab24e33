"""What must survive a restart, as the rest of the router sees it: one SQLite file a host.

Committed before anybody is told. A host that comes from Weave Net begins with what that router's file holds; one whose
own file was damaged begins with the word that something is lost, until it is known again. `store_file` opens the file
and makes transactions, `store_schema` has the tables, `store_ipam` the ring and the addresses.
Source: CLI spec §4; DNS spec §14 (F6); Kubernetes and CNI spec §6.
"""

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mesh.names import PeerName, format_peer_name
from weave_py import weave_net
from weave_py.store_file import StateFile, StoreError
from weave_py.store_schema import LATEST, Value, checksum, climb

__all__ = ["Exposed", "Name", "Store", "StoreError", "default_prefix"]

_IMAGE_PREFIX = Path("/weavedb/weave")
_HOST_PREFIX = Path("/var/lib/weave/weave")
_FLAG = "flag:"
_PEER_NAME, _RUNNING, _LOST, _RING = "peer name", "running", "lost", "ring"
_REJOINS = "the ring of this host was discarded to join that of others"
_HANDED_BACK, _WEAVE_NET = "handed back", "weave net file"


class Name(NamedTuple):
    """A name that somebody registered by hand: it outlives the router."""

    hostname: str
    container: str
    address: str


class Exposed(NamedTuple):
    """An address of the host on the bridge; `masquerade`: whether what leaves the range is translated to it."""

    cidr: str
    masquerade: bool


def default_prefix() -> str:
    """Where state is kept unless `--db-prefix` says otherwise: 2.8's place in an image, a host's own elsewhere."""
    return str(_IMAGE_PREFIX if _IMAGE_PREFIX.parent.is_dir() else _HOST_PREFIX)


class Store:
    """The state at `prefix` + `data.sqlite`, made if it is not there. Raises StoreError, as every method does.

    `imported` is the Weave Net file whose state was taken over by this start, if one was; `weave_net_wrote` the one
    that was written after that, with nothing handed back: then it is not known which of the two is right. Methods may
    be called from any thread; one call at a time does its work, and a call that writes returns when the disk has it.
    """

    def __init__(self, prefix: str) -> None:
        self.imported: str | None = None
        self._weave_net = f"{prefix}data.db"
        self.file = StateFile(prefix, self._begin)
        self.path = self.file.path
        try:
            self._take_again()
            self._lost = self._text(_LOST)
            known = self._text(_WEAVE_NET)
            changed = known is not None and self._weave_net_mark() not in ("", known)
            self.weave_net_wrote = self._weave_net if changed else ""
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        """Done with it."""
        self.file.close()

    # --- what the file begins with ---

    def _begin(self, connection: sqlite3.Connection, lost: str | None) -> None:
        if lost is not None:
            # What Weave Net left is older than what was lost: taking it would give addresses out twice.
            _put(connection, "facts", _LOST, lost)
        elif os.path.exists(self._weave_net):
            self._take(connection, self._weave_net)
        _put(connection, "facts", _WEAVE_NET, self._weave_net_mark())

    def _weave_net_mark(self) -> str:
        """What tells one version of Weave Net's file from another; nothing where there is none."""
        try:
            found = os.stat(self._weave_net)
        except OSError:
            return ""
        return f"{found.st_mtime_ns} {found.st_size}"

    def _take_again(self) -> None:
        """After a hand-back the other router's file is the newer one."""
        if self._fact(_HANDED_BACK) is None:
            return
        with self.file.transaction() as connection:
            if weave_net.is_prepared(self._weave_net):
                # The hand-back ended before its file got the name: it never happened.
                pass
            elif os.path.exists(self._weave_net):
                self._take(connection, self._weave_net)
            else:
                _put(connection, "facts", _LOST, f"the state was handed back to {self._weave_net}, which is gone")
            connection.execute("DELETE FROM facts WHERE name = ?", (_HANDED_BACK,))
            _put(connection, "facts", _WEAVE_NET, self._weave_net_mark())

    def _take(self, connection: sqlite3.Connection, source: str) -> None:
        """Put what Weave Net knew in the place of what is here; names and exposure it does not keep."""
        try:
            state = weave_net.read(source)
        except weave_net.WeaveNetError as error:
            raise StoreError(f"{error}; move it away to start without what it holds") from error
        connection.execute("DELETE FROM facts WHERE name IN (?, ?) OR name LIKE ?", (_PEER_NAME, _RING, f"{_FLAG}%"))
        connection.execute("DELETE FROM owned")
        connection.execute("DELETE FROM direct_peers")
        if state.peer_name is not None:
            _put(connection, "facts", _PEER_NAME, state.peer_name)
        if state.ring is not None:
            _put(connection, "facts", _RING, state.ring)
        for ident, held in state.owned.items():
            _put(connection, "owned", ident, held.is_container, " ".join(held.cidrs))
        for name, value in state.flags.items():
            _put(connection, "facts", _FLAG + name, value)
        connection.executemany("INSERT INTO direct_peers VALUES (?, ?)", enumerate(state.direct_peers))
        self.imported = source

    def weave_net_state(self) -> weave_net.WeaveNetState:
        """All that Weave Net would keep."""
        facts = self.file.rows("SELECT name, value FROM facts WHERE name LIKE ?", f"{_FLAG}%")
        return weave_net.WeaveNetState(
            peer_name=self.peer_name(),
            ring=self.ring(),
            owned=self.owned(),
            direct_peers=tuple(self.direct_peers()),
            flags={name.removeprefix(_FLAG): value for name, value in facts},
        )

    def hand_back(self) -> str:
        """Write the state as and where Weave Net keeps it; the next start takes it from there again.

        The file's name. Names and exposure stay here. No router of ours runs: this has the store open.
        """
        if self._lost is not None:
            raise StoreError(f"there is no state to hand back: {self._lost}")
        try:
            weave_net.write(self._weave_net, self.weave_net_state(), lambda: self._set_fact(_HANDED_BACK, 1))
        except weave_net.WeaveNetError as error:
            self._remove_fact(_HANDED_BACK)
            raise StoreError(str(error)) from error
        return self._weave_net

    def go_down(self, schema: int) -> None:
        """Make the file one of an earlier version of ours; what that has no place for is gone. Then close it."""
        if not 1 <= schema <= LATEST:
            raise StoreError(f"there is no schema {schema}: {self.path} has {LATEST}, the first is 1")
        with self.file.transaction() as connection:
            climb(connection, schema)

    # --- facts ---

    @property
    def lost(self) -> str | None:
        """What became of a file that could not be read: until it is cleared, this host may hold what it forgot."""
        return self._lost

    def clear_lost(self) -> None:
        """What was lost is known again."""
        self._remove_fact(_LOST)
        self._lost = None

    def peer_name(self) -> PeerName | None:
        """The name under which ring and addresses are kept."""
        value = self._fact(_PEER_NAME)
        return PeerName(value) if isinstance(value, int) else None

    def set_peer_name(self, name: PeerName) -> str | None:
        """Keep a name, durably. Under another one than before, ring and addresses are no longer ours: they are
        deleted, and what is returned is the name of a copy of the file as it was."""
        before, copy = self.peer_name(), None
        if before not in (None, name) and (self.ring() is not None or self.owned()):
            copy = self.file.copy(format_peer_name(PeerName(before or 0)).replace(":", ""))
        with self.file.transaction() as connection:
            if before not in (None, name):
                _forget_addresses(connection)
            _put(connection, "facts", _PEER_NAME, name)
        return copy

    def forget_addresses(self, word: str) -> str:
        """Delete ring and addresses, durably; the name of a copy of the file as it was, which ends in the word."""
        copy = self.file.copy(word)
        with self.file.transaction() as connection:
            _forget_addresses(connection)
        return copy

    def was_running(self) -> bool:
        """The restart marker: a run began and did not end in order. Without a stored list it says nothing."""
        return self._fact(_RUNNING) is not None and bool(self.direct_peers())

    def set_running(self, running: bool) -> None:
        """Set the marker once the router is up; take it away where the next start is to be a fresh one."""
        if running:
            self._set_fact(_RUNNING, 1)
        else:
            self._remove_fact(_RUNNING)

    def flag(self, name: str) -> str | None:
        """A flag that a program beside the router keeps here (`peer-reclaim` on Kubernetes)."""
        return self._text(_FLAG + name)

    def set_flag(self, name: str, value: str) -> None:
        """Keep a flag, durably."""
        self._set_fact(_FLAG + name, value)

    def remove_flag(self, name: str) -> None:
        """Forget a flag, durably."""
        self._remove_fact(_FLAG + name)

    def _fact(self, name: str) -> Value | None:
        rows = self.file.rows("SELECT value FROM facts WHERE name = ?", name)
        value: Value | None = rows[0][0] if rows else None
        return value

    def _text(self, name: str) -> str | None:
        value = self._fact(name)
        return None if value is None else str(value)

    def _set_fact(self, name: str, value: Value) -> None:
        with self.file.transaction() as connection:
            _put(connection, "facts", name, value)

    def _remove_fact(self, name: str) -> None:
        with self.file.transaction() as connection:
            connection.execute("DELETE FROM facts WHERE name = ?", (name,))

    # --- peers ---

    def direct_peers(self) -> list[str]:
        """The peers of the last run, in their order, as they were typed."""
        return [str(row[0]) for row in self.file.rows("SELECT peer FROM direct_peers ORDER BY position")]

    def set_direct_peers(self, peers: Sequence[str]) -> None:
        """Replace the list, durably."""
        with self.file.transaction() as connection:
            connection.execute("DELETE FROM direct_peers")
            connection.executemany("INSERT INTO direct_peers VALUES (?, ?)", enumerate(peers))

    # --- names ---

    def names(self) -> list[Name]:
        """All names registered by hand, in the order of their registration."""
        return [Name(*row) for row in self.file.rows("SELECT hostname, container, address FROM names ORDER BY rowid")]

    def add_name(self, hostname: str, container: str, address: str) -> None:
        """Keep a name, durably; once more changes nothing."""
        with self.file.transaction() as connection:
            _put(connection, "names", hostname, container, address)

    def remove_name(self, hostname: str, container: str, address: str) -> None:
        """Forget a name, durably."""
        with self.file.transaction() as connection:
            connection.execute(
                "DELETE FROM names WHERE hostname = ? AND container = ? AND address = ?", (hostname, container, address)
            )

    # --- exposure ---

    def exposed(self) -> list[Exposed]:
        """The host's own addresses on the bridge, in the order in which they were exposed."""
        rows = self.file.rows("SELECT cidr, masquerade FROM exposed ORDER BY rowid")
        return [Exposed(cidr, bool(masquerade)) for cidr, masquerade in rows]

    def set_exposed(self, cidr: str, masquerade: bool) -> None:
        """Keep an address, durably."""
        with self.file.transaction() as connection:
            _put(connection, "exposed", cidr, masquerade)

    def remove_exposed(self, cidr: str) -> None:
        """Forget an address, durably."""
        with self.file.transaction() as connection:
            connection.execute("DELETE FROM exposed WHERE cidr = ?", (cidr,))

    # --- addresses ---

    def ring(self) -> bytes | None:
        """The ring as it was last committed, a gob value."""
        value = self._fact(_RING)
        return value if isinstance(value, bytes) else None

    def owned(self) -> dict[str, weave_net.Held]:
        """Who holds which addresses, in the order in which they came."""
        rows = self.file.rows("SELECT ident, is_container, cidrs FROM owned ORDER BY rowid")
        return {ident: weave_net.Held(bool(is_container), tuple(cidrs.split())) for ident, is_container, cidrs in rows}

    def commit_addresses(
        self, ring: bytes | None, owned: Mapping[str, weave_net.Held | None], *, rejoins: bool = False
    ) -> None:
        """Keep a changed ring (None: unchanged) and changed holders (None: gone) in one transaction, durably.

        `rejoins`: what was known of the ring counts as lost until that of others is known.
        """
        with self.file.transaction() as connection:
            if ring is not None:
                _put(connection, "facts", _RING, ring)
            for ident, held in owned.items():
                if held is None:
                    connection.execute("DELETE FROM owned WHERE ident = ?", (ident,))
                else:
                    _put(connection, "owned", ident, held.is_container, " ".join(held.cidrs))
            if rejoins:
                _put(connection, "facts", _LOST, _REJOINS)
        if rejoins:
            self._lost = _REJOINS


_UPSERTS = {
    "facts": "INSERT INTO facts VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
    " value = excluded.value, sum = excluded.sum",
    "owned": "INSERT INTO owned VALUES (?, ?, ?, ?) ON CONFLICT (ident) DO UPDATE SET"
    " is_container = excluded.is_container, cidrs = excluded.cidrs, sum = excluded.sum",
    "names": "INSERT INTO names VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    "exposed": "INSERT INTO exposed VALUES (?, ?, ?) ON CONFLICT (cidr) DO UPDATE SET"
    " masquerade = excluded.masquerade, sum = excluded.sum",
}


def _forget_addresses(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM facts WHERE name = ?", (_RING,))
    connection.execute("DELETE FROM owned")


def _put(connection: sqlite3.Connection, table: str, *values: Value) -> None:
    """A row with its sum, in the place of one with the same key. Rows keep the place that they got first."""
    connection.execute(_UPSERTS[table], (*values, checksum(*values)))
