"""A node's container runtime: a containerd of its own in the node's namespace, driven as a kubelet drives it.

Debian's containerd and runc; the image of the sandbox is made here. What is missing on a machine is said by `missing`.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from lab.net import NETNS, run
from lab.router import wait_until
from tests.cri.proto import Field, fields, message, text, within

PLUGINS = Path("/usr/lib/cni")
_SERVICE = "/runtime.v1.RuntimeService/"
_IMAGE = "localhost/pause:1"
_LIMIT = 60.0


def missing() -> str:
    """What tests with a runtime lack here; empty if nothing."""
    programs = [name for name in ("containerd", "runc", "ctr", "gcc") if shutil.which(name) is None]
    if programs:
        return f"not installed: {', '.join(programs)} (Debian: containerd runc gcc)"
    if not (PLUGINS / "portmap").exists():
        return f"{PLUGINS}/portmap is missing (Debian: containernetworking-plugins)"
    try:
        import grpc  # noqa: F401
    except ImportError:
        return "the Python package grpcio is missing"
    return ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod: its address, the process that holds its namespaces, its containers' resolv.conf."""

    ident: str
    address: str
    pid: int
    resolver: Path

    @property
    def namespace(self) -> str:
        """A path to its network namespace."""
        return f"/proc/{self.pid}/ns/net"

    def run(self, *command: str) -> str:
        """A command in the pod's network."""
        return run("nsenter", f"--net={self.namespace}", *command)

    def run_resolving(self, *command: str) -> str:
        """A command in the pod's network that looks names up where the pod's containers do."""
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        mounted = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.resolver))
        return self.run(*mounted, *command)


@dataclass(slots=True)
class Runtime:
    """A running containerd."""

    directory: Path
    process: "subprocess.Popen[bytes]"
    channel: Any
    made: list[str] = field(default_factory=list)

    def run_sandbox(
        self, name: str, ports: Sequence[tuple[int, int]] = (), *, namespace: str = "default", names: str = ""
    ) -> Sandbox:
        """A new pod; `ports` are pairs of a pod's port and the host's, `names` a name server. Raises grpc.RpcError."""
        metadata = message([(1, name), (2, f"uid-{name}"), (3, namespace)])
        mappings: list[Field] = [(5, message([(2, inner), (3, outer)])) for inner, outer in ports]
        resolver = message([(1, names)])
        config = message(
            [(1, metadata), (2, name), (3, str(self.directory)), (4, resolver), *mappings, (8, message([(1, "/")]))]
        )
        ident = text(self._call("RunPodSandbox", [(1, config)]), 1)
        self.made.append(ident)
        return self.status(ident)

    def status(self, ident: str) -> Sandbox:
        """A pod as the runtime knows it."""
        answer = self._call("PodSandboxStatus", [(1, ident), (2, 1)])
        information = {text(fields(each), 1): text(fields(each), 2) for each in answer[2] if isinstance(each, bytes)}
        pid = json.loads(information["info"])["pid"]
        resolver = self.directory / "root/io.containerd.grpc.v1.cri/sandboxes" / ident / "resolv.conf"
        return Sandbox(ident, text(within(within(answer, 1), 5), 1), int(pid), resolver)

    def remove(self, ident: str) -> None:
        """Stop a pod and remove it. Raises grpc.RpcError."""
        self._call("StopPodSandbox", [(1, ident)])
        self._call("RemovePodSandbox", [(1, ident)])
        self.made.remove(ident)

    def network_ready(self) -> bool:
        """Whether the runtime says that pods can have a network."""
        conditions = within(self._call("Status", []), 1)[1]
        found = [fields(each) for each in conditions if isinstance(each, bytes)]
        return any(text(each, 1) == "NetworkReady" and each.get(2) == [1] for each in found)

    def _call(self, method: str, request: Sequence[Field]) -> dict[int, list[int | bytes]]:
        answer: bytes = self.channel.unary_unary(_SERVICE + method)(message(request), timeout=_LIMIT)
        return fields(answer)


@contextlib.contextmanager
def runtime(
    directory: Path, namespace: str, configurations: Path, plugins: Path, **variables: str
) -> Iterator[Runtime]:
    """A containerd with directories of its own, in a network namespace; its plugins get these variables."""
    import grpc

    directory.mkdir(parents=True)
    socket = directory / "containerd.sock"
    (directory / "config.toml").write_text(_configuration(directory, socket, configurations, plugins))
    # Its namespaces are mounted where nobody else sees them, as they are for a router in a container.
    script = 'mount -t tmpfs none /run/netns && exec containerd --config "$0"'
    command = ["nsenter", f"--net={NETNS / namespace}", "unshare", "--mount", "--propagation", "private"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "sh", "-c", script, directory / "config.toml"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **variables},
        )
    try:
        wait_until("containerd answers", socket.exists, _LIMIT)
        image = directory / "pause.tar"
        image.write_bytes(pause_image(directory))
        run("ctr", "-a", str(socket), "-n", "k8s.io", "images", "import", "--snapshotter", "native", str(image))
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            made = Runtime(directory, process, channel)
            wait_until("the runtime sees the network", made.network_ready, _LIMIT)
            try:
                yield made
            finally:
                for ident in list(made.made):
                    with contextlib.suppress(grpc.RpcError):
                        made.remove(ident)
    finally:
        process.terminate()
        process.wait(_LIMIT)


def _configuration(directory: Path, socket: Path, configurations: Path, plugins: Path) -> str:
    return f"""
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{_IMAGE}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{configurations}"
"""


def pause_image(directory: Path) -> bytes:
    """An archive as `docker save` makes it, of one layer with one program."""
    program = directory / "pause"
    run("gcc", "-static", "-Os", "-s", "-o", str(program), str(Path(__file__).with_name("pause.c")))
    layer = _archive({"pause": program.read_bytes()})
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
            "history": [{"created_by": "a test"}],
        }
    ).encode()
    name = f"{sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [_IMAGE], "Layers": ["layer.tar"]}]).encode()
    return _archive({name: config, "layer.tar": layer, "manifest.json": manifest})


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
