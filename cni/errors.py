"""Errors as a runtime reads them: a code of the CNI specification, one line, and what more there is to say."""

INVALID_CONFIGURATION = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
# Codes from 100 on are a plugin's own; Weave Net gives this one for everything.
FAILED = 100
INCOMPATIBLE = 1


class CniError(Exception):
    """The plugin's answer is an error."""

    def __init__(self, text: str, code: int = FAILED, details: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.details = details
