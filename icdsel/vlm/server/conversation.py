"""Chat messages as OpenAI's protocol has them."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from icdsel.vlm.prompts import Message

ImageUrl = Callable[[Path], Awaitable[str]]
"""The address by which a server gets an image."""


async def openai_messages(messages: Sequence[Message], url: ImageUrl) -> list[dict[str, Any]]:
    """The messages with images as addresses. Turns without an image are plain strings, which every server takes."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        parts = message["content"]
        if all(part["type"] == "text" for part in parts):
            turns.append({"role": message["role"], "content": "".join(part["text"] for part in parts)})
            continue
        content = [
            {"type": "image_url", "image_url": {"url": await url(part["image"])}} if part["type"] == "image" else part
            for part in parts
        ]
        turns.append({"role": message["role"], "content": content})
    return turns
