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
        """The text without the key, which a server may have repeated."""
        return text.replace(self._key, HIDDEN) if self else text

    def is_in_json(self, written: str) -> bool:
        """Whether JSON, of which something is to be kept, gives the key away."""
        return len(self._key) >= _SHORTEST_SECRET and json.dumps(self._key)[1:-1] in written
