"""Where the API server is and who we are: in a pod, the service account that is mounted there.

Tokens are short-lived and the kubelet replaces the file, as it does with the bundle of authorities; both are read
again now and then, and at once when the server refuses us. Source: Kubernetes, "Accessing the API from a Pod".
"""

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kube.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Seconds for which a token is used without a look at its file.
_REREAD = 10.0


@dataclass(frozen=True, slots=True)
class Config:
    """One API server. `token` is used where there is no `token_file`; neither: we are anonymous.

    `ca_file`: authorities in PEM; None: those of the system.
    """

    url: str
    token: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None


def in_cluster(environ: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT) -> Config:
    """As a pod's environment and mounts say. Raises ConfigError where this is no pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError("no KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: this is no pod of a cluster")
    token, authorities = directory / "token", directory / "ca.crt"
    for path in (token, authorities):
        if not path.is_file():
            raise ConfigError(f"no {path}: the pod has no service account mounted")
    return Config(f"https://{f'[{host}]' if ':' in host else host}:{port}", token_file=token, ca_file=authorities)


class Credentials:
    """What goes with each request. `clock`: seconds, never going back."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._token = config.token
        self._token_read: float | None = None
        self._authorities = b""
        self._authorities_read: float | None = None
        self._context: ssl.SSLContext | None = None

    def headers(self) -> dict[str, str]:
        """Raises ConfigError where the token cannot be read and none was before."""
        if self._config.token_file is not None and self._due(self._token_read):
            self._read_token(self._config.token_file)
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def refused(self) -> bool:
        """The server does not know us: read the token anew. Whether it is another one."""
        before, self._token_read = self._token, None
        self.headers()
        return self._token != before

    def tls(self) -> ssl.SSLContext | bool:
        """How the server is known; True: by the system's authorities. Raises ConfigError."""
        path = self._config.ca_file
        if path is None or not self._config.url.startswith("https:"):
            return True
        if self._due(self._authorities_read):
            self._authorities_read = self._clock()
            try:
                authorities = path.read_bytes()
                if authorities != self._authorities:
                    self._context = ssl.create_default_context(cadata=authorities.decode())
                    self._authorities = authorities
            except (OSError, ValueError, ssl.SSLError) as error:
                if self._context is None:
                    raise ConfigError(f"the authorities in {path} cannot be used: {error}") from error
        assert self._context is not None
        return self._context

    def _due(self, read: float | None) -> bool:
        return read is None or self._clock() - read >= _REREAD

    def _read_token(self, path: Path) -> None:
        try:
            self._token = path.read_text().strip()
        except (OSError, ValueError) as error:
            if not self._token:
                raise ConfigError(f"the token in {path} cannot be read: {error}") from error
        self._token_read = self._clock()
