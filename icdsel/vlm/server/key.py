"""The key that servers are asked with. No message, file or representation of an object shows it."""

import json
import os
from collections.abc import Mapping

from icdsel.errors import VlmError
from icdsel.settings.kinds import API_KEY_VARIABLE

_SHORTEST_SECRET = 8
"""Shorter ones are placeholders, such as "EMPTY" or "none", that an answer may well contain."""
HIDDEN = "[key]"


class ApiKey:
    """A key, or none.

    Args:
        key: The key; empty if there is none.

    Raises:
        VlmError: It cannot be a key.
    """

    def __init__(self, key: str = "") -> None:
        self._key = key.strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:  # a header cannot hold it
            raise VlmError(f"{API_KEY_VARIABLE} is not a key: it has spaces, line breaks or letters beyond ASCII")

    @classmethod
    def exported(cls, environment: Mapping[str, str] = os.environ) -> "ApiKey":
        """The key of the environment."""
        return cls(environment.get(API_KEY_VARIABLE, ""))

    def __bool__(self) -> bool:
        return bool(self._key)

    def __repr__(self) -> str:
        return f"ApiKey({HIDDEN if self else ''})"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a key is not written down")

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request that carry it."""
        return {"Authorization": f"Bearer {self._key}"} if self else {}

    def hidden_in(self, text: str) -> str:
        """The text without the key, which a server may have repeated; placeholders stay."""
        if not self._is_secret:
            return text
        return text.replace(self._key, HIDDEN).replace(json.dumps(self._key)[1:-1], HIDDEN)

    def is_in_json(self, written: str) -> bool:
        """Whether JSON, of which something is to be kept, gives the key away."""
        return self._is_secret and json.dumps(self._key)[1:-1] in written

    @property
    def stream(self) -> "HiddenInStream":
        """What hides the key in a text that arrives in parts."""
        return HiddenInStream(self._key.encode() if self._is_secret else b"")

    @property
    def _is_secret(self) -> bool:
        return len(self._key) >= _SHORTEST_SECRET


class HiddenInStream:
    """Hides a key in bytes that arrive in parts, also one that is cut in two.

    What may be the beginning of the key is kept until the next part. A key has no line breaks, so that whole lines are
    never kept.

    Args:
        key: The key; empty to hide nothing.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._kept = key, b""

    def __repr__(self) -> str:
        return f"HiddenInStream({HIDDEN})"

    def next(self, part: bytes) -> bytes:
        """What can be shown after another part."""
        if not self._key:
            return part
        text = (self._kept + part).replace(self._key, HIDDEN.encode())
        longest = min(len(self._key) - 1, len(text))
        count = next((n for n in range(longest, 0, -1) if text.endswith(self._key[:n])), 0)
        self._kept = text[len(text) - count :]
        return text[: len(text) - count]

    def last(self) -> bytes:
        """What can be shown at the end."""
        return self._kept if len(self._kept) < _SHORTEST_SECRET else HIDDEN.encode()
