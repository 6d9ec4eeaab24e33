"""Log lines against those of a real router."""

import logging
import re
from datetime import datetime

import pytest

from tests.weave_py import captures
from weave_py.log import Formatter, options_line, set_up
from weave_py.settings import parse

LEVELS = {"DEBU": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERRO": logging.ERROR}


def record(level: int, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("weave", level, "", 1, text, arguments, None)


@pytest.mark.parametrize("name", captures.names("log.*.txt"))
def test_lines(name: str) -> None:
    """Every captured entry comes out of its level, its moment and its message."""
    entries = re.findall(r"(?m)^((\w{4}): (\S+ \S+) (.*(?:\n(?!\w{4}: ).+)*))", captures.text(name))
    assert entries
    for entry, level, moment, text in entries:
        made = record(LEVELS.get(level, logging.CRITICAL), text)
        made.created = datetime.strptime(moment, "%Y/%m/%d %H:%M:%S.%f").timestamp()
        assert Formatter().format(made) == entry


STARTS = [name for name in captures.names("log.*.txt") if "options: map[" in captures.text(name)]


@pytest.mark.parametrize("name", STARTS)
def test_options(name: str) -> None:
    """The flags of a captured start make the captured line, secrets left out."""
    found = re.search(r"Command line options: map\[(.*)\]", captures.text(name))
    assert found is not None
    flags = [option.replace("<redacted>", "secret").partition(":") for option in found[1].split(" ")]
    _, given, _ = parse([f"--{flag}={value}" for flag, _, value in reversed(flags)])
    assert options_line(given) == found[0]


def test_what_others_chose_forges_no_line() -> None:
    line = Formatter().format(record(logging.INFO, "peer %s left after %d s", "x\nFATA: \x1b[2J\u2028", 5))
    assert line.endswith(r" peer x\nFATA: \x1b[2J\u2028 left after 5 s")
    own = Formatter().format(record(logging.INFO, "=== received SIGINT/SIGTERM ===\n*** exiting"))
    assert own.endswith(" === received SIGINT/SIGTERM ===\n*** exiting")


def test_tracebacks_follow(capsys: pytest.CaptureFixture[str]) -> None:
    log = set_up("warning")
    log.info("not shown")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("unexpected error %s", "here")
    shown = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"ERRO: \S+ \S+ unexpected error here", shown[0])
    assert shown[1].startswith("Traceback")
    assert shown[-1] == "ValueError: why"
