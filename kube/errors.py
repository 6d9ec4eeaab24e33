"""What goes wrong between us and the API server."""


class KubeError(Exception):
    """The API server cannot be reached, or says what is no answer; one line for a person."""


class ConfigError(KubeError):
    """Where the API server is, or who we are, is not said."""


class ApiError(KubeError):
    """The API server refuses: HTTP status, Kubernetes' reason (may be blank) and message.

    `retry_after`: the seconds for which it asks to be left alone, if it does.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{message or 'no message'} ({status}{' ' if reason else ''}{reason})")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def gone(self) -> bool:
        """What was asked for is too old to be known still."""
        return self.status == 410

    @property
    def conflict(self) -> bool:
        """Somebody else changed, or made, the object."""
        return self.status == 409
