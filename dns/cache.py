"""A small cache of upstream replies: the oldest goes when it is full. Source: DNS spec §14 (F9)."""

from dns.reply import Reply

_MOST = 1000
# Bytes of one reply that is worth keeping.
_LARGEST = 4096


class ReplyCache:
    """Replies by question and by what else tells answers apart. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._replies: dict[bytes, tuple[float, Reply]] = {}

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: bytes, now: float) -> tuple[Reply, int] | None:
        """A reply that still holds, and its age in whole seconds."""
        kept = self._replies.get(key)
        if kept is None:
            return None
        since, reply = kept
        age = int(now - since)
        if age >= reply.ttl:
            del self._replies[key]
            return None
        return reply, age

    def put(self, key: bytes, reply: Reply, now: float) -> None:
        """Keep a reply as long as it says."""
        if reply.ttl and len(reply.body) <= _LARGEST:
            self._replies.pop(key, None)
            if len(self._replies) >= _MOST:
                del self._replies[next(iter(self._replies))]
            self._replies[key] = (now, reply)

    def clear(self) -> None:
        """Forget all: other servers may say something else."""
        self._replies.clear()
