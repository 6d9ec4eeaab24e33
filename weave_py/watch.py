"""`weave status --watch`: the status, fresh every second, until interrupted.

On a terminal one picture is drawn over the other, with colours; elsewhere the texts follow each other, plain, with the
time before each, so that a log of them can be kept. A router that goes away is waited for.
"""

import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import TextIO

from weave_py.client import CliError

_INTERVAL = 1.0
_COLOURS = {"established": "green", "pending": "yellow", "connecting": "yellow", "retrying": "red", "failed": "red"}


def run(path: str, ask: Callable[[], str], out: TextIO) -> int:
    """Show what `ask` gives, again and again; returns the exit code. The first answer's errors are raised."""
    first = ask()
    try:
        if out.isatty():
            _draw(path, first, ask)
        else:
            _print(first, ask, out)
    except KeyboardInterrupt:
        pass
    return 0


def _answer(ask: Callable[[], str]) -> str:
    time.sleep(_INTERVAL)
    try:
        return ask()
    except CliError as error:
        return f"{error}\n"


def _print(text: str, ask: Callable[[], str], out: TextIO) -> None:
    while True:
        out.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}\n{text}")
        out.flush()
        text = _answer(ask)


def _draw(path: str, text: str, ask: Callable[[], str]) -> None:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def coloured(plain: str) -> Text:
        shown = Text(plain)
        for word, colour in _COLOURS.items():
            shown.highlight_regex(rf"\b{word}\b", colour)
        return shown

    def picture(plain: str) -> RenderableType:
        rows = [line.split(None, 3) for line in plain.splitlines()]
        if path != "/status/connections" or not all(row[0] in ("->", "<-") and len(row) > 2 for row in rows):
            return coloured(plain.rstrip("\n"))
        table = Table("", "address", "state", "peer, or what is wrong", title=f"{len(rows)} connections")
        for row in rows:
            table.add_row(*map(coloured, row))
        return table

    with Live(picture(text), console=Console(file=sys.stdout), auto_refresh=False) as live:
        while True:
            live.update(picture(_answer(ask)), refresh=True)
