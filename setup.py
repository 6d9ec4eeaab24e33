"""The native core; everything else is said in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["sleeve/build_core.py:ffibuilder"])
