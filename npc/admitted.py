"""Which pods of this node started with which addresses, kept for the next process of ours.

A pod's status names its address some time after the pod started. Until then only we know whose it is: a process that
forgot it would take the rules from a pod that runs. The file lies beside the socket, where a restart of the host
clears it. Source: NPC spec §4.5.
"""

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

PodKey = tuple[str, str]


@dataclass(slots=True)
class Interfaces:
    """The addresses of a pod, in network order, by its interfaces."""

    uid: str
    addresses: dict[str, tuple[bytes, ...]] = field(default_factory=dict)

    def all(self) -> tuple[bytes, ...]:
        """All of them."""
        return tuple(address for listed in self.addresses.values() for address in listed)


class Admitted:
    """Pods by namespace and name; `keep` writes what `pods` holds, if `changed`. Without a path it is kept nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.pods: dict[PodKey, Interfaces] = {}
        self.changed = False
        # A file that is missing, or cut, is no knowledge.
        if path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self.pods = {(one["namespace"], one["name"]): _interfaces(one) for one in json.loads(path.read_text())}

    def keep(self) -> None:
        """Write all of it, whole or not at all. Raises OSError."""
        if self._path is None or not self.changed:
            return
        rows = [
            {
                "namespace": namespace,
                "name": name,
                "uid": one.uid,
                "addresses": {key: [each.hex() for each in listed] for key, listed in one.addresses.items()},
            }
            for (namespace, name), one in self.pods.items()
        ]
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(rows))
            os.replace(fresh, self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self.changed = False


def _interfaces(row: dict[str, object]) -> Interfaces:
    addresses = row["addresses"]
    if not isinstance(addresses, dict):
        raise ValueError("addresses are given by interface")
    listed = {str(key): tuple(bytes.fromhex(each) for each in found) for key, found in addresses.items()}
    return Interfaces(str(row["uid"]), listed)
