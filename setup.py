"""What is compiled: the native core, and the CNI plugin's courier. Everything else is said in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCourier(build_py):
    """The courier is a program, not a module: it lies beside the modules of its package."""

    def run(self) -> None:
        super().run()
        place = Path("cni" if self.editable_mode else f"{self.build_lib}/cni")
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "cni/build_courier.py", str(place / "courier")], check=True)


setup(cffi_modules=["sleeve/build_core.py:ffibuilder"], cmdclass={"build_py": BuildWithCourier})
