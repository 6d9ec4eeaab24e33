"""`weave setup-cni`: the plugin and its configuration on a node, in the places where runtimes look for them.

Every file is whole at any moment: a runtime may call the plugin while it is replaced. A configuration that somebody
wrote is left alone; one that Weave Net wrote and nobody touched becomes ours. Source: Kubernetes and CNI spec §1.4, §8.
"""

import json
import os
from pathlib import Path

COURIER = Path(__file__).with_name("courier")
CONFIGURATION = "10-weave.conflist"
_OLDEST = "10-weave.conf"
_NAMES = ("weave-net", "weave-ipam")
_VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
# What Weave Net 2.5 to 2.8 wrote, by whether frames may turn back.
_WROTE_BEFORE = """{
    "cniVersion": "0.3.0",
    "name": "weave",
    "plugins": [
        {
            "name": "weave",
            "type": "weave-net",
            "hairpinMode": %s
        },
        {
            "type": "portmap",
            "capabilities": {"portMappings": true},
            "snat": true
        }
    ]
}
"""


class InstallError(Exception):
    """What cannot be done: one line for a person."""


def configuration(hairpin: bool) -> str:
    """The default configuration: the network `weave`, with host ports by portmap."""
    weave = {"name": "weave", "type": "weave-net", "capabilities": {"ips": True}, "hairpinMode": hairpin}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    document = {"cniVersion": "1.0.0", "cniVersions": _VERSIONS, "name": "weave", "plugins": [weave, ports]}
    return json.dumps(document, indent=4) + "\n"


def install(
    plugins: Path, configurations: Path, version: str, hairpin: bool | None, courier: Path = COURIER
) -> list[str]:
    """Put everything in its place; a line for each thing that was changed or left. Raises InstallError.

    `hairpin` None: on, and where Weave Net's configuration is replaced, what that says.
    """
    try:
        return [*_install_plugin(plugins, version, courier), *_install_configuration(configurations, hairpin)]
    except OSError as error:
        raise InstallError(f"unable to write {error.filename or plugins}: {error.strerror}") from error


def _install_plugin(directory: Path, version: str, courier: Path) -> list[str]:
    try:
        program = courier.read_bytes()
    except OSError as error:
        text = f"{courier} is missing: it is built by script/bootstrap, or by pip where a C compiler is"
        raise InstallError(text) from error
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"weave-plugin-{version}"
    said = []
    if not (target.is_file() and not target.is_symlink() and target.read_bytes() == program):
        _replace(target, program, 0o755)
        said.append(f"installed {target}")
    for name in _NAMES:
        link = directory / name
        if not (link.is_symlink() and os.readlink(link) == target.name):
            temporary = directory / f".{name}.{os.getpid()}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target.name)
            # A plain file of an old version goes the same way.
            temporary.replace(link)
            said.append(f"{link} leads to {target.name}")
    return said


def _install_configuration(directory: Path, hairpin: bool | None) -> list[str]:
    said = []
    old, path = directory / _OLDEST, directory / CONFIGURATION
    wanted = configuration(hairpin is not False)
    if old.exists():
        old.unlink()
        said.append(f"removed {old}")
    if path.exists():
        there = path.read_text(errors="replace")
        if there in (configuration(True), configuration(False)):
            return said
        if there not in (_WROTE_BEFORE % "true", _WROTE_BEFORE % "false"):
            return [*said, f"left {path} as it is: it was changed by hand"]
        if hairpin is None:
            wanted = configuration(there == _WROTE_BEFORE % "true")
    directory.mkdir(parents=True, exist_ok=True)
    _replace(path, wanted.encode(), 0o644)
    return [*said, f"wrote {path}"]


def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
