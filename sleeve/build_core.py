"""How the native core is built: C through cffi's API mode, against libsodium. `setup.py` names it.

Without a compiler or libsodium's header the build goes on without the core, and the plain-Python path is used.
WEAVE_SANITIZE=1 builds it with the address and undefined-behaviour sanitizers.
"""

import os
from pathlib import Path

from cffi import FFI

_CORE = Path("sleeve/core")
_FLAGS = ["-std=gnu11", "-O2", "-D_GNU_SOURCE", "-fvisibility=hidden", "-Wall", "-Wextra"]
_SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

ffibuilder = FFI()
ffibuilder.cdef((_CORE / "api.h").read_text())
_sanitize = _SANITIZE if os.environ.get("WEAVE_SANITIZE") else []
ffibuilder.set_source(
    "sleeve._sleeve",
    '#include "core.h"',
    sources=sorted(str(path) for path in _CORE.glob("*.c")),
    depends=sorted(str(path) for path in _CORE.glob("*.h")),
    include_dirs=[str(_CORE)],
    libraries=["sodium", "dl"],
    extra_compile_args=_FLAGS + _sanitize,
    extra_link_args=["-pthread", *_sanitize],
    optional=True,
)
