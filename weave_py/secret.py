"""A secret that was given on the command line, out of the list of processes. Source: proc(5)."""

import os
from pathlib import Path

# The 48th field of proc(5)'s stat, counted from the third: the first that follows the name in brackets.
_ARG_START = 45


def hide_argument(secret: str) -> bool:
    """Overwrite a secret where the kernel shows this process's command line; whether it is gone from there.

    `ps` reads the very memory that `execve` filled, and that memory is ours to write (proc(5), `arg_start`).
    """
    hidden = os.fsencode(secret)
    try:
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_ARG_START])
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            for word in words:
                if word == hidden or word.endswith(b"=" + hidden):
                    memory.seek(start + len(word) - len(hidden))
                    memory.write(b"x" * len(hidden))
                start += len(word) + 1
        shown = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        return not any(word == hidden or word.endswith(b"=" + hidden) for word in shown)
    except (OSError, ValueError, IndexError):
        return False
