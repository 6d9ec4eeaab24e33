"""The plugin as a runtime calls it: a file named weave-net, variables, standard input."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COURIER = Path(__file__).parents[2] / "cni" / "courier"
CONFLIST = {"cniVersion": "1.0.0", "name": "weave", "type": "weave-net"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    status: int
    text: str
    notes: str

    @property
    def document(self) -> dict[str, Any]:
        """What was printed."""
        found = json.loads(self.text)
        assert isinstance(found, dict)
        return found


@dataclass(slots=True)
class Plugin:
    """The courier, linked under both names in a directory, for the router on a socket."""

    directory: Path
    socket: Path
    spool: Path
    courier: Path = COURIER

    def __post_init__(self) -> None:
        for name in ("weave-net", "weave-ipam"):
            link = self.directory / name
            link.unlink(missing_ok=True)
            link.symlink_to(self.courier)

    def call(
        self,
        command: str,
        container: str = "",
        namespace: str = "",
        interface: str = "eth0",
        *,
        name: str = "weave-net",
        configuration: Mapping[str, Any] | bytes = CONFLIST,
        arguments: str = "",
        more: Mapping[str, str] | None = None,
    ) -> Outcome:
        """One call. `namespace` is a path, or the name of one that `ip netns` knows."""
        path = f"/var/run/netns/{namespace}" if namespace and "/" not in namespace else namespace
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": path,
            "CNI_IFNAME": interface,
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": arguments,
            "WEAVE_CNI_SOCKET": str(self.socket),
            "WEAVE_CNI_SPOOL": str(self.spool),
            # What a program holds that ends at once is no leak.
            "ASAN_OPTIONS": "detect_leaks=0",
            **(more or {}),
        }
        text = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
        done = subprocess.run(
            [self.directory / name],
            input=text,
            capture_output=True,
            env={key: value for key, value in environment.items() if value},
            timeout=110,
            check=False,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    def add(self, container: str, namespace: str, **options: Any) -> dict[str, Any]:
        """An ADD that has to work; its result."""
        done = self.call("ADD", container, namespace, **options)
        assert done.status == 0, done
        return done.document

    def delete(self, container: str, namespace: str = "", **options: Any) -> Outcome:
        """A DEL that has to work."""
        done = self.call("DEL", container, namespace, **options)
        assert done.status == 0 and not done.text, done
        return done
