"""The core does what plain Python does, to the byte, also under sanitizers; the long run gives it five minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.names import PeerName
from sleeve.datagram import SealedSession, frame_header
from tests.sleeve.nodes import KEY, NO_CORE
from tests.sleeve.stacks import Stack

pytest.importorskip("sleeve._sleeve", reason=NO_CORE)
ROOT = Path(__file__).parents[2]


def differ(*arguments: str, **environment: str) -> str:
    """What the comparison says; it must end well."""
    command = [sys.executable, "-m", "tests.sleeve.differ", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done.stdout


def test_the_core_does_what_plain_python_does() -> None:
    assert "no difference" in differ("--seconds", "8", "--seed", "1")


def test_sealed_bytes_are_those_of_secretbox_for_every_length() -> None:
    stack = Stack("native")
    try:
        ear = stack.ears[2]
        ear.heard()
        channel = next(link for link in stack.data_path.links() if link.peer == 2).channel
        other = SealedSession(PeerName(1), KEY, outbound=True)
        for size in [*range(14, 3000), 8191, 8192, 40000, 65463]:
            frame = bytes((size & 0xFF,)) * size
            channel.send_alone(PeerName(1), PeerName(2), frame, False)
            datagram = ear.sock.recv(65536)
            other._sequence[False] = int.from_bytes(datagram[6:14], "big")
            assert datagram == other.seal(frame_header(PeerName(1), PeerName(2), size) + frame, False)
    finally:
        stack.close()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core built with the address and undefined-behaviour sanitizers."""
    directory = tmp_path_factory.mktemp("sanitized")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(directory)]
    command += ["--build-temp", str(directory / "temp")]
    environment = {**os.environ, "WEAVE_SANITIZE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, cwd=ROOT, env=environment
    )
    if not list(directory.glob("sleeve/_sleeve*.so")):
        pytest.skip(f"no sanitizers here: {done.stderr[-200:]}")
    return directory


def runtime(name: str) -> str:
    """The compiler's library of this name."""
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, timeout=20, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "seconds", ["12", pytest.param("300", marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_no_sanitizer_finds_anything(sanitized: Path, seconds: str) -> None:
    output = differ(
        "--seconds", seconds, "--seed", "100000", "--core", str(sanitized),
        LD_PRELOAD=f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        ASAN_OPTIONS="detect_leaks=0",
    )  # fmt: skip
    assert "no difference" in output
