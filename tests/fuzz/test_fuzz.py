"""A short run of the coverage-guided fuzzer; `script/test --long` gives it five minutes."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.vectors import ROOT as VECTORS
from tests.vectors import load

ROOT = Path(__file__).parents[2]
READERS = 17


def seeds(folder: Path) -> Path:
    """Golden bytes for every reader: the fuzzer finds its way in much sooner."""
    folder.mkdir()
    samples = [bytes.fromhex(vector["hex"]) for vector in load("mesh", "features.json")[:3]]
    framed = [bytes.fromhex(vector["hex"]) for vector in load("mesh", "messages.json") if "payload" in vector]
    samples += framed + [frame[5:] for frame in framed]
    samples += [bytes.fromhex(vector["hex"]) for vector in load("mesh", "topology.json")[:5]]
    samples += [bytes.fromhex(vector["hex"]) for vector in load("mesh", "gob-generic.json")]
    plain = json.loads((VECTORS / "overlay" / "sleeve-plain.json").read_text())["encode"]
    samples += [bytes.fromhex(case["datagram"]) for case in plain]
    names = json.loads((VECTORS / "dns" / "gossip_messages.json").read_text())["gossip"]
    samples += [bytes.fromhex(message["payload_hex"]) for message in names[:5]]
    addresses = json.loads((VECTORS / "ipam" / "gossip_messages.json").read_text())["gossip"]
    samples += [bytes.fromhex(message["payload_hex"]) for message in addresses[5:9]]
    answers = json.loads((VECTORS / "dns" / "dns_answers.json").read_text())["cases"]
    samples += [bytes.fromhex(case[key]) for case in answers for key in ("query_hex", "response_hex")]
    for number, sample in enumerate(samples):
        for reader in range(READERS):
            (folder / f"{number}-{reader}").write_bytes(bytes((reader,)) + sample)
    return folder


NO_ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed for this Python"
)


@NO_ATHERIS
@pytest.mark.parametrize(
    "flag",
    [
        "-runs=200",
        pytest.param("-max_total_time=300", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_the_core_and_plain_python_agree(flag: str, tmp_path: Path) -> None:
    pytest.importorskip("sleeve._sleeve", reason="the native core is not built")
    corpus = tmp_path / "seeds"
    corpus.mkdir()
    for number in range(8):
        (corpus / str(number)).write_bytes(Random(number).randbytes(3000))
    command = [sys.executable, "-m", "tests.fuzz.fuzz_core", flag, "-max_len=8192", "-rss_limit_mb=2048"]
    command += [f"-artifact_prefix={tmp_path}/", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@NO_ATHERIS
@pytest.mark.parametrize(
    "flag",
    [
        "-runs=20000",
        pytest.param("-max_total_time=300", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_nothing_but_the_protocols_own_errors_comes_out(flag: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_bytes", flag, "-max_len=4096", "-rss_limit_mb=2048"]
    command += [f"-artifact_prefix={tmp_path}/", str(seeds(tmp_path / "seeds"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def core_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core itself with libFuzzer and the sanitizers."""
    if shutil.which("clang") is None:
        pytest.skip("no clang here")
    made = tmp_path_factory.mktemp("target") / "core_fuzz"
    sources = sorted(str(path) for path in (ROOT / "sleeve" / "core").glob("*.c"))
    command = ["clang", "-g", "-O1", "-D_GNU_SOURCE", "-fsanitize=fuzzer,address,undefined"]
    command += ["-fno-sanitize-recover=undefined", *sources, str(ROOT / "tests" / "fuzz" / "core_fuzz.c")]
    done = subprocess.run(
        [*command, "-lsodium", "-ldl", "-pthread", "-o", str(made)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if done.returncode and "cannot find" in done.stderr:
        pytest.skip(f"no libFuzzer here (Debian: libclang-rt-14-dev): {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    return made


@pytest.mark.parametrize(
    "flag",
    [
        "-runs=1500",
        pytest.param("-max_total_time=300", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_the_core_loses_and_changes_nothing(core_target: Path, flag: str, tmp_path: Path) -> None:
    corpus = tmp_path / "seeds"
    corpus.mkdir()
    for number in range(20):
        (corpus / str(number)).write_bytes(Random(number).randbytes(300))
    command = [str(core_target), flag, "-max_len=4000", "-len_control=0", "-rss_limit_mb=2048"]
    command += [f"-artifact_prefix={tmp_path}/", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
