"""Log lines as scripts know them: `INFO: 2006/01/02 15:04:05.000000 message`, on stderr. Source: CLI spec §8."""

import logging
import sys
from datetime import UTC, datetime

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "fatal": 50, "panic": 50}


class Formatter(logging.Formatter):
    """One line a record, four letters of level; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y/%m/%d %H:%M:%S.%f")
        level = "FATA" if record.levelno >= logging.CRITICAL else record.levelname[:4]
        line = f"{level}: {at} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(level: str) -> logging.Logger:
    """The program's logger, writing to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logger = logging.getLogger("weave")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(_LEVELS[level])
    return logger


def options_line(given: dict[str, str]) -> str:
    """`Command line options: map[...]`; secrets were redacted before."""
    return "Command line options: map[" + " ".join(f"{name}:{value}" for name, value in given.items()) + "]"
