"""A stream cut into lines, none of which is longer than agreed."""

from kube.errors import KubeError


class Lines:
    """`limit`: bytes of the longest line."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Lines that are whole now, without their ends and without blank ones. Raises KubeError if one is too long."""
        first, *rest = chunk.split(b"\n")
        self._keep(first)
        if not rest:
            return []
        lines = [b"".join(self._begun), *rest[:-1]]
        self._begun.clear()
        self._size = 0
        self._keep(rest[-1])
        return [line for line in lines if line]

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            raise KubeError(f"a line of the stream has more than {self._limit} bytes")
        if part:
            self._begun.append(part)
