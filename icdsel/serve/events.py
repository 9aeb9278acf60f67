"""Events of a stream, as servers of OpenAI's protocol send them."""

import json
from collections.abc import Mapping
from typing import Any


def event(value: Mapping[str, Any]) -> bytes:
    """An event that holds a value."""
    return f"data: {json.dumps(value)}\n\n".encode()
