"""Does the log beside a file hold more than SQLite took from it?

SQLite reads a log up to the first frame that is not sound and calls that its end, as after a power cut, when the last
transaction was being written. But each of ours was on the disk before the next began: if two or more commits stand
behind that end, an answered one was damaged, and what is left is an older state that looks sound.
Source: SQLite, "WAL-mode File Format", §1.1, §1.2, §2.1.
"""

import struct
from pathlib import Path

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_MAGIC = 0x377F0682
# In the index, native order: the number of the last frame that counts.
_LAST_FRAME = struct.Struct("=I")
_LAST_FRAME_AT = 16


def passed_over(path: str) -> int:
    """Commits in the log of `path` that SQLite passed over. The file is open, so that there is an index of the log."""
    log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    if not log.exists() or log.stat().st_size <= _HEADER.size or not index.exists():
        return 0
    content = log.read_bytes()
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(content)
    taken = _LAST_FRAME.unpack_from(index.read_bytes(), _LAST_FRAME_AT)[0]
    if magic & ~1 != _MAGIC or _sum(content[: _HEADER.size - 8], bool(magic & 1)) != (sum1, sum2):
        # The header itself is damaged: its frames still name each other's salts, of pages as large as the file's.
        page_size = int.from_bytes(Path(path).read_bytes()[16:18], "big")
        page_size = 65536 if page_size == 1 else page_size
        if len(content) < _HEADER.size + _FRAME.size:
            return 0
        salt1, salt2 = _FRAME.unpack_from(content, _HEADER.size)[2:4]
    size = _FRAME.size + page_size
    count = 0
    for at in range(_HEADER.size + taken * size, len(content) - size + 1, size):
        _, pages, frame_salt1, frame_salt2, _, _ = _FRAME.unpack_from(content, at)
        # The frames behind are of an earlier round of the log, and in the file long since.
        if (frame_salt1, frame_salt2) == (salt1, salt2):
            count += pages > 0
    return count


def _sum(content: bytes, big_endian: bool) -> tuple[int, int]:
    """The log's own sum of some words."""
    first = second = 0
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(content) // 4}I", content)
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second
