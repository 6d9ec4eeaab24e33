"""How the courier is built: one C file, linked statically. `setup.py` runs this, and tests with other flags.

    python cni/build_courier.py TARGET [FLAG ...]

Without a compiler nothing is built, and one line says so: `weave setup-cni` needs it, the router does not.
"""

import os
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("courier.c")
_WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion")


def build(target: Path, *flags: str) -> None:
    """Compile. Raises OSError without a compiler, subprocess.CalledProcessError where it refuses."""
    compiler = os.environ.get("CC", "gcc")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    chosen = flags or ("-Os", "-static", "-s")
    subprocess.run([compiler, "-std=gnu11", *_WARNINGS, *chosen, "-o", str(temporary), str(_SOURCE)], check=True)
    temporary.replace(target)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), *sys.argv[2:])
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the CNI plugin was not built: {error}", file=sys.stderr)
