"""One thing that is wrong, as `weave doctor` shows it."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """An error: something does not work. A warning: it will not when it is needed, or costs more than it must."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, in one line that names the value, and what to do about it."""

    check: str
    severity: Severity
    what: str
    remedy: str


def error(check: str, what: str, remedy: str) -> Finding:
    """Something does not work."""
    return Finding(check, Severity.ERROR, what, remedy)


def warning(check: str, what: str, remedy: str) -> Finding:
    """Something will not work when it is needed, or costs more than it must."""
    return Finding(check, Severity.WARNING, what, remedy)
