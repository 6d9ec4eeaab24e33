"""Completion in bash, asked as bash asks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/completion/weave.bash"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("weave dns-", {"dns-add", "dns-args", "dns-lookup", "dns-remove"}),
        ("weave re", {"rejoin", "report", "reset"}),
        ("weave status con", {"connections"}),
        ("weave expose --w", {"--without-masquerade"}),
        ("weave prime ", set()),
    ],
)
def test_completion(tmp_path: Path, line: str, expected: set[str]) -> None:
    program = tmp_path / "weave"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m weave_py.cli "$@"\n')
    program.chmod(0o755)
    words = line.split(" ")
    script = (
        f"source {SCRIPT}; COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        '_weave; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=env, check=True)
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""
