"""What peers are called: ourselves, whoever owns a part of the ring, whoever the mesh knows.

People see and type nicknames; they need not be unique. Source: IPAM spec §5.1, §6, §13, cure D9 of §21.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

from ipam.seams import IpamError, Mesh
from mesh.names import UNKNOWN, InvalidPeerNameError, PeerName, format_peer_name, parse_peer_name

_LIMIT = 4096


class Nicknames:
    """Nicknames by peer. Ours cannot be changed by others."""

    def __init__(self, ourself: PeerName, nickname: str, mesh: Mesh) -> None:
        self._ourself = ourself
        self._mesh = mesh
        self._ours = nickname
        self._known = {ourself: nickname}

    def learn(self, others: Mapping[PeerName, str]) -> None:
        """What a peer says; beyond a few thousand, only what the next pruning leaves room for."""
        if len(self._known) + len(others) <= _LIMIT:
            self._known.update(others)
            self._known[self._ourself] = self._ours

    def prune(self, owners: Set[PeerName]) -> None:
        """Forget whoever owns nothing and is not in the mesh."""
        keep = {*owners, self._ourself}
        self._known = {n: nick for n, nick in self._known.items() if n in keep or self._mesh.knows(n)}

    def forget(self, name: PeerName) -> None:
        if name != self._ourself:
            self._known.pop(name, None)

    def others(self) -> list[PeerName]:
        return [name for name in self.all() if name != self._ourself]

    def heir(self, owners: Sequence[PeerName]) -> PeerName | None:
        """Who gets what is ours when we leave: rather one that is reached, rather an owner, in the ring's order."""
        if not owners:
            return None
        having = [name for name in owners if name not in (self._ourself, UNKNOWN)]
        others, knows = self.others(), self._mesh.knows
        choices = [*filter(knows, having), *filter(knows, others), *having, *others]
        return choices[0] if choices else None

    def all(self) -> dict[PeerName, str]:
        """With those that only the mesh knows."""
        return {**{name: self._mesh.nickname(name) for name in self._mesh.names()}, **self._known}

    def of(self, name: PeerName) -> str:
        """Empty where it is not known."""
        return self._known.get(name) or self._mesh.nickname(name)

    def text(self, names: Iterable[PeerName]) -> str:
        """Peers as people see them, separated by spaces."""
        labels = []
        for name in names:
            nickname = self.of(name)
            labels.append(format_peer_name(name) + (f"({nickname})" if nickname else ""))
        return " ".join(labels)

    def find(self, text: str, owners: Set[PeerName]) -> PeerName | None:
        """Who is meant: by nickname first, rather an owner, rather one that is gone; then by name.

        Raises IpamError where that leaves several.
        """
        called = [name for name, nickname in self.all().items() if nickname == text and name != self._ourself]
        matching = [name for name in called if name in owners] or called
        gone = [name for name in matching if not self._mesh.knows(name)]
        if len(gone) > 1:
            raise IpamError(f"several peers are called {text}: {self.text(sorted(gone))}; give the name of one")
        if matching:
            return gone[0] if gone else matching[0]
        try:
            return parse_peer_name(text)
        except InvalidPeerNameError:
            return None
