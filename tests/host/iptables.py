"""iptables in a test: both kinds, where they are; a test that needs one that is missing says so and is not run."""

import shutil
import subprocess

import pytest

from tests.namespaces import run

NATIVE, LEGACY = "iptables-nft", "iptables-legacy"


def needs(*programs: str) -> None:
    """Skip a test for want of a program, by its name."""
    for program in programs:
        if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"{program} is not installed")


def iptables(place: str, program: str, *words: str) -> str:
    """What an iptables prints in a namespace."""
    return run("ip", "netns", "exec", place, program, "-w", "5", *words)


def restore(place: str, program: str, text: str) -> None:
    """Write rules as a saved text has them."""
    command = ["ip", "netns", "exec", place, f"{program}-restore"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def works(place: str, program: str) -> None:
    """Skip a test where this kernel lacks what an iptables needs."""
    needs(program)
    command = ["ip", "netns", "exec", place, program, "-w", "5", "-S"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"{program} does not work with this kernel: {done.stderr.strip()}")
