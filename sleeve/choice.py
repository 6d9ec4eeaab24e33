"""Which packet path runs: the core where it was built and works, else plain Python.

WEAVE_SLEEVE=python asks for plain Python, WEAVE_SLEEVE=native for nothing but the core.
"""

import asyncio
import logging
import os

from mesh.names import PeerName
from sleeve.path import PacketPath, PlainPath

VARIABLE = "WEAVE_SLEEVE"


def packet_path(
    loop: asyncio.AbstractEventLoop, ourself: PeerName, host: str, port: int, log: logging.Logger
) -> PacketPath:
    """The packet path, bound to its port. Raises OSError where that is taken, ValueError for a wish unknown."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "native", "python"):
        raise ValueError(f"{VARIABLE}={wanted}: there are native and python")
    if wanted != "python":
        try:
            from sleeve.native import NativePath
        except ImportError as error:
            if wanted:
                raise ValueError(f"{VARIABLE}=native: the core cannot be loaded: {error}") from error
            log.warning("sleeve in plain Python, which is slow: its core cannot be loaded (%s)", error)
        else:
            return NativePath(loop, ourself, host, port)
    return PlainPath(loop, ourself, host, port)
