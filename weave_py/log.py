"""Log lines as scripts know them: `INFO: 2006/01/02 15:04:05.000000 message`, on stderr. Source: CLI spec §8.

What peers and users chose (nicknames, addresses, errors) cannot forge a line or drive a terminal: control characters
of arguments are escaped, while the texts of this program may have several lines.
"""

import logging
import re
import sys
from collections.abc import Mapping
from datetime import datetime

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "fatal": 50, "panic": 50}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """The text with control characters escaped."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _argument(value: object) -> object:
    return value if isinstance(value, int | float) else printable(str(value))


class Formatter(logging.Formatter):
    """One line a record, four letters of level; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%Y/%m/%d %H:%M:%S.%f")
        level = "FATA" if record.levelno >= logging.CRITICAL else record.levelname[:4]
        message = str(record.msg)
        if record.args and not isinstance(record.args, Mapping):
            message %= tuple(map(_argument, record.args))
        elif record.args:
            message = record.getMessage()
        line = f"{level}: {at} {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(level: str) -> logging.Logger:
    """The program's logger, writing to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logger = logging.getLogger("weave")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(_LEVELS[level])
    # Nobody reads these, and every record pays for them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    return logger


def options_line(given: Mapping[str, str]) -> str:
    """`Command line options: map[...]`, sorted; secrets were redacted before."""
    return "Command line options: map[" + " ".join(f"{name}:{value}" for name, value in sorted(given.items())) + "]"


class _Prefix(logging.Filter):
    """Says who speaks, unless the line says it itself."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("["):
            record.msg = f"{self._prefix} {record.msg}"
        return True


def prefixed(log: logging.Logger, prefix: str) -> logging.Logger:
    """A logger whose lines begin with who speaks, as `[allocator 00:00:00:00:00:01]`."""
    child = log.getChild(prefix)
    child.filters = [_Prefix(prefix)]
    return child
