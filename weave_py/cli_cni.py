"""`weave setup-cni`: the CNI plugin and its configuration on this node.

WEAVE_CNI_PLUGIN_DIR and WEAVE_CNI_CONF_DIR say where they go, HOST_ROOT where the node's root is mounted; HAIRPIN_MODE
goes into the configuration. Source: Kubernetes and CNI spec §1.4.
"""

import os
import sys
from pathlib import Path

from weave_py import __version__
from weave_py.client import CliError, UsageError

_HAIRPIN = {"": None, "true": True, "false": False}


def setup_cni(arguments: list[str]) -> int:
    """Install; what was done goes to standard error. Raises CliError."""
    from cni.install import InstallError, install

    if arguments:
        raise UsageError("")
    root = Path(os.environ.get("HOST_ROOT") or "/")
    hairpin = os.environ.get("HAIRPIN_MODE", "")
    if hairpin not in _HAIRPIN:
        raise CliError(f"HAIRPIN_MODE is {hairpin!r}: say true or false")
    plugins = Path(os.environ.get("WEAVE_CNI_PLUGIN_DIR") or root / "opt/cni/bin")
    configurations = Path(os.environ.get("WEAVE_CNI_CONF_DIR") or root / "etc/cni/net.d")
    try:
        for line in install(plugins, configurations, __version__, _HAIRPIN[hairpin]):
            print(line, file=sys.stderr)
    except InstallError as error:
        raise CliError(str(error)) from error
    return 0
