"""`weave hand-back`, as it is typed."""

import shutil
from pathlib import Path

import pytest

from tests.vectors import ROOT
from weave_py import cli, weave_net
from weave_py.store import Store

SAMPLE = ROOT / "api" / "boltdb-sample-host2.db"


def test_to_weave_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = str(tmp_path / "weave")
    shutil.copy(SAMPLE, f"{prefix}data.db")
    Store(prefix).close()
    assert cli.run(["hand-back", "--db-prefix", prefix]) == 0
    assert capsys.readouterr().out == f"{prefix}data.db\n"
    assert weave_net.read(f"{prefix}data.db") == weave_net.read(str(SAMPLE))


def test_to_an_earlier_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = str(tmp_path / "weave")
    store = Store(prefix)
    store.set_direct_peers(["10.0.0.2"])
    store.close()
    assert cli.run(["hand-back", f"--db-prefix={prefix}", "--schema", "1"]) == 0
    assert capsys.readouterr().out == f"{prefix}data.sqlite\n"
    assert cli.run(["hand-back", f"--db-prefix={prefix}", "--schema", "9"]) == 1
    assert capsys.readouterr().err == f"there is no schema 9: {prefix}data.sqlite has 2, the first is 1\n"


def test_not_under_a_running_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = str(tmp_path / "weave")
    store = Store(prefix)
    assert cli.run(["hand-back", "--db-prefix", prefix]) == 1
    assert "is in use by another router (pid " in capsys.readouterr().err
    store.close()


@pytest.mark.parametrize("words", [["FILE"], ["--schema", "one"]])
def test_what_it_does_not_know(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["hand-back", *words]) == 1
    assert "hand-back   [--db-prefix" in capsys.readouterr().err
