"""Names of sets and chains: a hash of what they stand for, and never the same for two things.

Whoever writes policies chooses what is hashed, and could look for two that collide; so the whole is compared, and the
later of the two gets a number.
Source: NPC spec §4.2.
"""

import json
from hashlib import blake2b

Part = str | None | list["Part"]


class Names:
    """Hashes in use, each with what it stands for."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def take(self, key: Part) -> str:
        """The hash of a key, 16 hexadecimal digits, or more where another key has them."""
        text = json.dumps(key, separators=(",", ":"))
        plain = blake2b(text.encode(), digest_size=8).hexdigest()
        name, number = plain, 1
        while self._keys.setdefault(name, text) != text:
            number += 1
            name = f"{plain}-{number}"
        return name

    def free(self, name: str) -> None:
        """Nothing has this name any more."""
        del self._keys[name]
